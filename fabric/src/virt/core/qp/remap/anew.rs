//! A queue pair that was written down, made anew: its windows are filled, its physical queue pair is
//! connected, and what was handed and not executed is handed again.
//!
//! As in a move, with two differences: there is no old physical queue pair, and what its peer has
//! executed was judged when it was written down.

use super::super::ending::Ending;
use super::super::{QpCore, watch};
use super::{Fresh, QpImage};
use crate::abi::{self, qp_state};
use crate::error::{Error, Result};
use crate::names::{PhysicalEnd, ProcessId};
use crate::virt::core::lock::gate;
use crate::virt::core::lock_mutex;
use sojourn_logging::{Element, Plan, Replay};
use std::sync::atomic::Ordering;

impl QpCore {
    /// Fills the windows of one that was just made as that image says. Nobody else has it.
    ///
    /// # Errors
    /// `EINVAL` where its windows do not take what the image has.
    pub(in crate::virt::core) fn fill(&self, image: &QpImage) -> Result<()> {
        {
            let mut control = lock_mutex(&self.control);
            control.attr = image.attr.attr(image.state);
            control.met = image.met.map(|(process, qpn)| (ProcessId(process), qpn));
        }
        if let Some(tracked) = &self.tracked {
            tracked.begin_at(image.sends.first, image.recvs.first);
        }
        self.remote.store(image.remote, Ordering::Release);
        self.fill_recvs(image)?;
        self.fill_sends(image)?;
        if image.state == qp_state::ERR {
            self.is_ending.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn fill_sends(&self, image: &QpImage) -> Result<()> {
        let (mut side, sends) = (self.send_side.visit(), &image.sends);
        // Until it is attached.
        side.set(gate::SUSPENDED);
        self.send.begin_at(sends.first);
        for request in &sends.entries {
            let entry = request.entry().ok_or_else(|| self.does_not_fit())?;
            let appended = if u32::from(entry.flags) & abi::send_flags::INLINE != 0 {
                let entry =
                    sojourn_logging::SendEntry { inline: request.inline.len() as u32, ..entry };
                self.send.append_inline(&entry, std::iter::once(&request.inline[..]))
            } else {
                self.send.append(&entry, request.elements.iter().map(|it| Element::from(*it)))
            };
            appended.map_err(|_| self.does_not_fit())?;
        }
        let upto = sends.first + u64::from(sends.handed);
        self.send.mark_handed(upto.min(self.send.appended()));
        if let Some(past) = sends.past {
            self.send.resume(past);
        }
        if image.state == qp_state::ERR {
            let failing = sends.failing.unwrap_or_default();
            side.ending = match sends.failing {
                Some(_) => Ending::failed_at(failing.first, failing.status, sends.first),
                None => Ending::failed_at(u64::MAX, 0, sends.first),
            };
            side.set(gate::FAILED | gate::ERR);
            self.watch.fetch_or(watch::ENDING, Ordering::Release);
        }
        Ok(())
    }

    fn fill_recvs(&self, image: &QpImage) -> Result<()> {
        let (_side, recvs) = (self.recv_side.visit(), &image.recvs);
        self.recv.begin_at(recvs.first);
        for receive in &recvs.entries {
            let elements = receive.elements.iter().map(|it| Element::from(*it));
            self.recv.append(receive.wr_id, elements).map_err(|_| self.does_not_fit())?;
        }
        self.recv_base.store(recvs.base, Ordering::Release);
        self.unfilled.store(recvs.unfilled, Ordering::Release);
        self.delivered.store(recvs.delivered, Ordering::Release);
        if recvs.mend > 0 {
            self.expect_cut(recvs.mend);
        }
        Ok(())
    }

    fn does_not_fit(&self) -> Error {
        Error::invalid(format!("queue pair {:#x}: its windows do not take what they had", self.qpn))
    }

    /// The physical queue pair that it was made over, as one to go over to: in INIT, where `state` is
    /// beyond RESET.
    pub(in crate::virt::core) fn fresh_here(&self, state: u32) -> Result<Fresh> {
        let attachment = self.attachment()?;
        self.begin_moving()?;
        let fresh = Fresh::of(attachment, state);
        if state != qp_state::RESET
            && let Err(error) = self.init_fresh(&fresh)
        {
            self.end_moving();
            return Err(error);
        }
        Ok(fresh)
    }

    /// Connects it to that end of this very process; without an end, to nobody.
    pub(in crate::virt::core) fn connect_anew(
        &self,
        fresh: &mut Fresh,
        end: Option<(PhysicalEnd, u32)>,
    ) -> Result<()> {
        let own = self.local().grant();
        self.connect_fresh(fresh, own.process, end)?;
        lock_mutex(&self.control).mtu = fresh.mtu;
        if let Some(target) = &fresh.target {
            self.watch_source(Some(self.source_to(target, own.incarnation)));
        }
        Ok(())
    }

    /// Goes on there with what that image says. Returns how many bytes of its first request had landed,
    /// where that is a WRITE with immediate data: it then waits to be released.
    pub(in crate::virt::core) fn attach_anew(&self, fresh: Fresh, image: &QpImage) -> Option<u32> {
        let first = image.sends.first;
        let replay = |(at, skip): &(u32, u32)| Replay { seq: first + u64::from(*at), skip: *skip };
        let plan = Plan {
            executed: image.sends.executed.iter().map(|at| first + u64::from(*at)).collect(),
            replays: image.sends.replays.iter().map(replay).collect(),
            undecided: None,
        };
        // Nothing is left behind: it is the same physical queue pair.
        let (_same, cut) = self.attach_as(fresh, |_| Some(plan));
        self.end_moving();
        cut
    }

    /// It is not attached after all.
    pub(in crate::virt::core) fn stay_unattached(&self) {
        self.end_moving();
    }
}
