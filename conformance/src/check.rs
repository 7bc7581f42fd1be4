//! What cases compare, and how they say what differs.

use crate::case::{Stop, Verdict};
use sojourn_fabric::abi::{Wc, wc_opcode, wc_status};
use sojourn_fabric::virt::MemoryRegion;
use std::fmt::Debug;

/// `got` must be `wanted`.
#[track_caller]
pub(crate) fn same<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Verdict {
    if got == wanted {
        return Ok(());
    }
    Err(Stop::failed(format!("{what} is {got:?}, not {wanted:?}")))
}

/// `holds` must be true.
#[track_caller]
pub(crate) fn ensure(holds: bool, otherwise: &str) -> Verdict {
    if holds { Ok(()) } else { Err(Stop::failed(otherwise)) }
}

/// A completion with success of this request.
#[track_caller]
pub(crate) fn success(wc: &Wc, wr_id: u64, opcode: u32) -> Verdict {
    if wc.wr_id == wr_id && wc.status == wc_status::SUCCESS && wc.opcode == opcode {
        return Ok(());
    }
    Err(Stop::failed(format!(
        "{}, not request {wr_id:#x} with SUCCESS as {}",
        told(wc),
        wc_opcode::name(opcode)
    )))
}

/// A completion of this request with one of these statuses, which are errors: of its fields only
/// `wr_id`, `status` and `qp_num` are defined.
#[track_caller]
pub(crate) fn ended(wc: &Wc, wr_id: u64, statuses: &[u32]) -> Verdict {
    if wc.wr_id == wr_id && statuses.contains(&wc.status) {
        return Ok(());
    }
    let names: Vec<&str> = statuses.iter().map(|status| wc_status::name(*status)).collect();
    Err(Stop::failed(format!("{}, not request {wr_id:#x} with {}", told(wc), names.join(" or "))))
}

/// A flush of this request.
#[track_caller]
pub(crate) fn flushed(wc: &Wc, wr_id: u64) -> Verdict {
    ended(wc, wr_id, &[wc_status::WR_FLUSH_ERR])
}

fn told(wc: &Wc) -> String {
    format!(
        "completed: request {:#x} with {} as {}",
        wc.wr_id,
        wc_status::name(wc.status),
        wc_opcode::name(wc.opcode)
    )
}

/// The call must be refused, with one of these errnos where there are any.
#[track_caller]
pub(crate) fn refused<T>(what: &str, result: sojourn_fabric::Result<T>, errnos: &[i32]) -> Verdict {
    match result {
        Err(error) if errnos.is_empty() || errnos.contains(&error.errno()) => Ok(()),
        Err(error) => Err(Stop::failed(format!(
            "{what} is refused with errno {} instead of {errnos:?}: {error}",
            error.errno()
        ))),
        Ok(_) => Err(Stop::failed(format!("{what} is not refused"))),
    }
}

/// Bytes that differ at every offset and with every seed.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The region must hold `wanted` at `offset`.
#[track_caller]
pub(crate) fn holds(memory: &MemoryRegion, offset: usize, wanted: &[u8]) -> Verdict {
    let mut got = vec![0; wanted.len()];
    memory.read(offset, &mut got);
    match got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(at) => Err(Stop::failed(format!(
            "byte {at} of {} at offset {offset} is {:#04x}, not {:#04x}",
            wanted.len(),
            got[at],
            wanted[at]
        ))),
    }
}
