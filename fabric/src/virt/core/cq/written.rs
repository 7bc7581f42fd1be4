//! A completion queue, written down and made anew.

use super::{CqCore, Held, armed, lock_mutex};
use crate::error::Result;
use crate::virt::core::channel::ChannelCore;
use crate::virt::core::image::{CompletionImage, CqImage};
use crate::virt::core::lock::gate;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl CqCore {
    /// It waits to tell of what comes next, and something has come since it was asked to: the event of
    /// that, if it was such, is still under way.
    pub(in crate::virt::core) fn owes_event(&self) -> bool {
        let _on = self.on.visit();
        let backlog = lock_mutex(&self.backlog);
        self.armed.load(Ordering::Acquire) != armed::NO && backlog.came > backlog.armed_at
    }

    /// What the devices have goes into the backlog, and what destroyed queue pairs have left is dropped.
    pub(in crate::virt::core) fn settle(&self) {
        let on = self.on.visit();
        self.empty_graves(&on);
        self.harvest_all(&on);
    }

    /// Writes it down, all that the devices had being in the backlog. `channel` is where its channel is in
    /// the image. With whether its event is to be there as if it had come: rather one too many than one
    /// too few.
    pub(in crate::virt::core) fn image(&self, channel: Option<u32>) -> (CqImage, bool) {
        let on = self.on.visit();
        let backlog = lock_mutex(&self.backlog);
        // Those whose entries are in their windows are completed anew from there.
        let gone = backlog.held.iter().filter(|held| held.seq.is_none());
        let kind = self.armed.load(Ordering::Acquire);
        let told = kind == armed::YES && backlog.came > backlog.armed_at;
        let image = CqImage {
            user: self.user,
            cqe: self.cqe.load(Ordering::Relaxed),
            channel,
            single_threaded: self.on.is_single_threaded(),
            armed: if told { armed::NO } else { kind },
            unread: gone.map(|held| CompletionImage::new(&held.wc)).collect(),
        };
        drop(on);
        (image, told)
    }

    /// What the program has not taken is in the backlog of one that was just made.
    pub(in crate::virt::core) fn fill(&self, image: &CqImage) {
        if image.unread.is_empty() {
            return;
        }
        let mut backlog = lock_mutex(&self.backlog);
        for unread in &image.unread {
            backlog.push(Held::gone(unread.wc()));
        }
        drop(backlog);
        self.on.note(gate::ATTENTION);
    }

    /// It tells of what comes next, if it did so when it was written down.
    pub(in crate::virt::core) fn arm_again(&self, image: &CqImage) -> Result<()> {
        match image.armed {
            armed::NO => Ok(()),
            kind => self.req_notify(kind == armed::SOLICITED),
        }
    }

    /// The channel that its events go to.
    pub(in crate::virt::core) fn channel(&self) -> Option<&Arc<ChannelCore>> {
        self.channel.as_ref()
    }
}
