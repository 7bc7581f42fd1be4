//! Whether memory is where regions were: as the kernel says.

use crate::error::{Error, Result};

/// What is mapped in this process, by address.
pub(super) struct Mapped(Vec<Range>);

struct Range {
    start: u64,
    end: u64,
    is_readable: bool,
    is_writable: bool,
}

impl Mapped {
    /// What is mapped right now.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub(super) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/maps").map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Error::new(errno, format!("reading /proc/self/maps: {error}"))
        })?;
        Ok(Mapped(text.lines().filter_map(parse).collect()))
    }

    /// The first byte of a piece of memory that is not there to be read (and written, where `writes` says
    /// so).
    pub(super) fn missing(&self, addr: u64, length: u64, writes: bool) -> Option<u64> {
        let end = addr.saturating_add(length);
        let mut at = addr;
        for range in self.0.iter().filter(|range| range.end > addr) {
            if range.start > at || !range.is_readable || (writes && !range.is_writable) {
                break;
            }
            at = range.end;
            if at >= end {
                return None;
            }
        }
        (at < end).then_some(at)
    }
}

/// `start-end rwxp …`, in hexadecimal.
fn parse(line: &str) -> Option<Range> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_writable = rest.as_bytes().get(1) == Some(&b'w');
    Some(Range { start, end, is_readable: rest.starts_with('r'), is_writable })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a region is not restored over memory that is not there, or that cannot be written.
    #[test]
    fn holes_and_read_only_pages_are_found() {
        let text = "1000-3000 rw-p 0 00:00 0\n3000-4000 rw-s 0 00:00 0 a b\n4000-5000 r--p 0\n\
                    6000-7000 rw-p 0\n8000-9000 ---p 0\nnonsense\n";
        let mapped = Mapped(text.lines().filter_map(parse).collect());
        for (addr, length, writes, missing) in [
            (0x1000, 0x3000, true, None),
            (0x1800, 0x10, true, None),
            (0x1000, 0x4000, true, Some(0x4000)),
            (0x1000, 0x4000, false, None),
            (0x4800, 0x2000, false, Some(0x5000)),
            (0x0800, 0x1000, false, Some(0x0800)),
            (0x6000, 0x1001, true, Some(0x7000)),
            (0x8000, 0x10, false, Some(0x8000)),
            (0xa000, 1, false, Some(0xa000)),
        ] {
            assert_eq!(mapped.missing(addr, length, writes), missing, "{addr:#x} +{length:#x}");
        }
        let here = [0u8; 64];
        assert_eq!(Mapped::now().unwrap().missing(here.as_ptr() as u64, 64, true), None);
    }
}
