//! The largest of one number of each rank, found while the ranks compute.
//!
//! Dissemination: in round k a rank sends what it has to the rank 2^k after it, and takes over
//! what comes from the rank 2^k before it. After ⌈log₂ n⌉ rounds everybody has everybody's number.
//! Some arrive twice, which the largest does not mind; so any number of ranks will do, and the
//! result is the same everywhere, bit for bit.
//!
//! Each round has two slots, used by the parity of the reduction. Whoever has finished reduction
//! g + 1 knows that all have begun it, and so have finished g, whose slots are free for g + 2.

use super::wires::{Plan, Space, WireId, Wires};
use sojourn::{Error, Result};

/// Buffers of each round.
const SLOTS: u64 = 2;

/// The rounds among `size` ranks: how far each reaches.
fn distances(size: u32) -> impl Iterator<Item = u32> {
    (0..u32::BITS).map(|k| 1 << k).take_while(move |distance| *distance < size)
}

/// The rank `distance` after `rank`, and the one before it.
fn partners(rank: u32, size: u32, distance: u32) -> (u32, u32) {
    ((rank + distance) % size, (rank + size - distance) % size)
}

struct Round {
    to: WireId,
    from: WireId,
    inbox: Space,
}

struct Running {
    largest: f64,
    round: usize,
}

/// The reductions of a rank, one at a time.
pub(super) struct AllReduce {
    rounds: Vec<Round>,
    /// Counts the reductions.
    generation: u64,
    running: Option<Running>,
}

impl AllReduce {
    /// Plans the wires of `rank` among `size`.
    pub(super) fn plan(plan: &mut Plan, rank: u32, size: u32) -> Self {
        let rounds = distances(size).enumerate().map(|(k, distance)| {
            let (after, before) = partners(rank, size, distance);
            let (out, into) = (format!("heat/reduce/{k}/out"), format!("heat/reduce/{k}/in"));
            // Nothing comes back on the way out.
            let nothing = plan.space(0);
            let inbox = plan.space(SLOTS as usize);
            let to = plan.wire(after, out.clone(), into.clone(), nothing);
            let from = plan.wire(before, into, out, inbox.clone());
            Round { to, from, inbox }
        });
        AllReduce { rounds: rounds.collect(), generation: 0, running: None }
    }

    /// Begins a reduction with this rank's number, which is not negative. The one before must
    /// have been finished.
    pub(super) fn begin(&mut self, wires: &mut Wires<'_>, number: f64) -> Result<()> {
        debug_assert!(self.running.is_none() && number >= 0.0);
        self.generation += 1;
        self.running = Some(Running { largest: number, round: 0 });
        self.send(wires)
    }

    /// Takes what has arrived, without waiting.
    pub(super) fn progress(&mut self, wires: &mut Wires<'_>) -> Result<()> {
        while let Some(round) = self.waiting() {
            let from = self.rounds[round].from;
            let Some(imm) = wires.try_notice(from)? else { break };
            self.take(wires, imm)?;
        }
        Ok(())
    }

    /// Waits for the result of the reduction that is running; `None` where none is.
    pub(super) fn finish(&mut self, wires: &mut Wires<'_>) -> Result<Option<f64>> {
        while let Some(round) = self.waiting() {
            let imm = wires.notice(self.rounds[round].from, "its part of the residual")?;
            self.take(wires, imm)?;
        }
        Ok(self.running.take().map(|running| running.largest))
    }

    /// The round whose message is missing.
    fn waiting(&self) -> Option<usize> {
        self.running.as_ref().map(|running| running.round).filter(|k| *k < self.rounds.len())
    }

    fn slot(&self) -> usize {
        (self.generation % SLOTS) as usize * 8
    }

    fn send(&mut self, wires: &mut Wires<'_>) -> Result<()> {
        let slot = self.slot();
        if let Some(Running { largest, round }) = self.running
            && let Some(to) = self.rounds.get(round).map(|round| round.to)
        {
            wires.notify(to, largest.to_bits(), slot, self.generation as u32)?;
        }
        Ok(())
    }

    fn take(&mut self, wires: &mut Wires<'_>, imm: u32) -> Result<()> {
        let slot = self.slot();
        let Some(running) = &mut self.running else { return Ok(()) };
        let round = &self.rounds[running.round];
        if imm != self.generation as u32 {
            return Err(Error::new(
                libc::EBADMSG,
                format!(
                    "rank {} sent its part of residual {imm} where that of {} was due: messages \
                     were lost, repeated or reordered",
                    wires.peer(round.from),
                    self.generation
                ),
            ));
        }
        let theirs = f64::from_bits(wires.load(round.inbox.at(slot)));
        if theirs > running.largest {
            running.largest = theirs;
        }
        running.round += 1;
        self.send(wires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_all_rounds_everybody_has_the_largest() {
        for size in 1..=70 {
            for holder in [0, size / 3, size - 1] {
                let mut has: Vec<bool> = (0..size).map(|rank| rank == holder).collect();
                for distance in distances(size) {
                    has = (0..size)
                        .map(|rank| {
                            let (_, before) = partners(rank, size, distance);
                            has[rank as usize] || has[before as usize]
                        })
                        .collect();
                }
                assert!(has.iter().all(|has| *has), "{size} ranks, held by {holder}");
            }
        }
    }

    #[test]
    fn a_rank_is_never_its_own_partner_and_partners_agree() {
        for size in 1..=70 {
            for rank in 0..size {
                for distance in distances(size) {
                    let (after, before) = partners(rank, size, distance);
                    assert!(after != rank && before != rank);
                    assert_eq!(partners(after, size, distance).1, rank);
                }
            }
        }
    }
}
