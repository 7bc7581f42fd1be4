//! The parity of the groups that ranks are in: who has it made, and when.
//!
//! When a rank's image is complete, it meets the others. Once all have come, the first rank of each group asks the stores
//! that hold its parity to make it ([`sojourn_snapshot::parity`]). Only then are the ranks of the group complete
//! in the epoch, and meet again to commit it. So an epoch is committed with its parity, or not at all.

use super::options::Options;
use super::restore;
use crate::job::Circle;
use crate::{Error, Job, Result};
use sojourn_snapshot::epoch::{Epoch, Member};
use sojourn_snapshot::image::Geometry;
use sojourn_snapshot::parity::{Asker, Asking, member_of};
use sojourn_snapshot::redundancy::Placement;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the parity of an epoch may take. Less than a whole epoch may.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long parity is waited for before it is looked whether the program still wants it.
const LOOK: Duration = Duration::from_millis(200);

/// The parity of the group that this rank is in.
pub(super) struct Parity {
    /// Of the first rank of a group.
    asker: Option<Asker>,
    circle: Arc<Circle>,
}

impl Parity {
    /// What there is to do for this rank; nothing where the scheme has no parity. All ranks call it.
    ///
    /// # Errors
    /// Where a rank does not tell how long its image is.
    pub(super) fn new(
        job: &Job,
        options: &Options,
        placement: &Placement,
        geometry: &Geometry,
        life: u32,
        (name, circle): (&str, &Arc<Circle>),
    ) -> Result<Option<Parity>> {
        if options.scheme.parity() == 0 {
            return Ok(None);
        }
        let bytes = (geometry.bytes() as u64).to_be_bytes();
        let all = job.exchange(&format!("{name}/slot"), &bytes)?;
        let own = Job::process_of(job.rank());
        let circle = Arc::clone(circle);
        let group = placement.group_of(own).unwrap_or_default();
        let members = placement.members(group);
        if members.first() != Some(&own) {
            return Ok(Some(Parity { asker: None, circle }));
        }
        let mut longest = 0;
        for (rank, note) in (0..).zip(&all) {
            if !members.contains(&Job::process_of(rank)) {
                continue;
            }
            let bytes = note.as_slice().try_into().map(u64::from_be_bytes).map_err(|_| {
                Error::new(libc::EPROTO, format!("rank {rank} tells no length of its image"))
            })?;
            longest = longest.max(bytes);
        }
        let stores: Vec<_> = restore::stores(options).into_iter().map(|store| store.at).collect();
        let asker = Asker::new(&Asking {
            key: &options.key,
            placement,
            group,
            stores: &stores,
            bytes: longest,
            life,
        })?;
        Ok(Some(Parity { asker: Some(asker), circle }))
    }

    /// Has the parity of an epoch made, of which all images are complete; `committed` is the last that is.
    ///
    /// # Errors
    /// Why it is not. The epoch cannot be committed then.
    pub(super) fn make(&mut self, epoch: Epoch, committed: Epoch) -> Result<()> {
        let Some(asker) = &mut self.asker else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        loop {
            let soon = until.min(Instant::now() + LOOK);
            match asker.gather(epoch, committed, soon) {
                Ok(made) => {
                    let computed: u64 = made.iter().map(|it| it.computed).sum();
                    tracing::debug!("parity of {epoch}: {computed} chunks were computed");
                    return Ok(());
                }
                Err(error) if error.errno() == libc::ETIMEDOUT && soon < until => {
                    if self.circle.is_left() {
                        let text = format!("parity of {epoch} is not waited for any more");
                        return Err(Error::new(libc::ECANCELED, text));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The epoch is committed.
    pub(super) fn note(&mut self, epoch: Epoch) {
        if let Some(asker) = &mut self.asker {
            asker.note(epoch);
        }
    }
}

/// The shares of parity that this rank asks stores for, on behalf of all: those of a group that it is the first of.
pub(super) fn shares(rank: u32, placement: &Placement) -> Vec<Member> {
    let process = Job::process_of(rank);
    let group = placement
        .group_of(process)
        .filter(|group| placement.members(*group).first() == Some(&process));
    let Some(group) = group else { return Vec::new() };
    let number = u32::try_from(group).unwrap_or(u32::MAX);
    (0..placement.scheme().parity()).map(|index| member_of(number, index)).collect()
}
