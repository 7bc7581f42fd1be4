//! Relocating the device of this process while its messages travel.
//!
//! The mover is a thread of its own; everything else goes on meanwhile.

use crate::options::Options;
use serde_json::{Value, json};
use sojourn::device::soft;
use sojourn::verbs::{Context, Relocation};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps of a pause: a mover that is to end does not sleep longer.
const STEP: Duration = Duration::from_millis(5);

/// Makes the moves that `options` ask for, and returns them as JSON; fewer where `over` is set
/// in between.
pub(crate) fn run(
    context: &Context,
    options: &Options,
    rank: u32,
    over: &AtomicBool,
) -> Result<Vec<Value>, String> {
    let mut moves = Vec::new();
    for (number, device) in (1..=options.moves).zip(options.devices.iter().cycle()) {
        if !pause(options, over) {
            return Ok(moves);
        }
        let failed = |error| format!("rank {rank}, move {number} to {device}: {error}");
        if let Some(name) = device.strip_prefix('!') {
            soft::set_port(name, false).map_err(failed)?;
            let goes_on = pause(options, over);
            soft::set_port(name, true).map_err(failed)?;
            moves.push(json!({"rank": rank, "device": device}));
            if !goes_on {
                return Ok(moves);
            }
            continue;
        }
        let moved = context.relocate(device).map_err(failed)?;
        moves.push(describe(rank, device, &moved));
    }
    Ok(moves)
}

/// False where it ended before its time.
fn pause(options: &Options, over: &AtomicBool) -> bool {
    let until = Instant::now() + options.pause;
    while Instant::now() < until {
        if over.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(STEP.min(options.pause));
    }
    true
}

fn describe(rank: u32, device: &str, moved: &Relocation) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let phases: Vec<_> =
        moved.phases.iter().map(|p| json!({"name": p.name, "ms": ms(p.took)})).collect();
    let blackout = ms(moved.blackout());
    json!({"rank": rank, "device": device, "blackout_ms": blackout, "phases": phases})
}

#[cfg(test)]
mod tests {
    use super::*;
    use sojourn::verbs::{Cause, Phase};

    #[test]
    fn a_move_is_told_with_its_phases() {
        let phase = |name, ms| Phase { name, took: Duration::from_millis(ms) };
        let moved = Relocation {
            from: "soft0".to_owned(),
            to: "soft1".to_owned(),
            cause: Cause::Asked,
            queue_pairs: 1,
            peers: 1,
            retries: 0,
            phases: vec![phase("prepare", 9), phase("quiesce", 2), phase("switch", 3)],
        };
        let told = describe(1, "soft1", &moved);
        assert_eq!(told["blackout_ms"], 5.0);
        assert_eq!(told["phases"][2], json!({"name": "switch", "ms": 3.0}));
    }
}
