//! All checksums of a share of parity that a store holds, without the images that it is of.

use super::distant::Distant;
use super::held::Held;
use crate::epoch::{Epoch, Member};
use crate::redundancy::Scheme;
use crate::{Error, PAGE, Result, store};
use sojourn_fabric::names::{Endpoint, JobKey, ProcessId};

/// Chunks that are read at once.
const STEP: usize = 256;

/// A share that is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sound {
    /// Its scheme.
    pub scheme: Scheme,
    /// The processes whose images it is of.
    pub processes: Vec<ProcessId>,
    /// Bytes that were checked.
    pub bytes: u64,
}

/// Reads the share that `member` is, in that epoch, from the store that listens at `at`, and checks every checksum of it.
/// `progress` hears how many bytes of how many have been read.
///
/// # Errors
/// `EINVAL` for a member that is no share ([`share_of`](super::share_of)); `ENODATA` where the store does not hold that epoch
/// of it (any more); `EBADMSG` where it is damaged; the store cannot be reached.
pub fn check(
    device: &str,
    key: &JobKey,
    at: &Endpoint,
    member: Member,
    epoch: Epoch,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Sound> {
    let Some((group, index)) = super::share_of(member) else {
        return Err(Error::invalid(format!("process {member} is no share of parity")));
    };
    let pd = store::device(device)?.alloc_pd()?;
    let distant = Distant::open(&pd, key, at, member)?;
    let none =
        || Error::new(libc::ENODATA, format!("store {} has no {epoch} of it", distant.name()));
    let held = Held::open(&distant, epoch)?.ok_or_else(none)?;
    let header = held.header();
    if (header.group, header.index) != (group, index) {
        let text = format!(
            "share {} of group {} lies where share {index} of group {group} should",
            header.index, header.group
        );
        return Err(Error::new(libc::EBADMSG, text));
    }
    let (chunks, total) = (header.chunks(), (header.chunks() * PAGE) as u64);
    let mut room = vec![0; STEP.min(chunks) * PAGE];
    for first in (0..chunks).step_by(STEP) {
        let last = chunks.min(first + STEP);
        held.read(&distant, first..last, &mut room[..(last - first) * PAGE])?;
        progress((last * PAGE) as u64, total);
    }
    // What was read is that epoch's only where it was not begun anew meanwhile.
    if distant.slot_of(epoch)?.is_none() {
        return Err(none());
    }
    let processes = header.images.iter().map(|image| image.process).collect();
    Ok(Sound { scheme: header.scheme, processes, bytes: total })
}
