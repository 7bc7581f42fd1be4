//! The thread that writes the epochs of one rank.
//!
//! It drives a [`Session`], and is the decider's hand in this rank: an epoch is committed when all ranks are
//! complete, and that is what a barrier tells. (With parity there is one before it, which tells that it can be
//! made.) With it travels whether one had to give the epoch up, and
//! the call at which the next one is due. Where a barrier is not passed because a rank has died, the
//! epoch stays in doubt: whoever restores sees from the stores what has become of it.

use super::meeting::{Meeting, Outcome};
use super::parity::Parity;
use crate::job::Circle;
use crate::{Error, Job, Result};
use sojourn_snapshot::epoch::{Epoch, Incarnation, Open, Order, Term, Word};
use sojourn_snapshot::session::{EpochReport, Notice, Program, Session};
use sojourn_snapshot::track::Tracker;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the program may take to come, from when an epoch was begun ahead of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a session that waits for something.
const LOOK: Duration = Duration::from_millis(2);
/// In the number that ranks meet with: this one has given the epoch up.
const GIVEN_UP: u64 = 1 << 63;

/// What the thread has.
pub(super) struct Writer {
    pub(super) session: Session,
    pub(super) tracker: Box<dyn Tracker>,
    pub(super) meeting: Arc<Meeting>,
    pub(super) job: Job,
    pub(super) circle: Arc<Circle>,
    pub(super) parity: Option<Parity>,
    /// Its number is that of the life of all ranks, too.
    pub(super) term: Term,
    /// The last epoch that was dealt.
    pub(super) last: Epoch,
}

impl Writer {
    /// Writes epochs until the program wants no more.
    pub(super) fn run(mut self) {
        while self.meeting.begun() {
            match self.epoch() {
                Ok(outcome) => self.meeting.finish(outcome),
                Err(error) => return self.meeting.fail(error),
            }
        }
    }

    /// One epoch.
    ///
    /// # Errors
    /// It is in doubt, and no other can follow.
    fn epoch(&mut self) -> Result<Outcome> {
        self.last = self.last.after(self.term);
        self.order(Word::Begin(self.last));
        let mut next = None;
        loop {
            let notices = {
                let mut host = Host::new(&mut *self.tracker, &self.meeting);
                self.session.drive(&mut host)
            };
            for notice in notices {
                match notice {
                    Notice::Report(report) => {
                        let complete = Some(Open { epoch: self.last, complete: true });
                        if report.open == complete && next.is_none() {
                            next = Some(self.vote(true)?);
                        }
                    }
                    Notice::Committed(report) => {
                        if let Some(parity) = &mut self.parity {
                            parity.note(report.epoch);
                        }
                        return Ok(self.outcome(Ok(report), next));
                    }
                    Notice::GivenUp(epoch, why) if epoch == self.last => {
                        if next.is_none() {
                            next = Some(self.vote(false)?);
                        }
                        let text = format!("{epoch} is given up: {why}");
                        return Ok(self.outcome(Err(Error::new(libc::ECANCELED, text)), next));
                    }
                    Notice::GivenUp(..) => {}
                    Notice::Protect(epoch) => next = self.protect(epoch)?,
                    Notice::Fenced(newest) => {
                        let text = format!("another life of this process writes epochs: {newest}");
                        return Err(Error::new(libc::ESTALE, text));
                    }
                }
            }
            let soon = Instant::now() + LOOK;
            let wake = self.session.wake_at().map_or(soon, |at| at.min(soon));
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
        }
    }

    fn outcome(&self, report: Result<EpochReport>, next: Option<u64>) -> Outcome {
        Outcome { report, next: next.unwrap_or_default() }
    }

    /// Meets the others, and carries out what that decides. Returns the call at which the next epoch is due.
    fn vote(&mut self, complete: bool) -> Result<u64> {
        let mine = self.meeting.wish() & !GIVEN_UP | if complete { 0 } else { GIVEN_UP };
        let met = self
            .job
            .meet(&self.circle, mine)
            .map_err(|error| error.context(format_args!("whether {} is committed", self.last)))?;
        let word = match met & GIVEN_UP {
            0 => Word::Commit(self.last),
            _ => Word::Abort(self.last),
        };
        self.order(word);
        Ok(met & !GIVEN_UP)
    }

    /// Meets the others, and has parity made where all have come with a complete image. Where one has not, the
    /// epoch is given up, and the call is returned at which the next is due.
    fn protect(&mut self, epoch: Epoch) -> Result<Option<u64>> {
        let met = self
            .job
            .meet(&self.circle, self.meeting.wish() & !GIVEN_UP)
            .map_err(|error| error.context(format_args!("whether {epoch} is complete")))?;
        if met & GIVEN_UP != 0 {
            self.order(Word::Abort(epoch));
            return Ok(Some(met & !GIVEN_UP));
        }
        let committed = self.session.committed();
        let made = self.parity.as_mut().map_or(Ok(()), |parity| parity.make(epoch, committed));
        self.session.protected(epoch, made.map_err(|error| error.to_string()));
        Ok(None)
    }

    fn order(&mut self, word: Word) {
        let to = Incarnation::of_life(self.term.0);
        self.session.order(Order { term: self.term, to, word });
    }
}

/// The program, as a session sees it.
struct Host<'a> {
    tracker: &'a mut dyn Tracker,
    meeting: &'a Meeting,
    /// It stands still: between pause and resume.
    at_rest: bool,
}

impl<'a> Host<'a> {
    fn new(tracker: &'a mut dyn Tracker, meeting: &'a Meeting) -> Self {
        Host { tracker, meeting, at_rest: false }
    }
}

impl Program for Host<'_> {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        // Some trackers start afresh only then.
        match self.at_rest {
            true => self.tracker.collect_at_rest(dirty),
            false => self.tracker.collect(dirty),
        }
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        self.meeting.pause(PATIENCE)?;
        self.at_rest = true;
        Ok(Vec::new())
    }

    fn resume(&mut self) {
        self.at_rest = false;
        self.meeting.resume();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sojourn_snapshot::track::Kind;

    /// Notes whether it was asked at rest.
    struct Asked(Vec<bool>);

    impl Tracker for Asked {
        fn kind(&self) -> Kind {
            Kind::SoftDirty
        }

        fn add(&mut self, _: Range<usize>) -> Result<()> {
            Ok(())
        }

        fn add_always_dirty(&mut self, _: Range<usize>) -> Result<()> {
            Ok(())
        }

        fn remove(&mut self, _: Range<usize>) -> Result<()> {
            Ok(())
        }

        fn collect(&mut self, _: &mut dyn FnMut(Range<usize>)) -> Result<()> {
            self.0.push(false);
            Ok(())
        }

        fn collect_at_rest(&mut self, _: &mut dyn FnMut(Range<usize>)) -> Result<()> {
            self.0.push(true);
            Ok(())
        }
    }

    /// Promise: a tracker that starts afresh only while nothing is written does so in each pause, and in no other
    /// moment.
    #[test]
    fn tracking_starts_afresh_while_the_program_stands_still() {
        let (mut asked, meeting) = (Asked(vec![]), Meeting::new());
        std::thread::scope(|scope| {
            scope.spawn(|| meeting.stand_still(1));
            let mut host = Host::new(&mut asked, &meeting);
            host.collect(&mut |_| {}).unwrap();
            host.pause().unwrap();
            host.collect(&mut |_| {}).unwrap();
            host.resume();
            host.collect(&mut |_| {}).unwrap();
        });
        assert_eq!(asked.0, [false, true, false]);
    }
}
