//! What a range of memory is: the mappings of this process, as `/proc/self/smaps` tells them.

use crate::{Error, PAGE, Result};
use std::ops::Range;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: Range<usize>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
    pub(crate) shared: bool,
    /// Where its first byte lies in its file.
    pub(crate) offset: u64,
    /// Device and inode of its file: an inode of 0 is none.
    pub(crate) file: (u32, u32, u64),
    /// Its file, or what the kernel calls it in brackets, or nothing.
    pub(crate) name: String,
    /// Bytes of a page; more than [`PAGE`] for explicit huge pages.
    pub(crate) page: usize,
    /// Memory of a device, or of the kernel: nothing of it is an ordinary page.
    pub(crate) device: bool,
    /// A userfaultfd may write-protect its pages.
    pub(crate) userfault: bool,
}

impl Mapping {
    /// Private memory without a file.
    pub(crate) fn is_anonymous(&self) -> bool {
        !self.shared && self.file.2 == 0
    }

    /// What its kernel maps into every process: code and clocks.
    pub(crate) fn is_special(&self) -> bool {
        // Everything else in brackets is anonymous memory with a name.
        self.name.starts_with("[v") || self.name == "[uprobes]" || self.name == "[sigpage]"
    }

    /// For errors: what it is.
    fn describe(&self) -> String {
        let sharing = if self.shared { "shared" } else { "private" };
        let name = if self.name.is_empty() { "anonymous memory" } else { &self.name };
        format!("a {sharing} mapping of {name} at {:#x}-{:#x}", self.range.start, self.range.end)
    }

    /// The part of `range` that lies in it, in whole pages of its own.
    pub(crate) fn part_of(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let (start, end) = (range.start.max(self.range.start), range.end.min(self.range.end));
        (start < end).then(|| {
            let start = start - (start - self.range.start) % self.page;
            let end = self.range.start + (end - self.range.start).next_multiple_of(self.page);
            start..end.min(self.range.end)
        })
    }

    /// # Errors
    /// `EOPNOTSUPP`, with its name, where nothing can track it and no snapshot can hold it.
    pub(crate) fn trackable(&self) -> Result<()> {
        if self.is_special() || self.device {
            let why =
                if self.device { "memory of a device" } else { "code and data of the kernel" };
            return Err(Error::unsupported(format!(
                "{} is {why}, whose changes nothing tells: leave it out",
                self.describe()
            )));
        }
        Ok(())
    }
}

/// The mappings of this process, upwards.
///
/// # Errors
/// Where `/proc` is not there, or does not say what it should.
pub(crate) fn detailed() -> Result<Vec<Mapping>> {
    read("/proc/self/smaps")
}

/// The same without what costs a walk of all pages: how large they are, and flags.
///
/// # Errors
/// As [`detailed`].
pub(crate) fn brief() -> Result<Vec<Mapping>> {
    read("/proc/self/maps")
}

fn read(path: &str) -> Result<Vec<Mapping>> {
    let text = std::fs::read(path).map_err(|error| Error::os(&error, format!("reading {path}")))?;
    decode(&text).map_err(|line| {
        Error::new(libc::EPROTO, format!("{path} has a line that is no mapping: {line:?}"))
    })
}

/// The mappings that a file of the form of `maps` or `smaps` lists, or the line that is none.
pub(crate) fn decode(text: &[u8]) -> std::result::Result<Vec<Mapping>, String> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(line);
        if let Some(mut mapping) = header(&line) {
            // The kernel tells a part at a time. Mappings that were split or joined meanwhile are told
            // of twice, as far as they overlap.
            let told = all.last().map_or(0, |last| last.range.end);
            let again = told.saturating_sub(mapping.range.start);
            if again < mapping.range.len() {
                mapping.range.start += again;
                mapping.offset = mapping.offset.wrapping_add(again as u64);
                all.push(mapping);
            }
        } else if let (Some((key, value)), Some(last)) = (line.split_once(':'), all.last_mut()) {
            detail(last, key, value).ok_or_else(|| line.to_string())?;
        } else {
            return Err(line.into_owned());
        }
    }
    Ok(all)
}

/// `start-end perms offset major:minor inode   name`
fn header(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, after) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = after;
        word
    };
    let (start, end) = word().split_once('-')?;
    let (start, end) = (hex(start)? as usize, hex(end)? as usize);
    if start >= end || !start.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) {
        return None;
    }
    let &[read, write, execute, shared] = word().as_bytes() else { return None };
    let offset = hex(word())?;
    let (major, minor) = word().split_once(':')?;
    let file = (hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?, word().parse().ok()?);
    Some(Mapping {
        range: start..end,
        read: read == b'r',
        write: write == b'w',
        execute: execute == b'x',
        shared: shared == b's',
        offset,
        file,
        name: rest.trim_start_matches(' ').to_string(),
        page: PAGE,
        device: false,
        userfault: false,
    })
}

/// One line below the header. `None` where it is one that we need and cannot read.
fn detail(mapping: &mut Mapping, key: &str, value: &str) -> Option<()> {
    match key {
        "KernelPageSize" => {
            let kib: usize = value.trim().strip_suffix(" kB")?.parse().ok()?;
            let page = kib.checked_mul(1024)?;
            if page < PAGE || !page.is_power_of_two() || !mapping.range.len().is_multiple_of(page) {
                return None;
            }
            mapping.page = page;
        }
        "VmFlags" => {
            let has = |wanted| value.split(' ').any(|flag| flag == wanted);
            mapping.device = has("io") || has("pf");
            mapping.userfault = has("uw");
        }
        _ => {}
    }
    Some(())
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-s 00001000 00:0f 77                         /anon_hugepage (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms de ht sd
7f0000400000-7f0000401000 r-xp 00000000 fe:01 1234                       /tmp/with blank: a
VmFlags: rd ex mr mw me
7ffd00000000-7ffd00004000 r--p 00000000 00:00 0                          [vvar]
KernelPageSize:        4 kB
VmFlags: rd mr pf io de dd sd
";

    #[test]
    fn what_the_kernel_lists_is_understood() {
        let all = decode(SMAPS.as_bytes()).unwrap();
        assert_eq!(all.len(), 3);
        let huge = &all[0];
        assert_eq!(
            (huge.page, huge.shared, huge.write, huge.offset),
            (2 << 20, true, true, 0x1000)
        );
        assert!(!huge.device && huge.trackable().is_ok() && !huge.is_anonymous());
        assert_eq!(
            huge.part_of(&(0x7f00_0000_1001..0x7f00_0000_1002)),
            Some(0x7f00_0000_0000..0x7f00_0020_0000)
        );
        assert_eq!((all[1].name.as_str(), all[1].file), ("/tmp/with blank: a", (0xfe, 1, 1234)));
        assert!(all[1].execute && !all[1].write && !all[1].shared);
        let refused = all[2].trackable().unwrap_err().to_string();
        assert!(refused.contains("[vvar]") && refused.contains("0x7ffd00000000"), "{refused}");
    }

    #[test]
    fn this_process_is_understood_and_its_special_mappings_are_refused() {
        let all = detailed().unwrap();
        let special: Vec<_> = all.iter().filter(|it| it.name.starts_with("[v")).collect();
        assert!(special.iter().any(|it| it.name == "[vdso]"));
        assert!(special.iter().all(|it| it.trackable().is_err()));
        let local = 0u8;
        let here = &raw const local as usize;
        let stack = all.iter().find(|it| it.range.contains(&here)).unwrap();
        assert!(stack.trackable().is_ok() && stack.is_anonymous() && stack.write);
    }

    #[test]
    fn mappings_that_are_joined_while_they_are_told_are_told_once() {
        let all =
            decode(b"1000-3000 rw-p 0 0:0 0\n1000-4000 rw-s 5000 0:1 9\n3000-4000 rw-p 0 0:0 0");
        let all: Vec<_> = all.unwrap().into_iter().map(|it| (it.range, it.offset)).collect();
        assert_eq!(all, [(0x1000..0x3000, 0), (0x3000..0x4000, 0x7000)]);
    }

    fn line(text: &str) -> bool {
        decode(text.as_bytes()).is_err()
    }

    #[test]
    fn lines_that_are_no_mapping_are_refused() {
        assert!(line("nonsense") && line("KernelPageSize: 4 kB"));
        assert!(line("2000-1000 rw-p 0 0:0 0") && line("1001-2000 rw-p 0 0:0 0"));
        assert!(line("1000-2000 rw-p 0 0:0 0\nKernelPageSize: 3 kB"));
    }

    proptest! {
        #[test]
        fn any_text_is_decoded_or_refused(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&text);
        }

        #[test]
        fn a_damaged_list_never_panics(at in 0..SMAPS.len(), byte in any::<u8>()) {
            let mut text = SMAPS.as_bytes().to_vec();
            text[at] = byte;
            if let Ok(all) = decode(&text) {
                for it in all {
                    prop_assert!(it.range.start < it.range.end && it.range.len().is_multiple_of(it.page));
                    let _ = it.part_of(&(0..usize::MAX));
                }
            }
        }
    }
}
