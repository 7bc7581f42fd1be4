//! The windows of all attached contexts, as the bytes that an epoch carries.
//!
//! ```text
//! "SJATTACH" | version (u32) | contexts (u32) | of each: kind (u32), bytes (u64), then those bytes
//! ```
//!
//! Little endian. Kind 0 is a context whose windows were left, and has no bytes; kind 1 is what
//! [`Suspension::capture`](sojourn_fabric::virt::Suspension::capture) has written. Where no context is attached
//! there is no byte at all. A slot has a checksum over it; what is decoded here may be anybody's all the same, and
//! each capture is held against what a context can be.

use super::MAX_CONTEXTS;
use crate::{Error, Result};
use sojourn_fabric::virt::{CapturedRegion, captured_regions};

const MAGIC: &[u8; 8] = b"SJATTACH";
const VERSION: u32 = 1;
const LEFT: u32 = 0;
const CAPTURED: u32 = 1;
/// The windows of attached contexts, in the order of attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Vec<Option<Vec<u8>>>);

impl Windows {
    pub(super) fn push(&mut self, captured: Option<Vec<u8>>) {
        self.0.push(captured);
    }

    /// How many contexts were attached.
    #[must_use]
    pub fn contexts(&self) -> usize {
        self.0.len()
    }

    /// What [`Process::restore`](sojourn_fabric::virt::Process::restore) takes, of the context that was attached as the
    /// `index`-th. `None` where its windows were left, or there was none.
    #[must_use]
    pub fn of(&self, index: usize) -> Option<&[u8]> {
        self.0.get(index)?.as_deref()
    }

    /// The regions of that context: memory that is to be where it was before it is restored.
    ///
    /// # Errors
    /// `ENODATA` where there are no windows of it.
    pub fn regions(&self, index: usize) -> Result<Vec<CapturedRegion>> {
        let none = || Error::new(libc::ENODATA, format!("no windows of context {index} were kept"));
        captured_regions(self.of(index).ok_or_else(none)?)
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.0.len() as u32).to_le_bytes());
        for captured in &self.0 {
            let kind = if captured.is_some() { CAPTURED } else { LEFT };
            let captured = captured.as_deref().unwrap_or_default();
            bytes.extend(kind.to_le_bytes());
            bytes.extend((captured.len() as u64).to_le_bytes());
            bytes.extend(captured);
        }
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// `EINVAL` where they are damaged, `EOPNOTSUPP` where they, or a capture in them, are of another version.
    pub fn decode(bytes: &[u8]) -> Result<Windows> {
        if bytes.is_empty() {
            return Ok(Windows::default());
        }
        let mut rest = bytes;
        if take(&mut rest, MAGIC.len() as u64)? != MAGIC {
            return Err(Error::invalid(
                "these are no windows of an epoch: they begin with something else",
            ));
        }
        let version = number(&mut rest)?;
        if version != VERSION {
            return Err(Error::new(
                libc::EOPNOTSUPP,
                format!("windows of version {version}: this library reads version {VERSION}"),
            ));
        }
        let many = number(&mut rest)? as usize;
        if many == 0 || many > MAX_CONTEXTS {
            return Err(Error::invalid(format!("windows of {many} contexts: 1 to {MAX_CONTEXTS}")));
        }
        let mut all = Vec::new();
        for at in 0..many {
            let kind = number(&mut rest)?;
            let long = take(&mut rest, size_of::<u64>() as u64)?;
            let long = u64::from_le_bytes(long.try_into().expect("eight bytes were taken"));
            let captured = take(&mut rest, long)?;
            all.push(match kind {
                LEFT if captured.is_empty() => None,
                CAPTURED => {
                    captured_regions(captured)
                        .map_err(|error| error.context(format_args!("context {at}")))?;
                    Some(captured.to_vec())
                }
                _ => {
                    let text =
                        format!("context {at} of kind {kind}, with {long} bytes, is no such thing");
                    return Err(Error::invalid(text));
                }
            });
        }
        if !rest.is_empty() {
            return Err(Error::invalid(format!(
                "windows with {} bytes too many behind them",
                rest.len()
            )));
        }
        Ok(Windows(all))
    }
}

fn take<'a>(rest: &mut &'a [u8], many: u64) -> Result<&'a [u8]> {
    let cut = usize::try_from(many).ok().and_then(|many| rest.split_at_checked(many));
    let (part, left) = cut.ok_or_else(|| {
        Error::invalid(format!("windows are cut short: {many} bytes, and {} are left", rest.len()))
    })?;
    *rest = left;
    Ok(part)
}

fn number(rest: &mut &[u8]) -> Result<u32> {
    let bytes = take(rest, size_of::<u32>() as u64)?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sojourn_fabric::abi::access;
    use sojourn_fabric::virt::Process;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    /// A context with a region, as it is captured.
    fn captured() -> Vec<u8> {
        static ONE: OnceLock<Vec<u8>> = OnceLock::new();
        ONE.get_or_init(|| {
            let deadline = Instant::now() + Duration::from_secs(60);
            let process = Process::standalone().unwrap();
            let context = process.open("soft0").unwrap();
            let pd = context.alloc_pd().unwrap();
            let _region = pd.register(8192, access::LOCAL_WRITE).unwrap();
            context.suspend(deadline).unwrap().capture(deadline).unwrap()
        })
        .clone()
    }

    fn windows() -> impl Strategy<Value = Windows> {
        prop::collection::vec(any::<bool>(), 0..4)
            .prop_map(|all| Windows(all.into_iter().map(|it| it.then(captured)).collect()))
    }

    #[test]
    fn what_is_left_and_what_is_of_no_context_is_told_apart_by_name() {
        let windows = Windows(vec![None, Some(captured())]);
        assert_eq!((windows.contexts(), windows.of(0), windows.of(2)), (2, None, None));
        assert_eq!(windows.regions(1).unwrap()[0].length, 8192);
        let error = windows.regions(0).unwrap_err();
        assert_eq!(error.errno(), libc::ENODATA, "{error}");
        assert!(error.to_string().contains("context 0"), "{error}");
    }

    proptest! {
        /// What is written is read, and nothing else is: not with a byte more or less, nor with a changed head.
        #[test]
        fn windows_come_back_whole_or_not_at_all(
            windows in windows(),
            cut in any::<prop::sample::Index>(),
            bit in 0u32..8,
        ) {
            let bytes = windows.encode();
            prop_assert_eq!(&Windows::decode(&bytes).unwrap(), &windows);
            if !bytes.is_empty() {
                let cut = cut.index(bytes.len());
                prop_assert!(cut == 0 || Windows::decode(&bytes[..cut]).is_err());
                prop_assert!(Windows::decode(&[&bytes[..], &[0]].concat()).is_err());
                // One bit, anywhere: another capture at most, never other contexts.
                let mut other = bytes.clone();
                other[cut] ^= 1 << bit;
                if let Ok(other) = Windows::decode(&other) {
                    let shape = |it: &Windows| -> Vec<_> {
                        it.0.iter().map(|it| it.as_ref().map(Vec::len)).collect()
                    };
                    prop_assert_eq!(shape(&other), shape(&windows));
                }
            }
        }

        /// Whatever the bytes are, decoding them is safe.
        #[test]
        fn any_bytes_are_refused_or_are_windows(
            head in any::<bool>(),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = match head {
                true => [&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat(),
                false => bytes,
            };
            if let Ok(windows) = Windows::decode(&bytes) {
                prop_assert_eq!(windows.encode(), bytes);
            }
        }
    }
}
