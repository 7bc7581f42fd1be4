//! Bytes that may be a slot, with zeros behind them, so that short ones get as far as long ones.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut slot = bytes.to_vec();
    slot.resize(slot.len().max(1 << 15), 0);
    sojourn_snapshot::image::exercise(&slot);
});
