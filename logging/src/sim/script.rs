//! What programs do: a list of requests for each end, made before the run begins.

use super::rng::Rng;
use crate::entry::Opcode;

/// `IBV_SEND_FENCE`.
pub(super) const FENCE: u16 = 1;
/// `IBV_SEND_SIGNALED`.
pub(super) const SIGNALED: u16 = 2;
/// `IBV_SEND_INLINE`.
pub(super) const INLINE: u16 = 8;

/// Places at the peer that WRITEs and READs name.
pub(super) const CELLS: u64 = 3;
/// Longest request of a script: more than four packets of the smallest path MTU.
pub(super) const MAX_LENGTH: u64 = 1200;
/// Longest inline payload.
pub(super) const MAX_INLINE: u32 = 48;

/// A send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wr {
    pub(super) opcode: Opcode,
    pub(super) length: u32,
    pub(super) flags: u16,
    /// Of [`CELLS`].
    pub(super) cell: u64,
}

impl Wr {
    pub(super) fn new(opcode: Opcode, length: u32) -> Self {
        let length = if opcode.is_atomic() { 8 } else { length };
        Wr { opcode, length, flags: SIGNALED, cell: 0 }
    }

    pub(super) fn is_message(&self) -> bool {
        takes_receive(self.opcode)
    }

    pub(super) fn is_signaled(&self) -> bool {
        self.flags & SIGNALED != 0
    }
}

/// Whether a request takes a receive at the peer.
pub(super) fn takes_receive(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Send | Opcode::SendImm | Opcode::WriteImm)
}

/// Whether its data comes back to the requester.
pub(super) fn answers(opcode: Opcode) -> bool {
    opcode == Opcode::Read || opcode.is_atomic()
}

/// A mix of requests. At least one in `depth` is signalled, as any program must do.
pub(super) fn mixed(rng: &mut Rng, depth: u32) -> Vec<Wr> {
    const ALL: [Opcode; 7] = [
        Opcode::Write,
        Opcode::WriteImm,
        Opcode::Send,
        Opcode::SendImm,
        Opcode::Read,
        Opcode::CompareSwap,
        Opcode::FetchAdd,
    ];
    // Some programs use few opcodes, some signal nearly nothing.
    let favourite = rng.pick(&ALL);
    let favour = rng.pick(&[0, 300, 800]);
    let signal = rng.pick(&[1000, 700, 300, 50]);
    let atomics = rng.permille(400);
    let mut quiet = 0;
    (0..rng.between(0, 24))
        .map(|_| {
            let mut opcode = if rng.permille(favour) { favourite } else { rng.pick(&ALL) };
            if opcode.is_atomic() && !atomics {
                opcode = Opcode::Write;
            }
            let length = match rng.below(6) {
                0 => 0,
                1 => rng.between(1, 48),
                2 => 256 * rng.between(1, 4),
                _ => rng.between(1, MAX_LENGTH),
            };
            let mut wr = Wr::new(opcode, length as u32);
            wr.cell = rng.below(CELLS);
            quiet += 1;
            if rng.permille(signal) || quiet >= depth {
                quiet = 0;
            } else {
                wr.flags &= !SIGNALED;
            }
            if !answers(opcode) && wr.length <= MAX_INLINE && rng.permille(500) {
                wr.flags |= INLINE;
            }
            if rng.permille(100) {
                wr.flags |= FENCE;
            }
            wr
        })
        .collect()
}
