//! Relocating the device of this process while its messages travel.
//!
//! The mover is a thread of its own; everything else goes on meanwhile. The one call that moves is
//! [`relocate`].

use crate::options::Options;
use serde_json::{Value, json};
use sojourn::verbs::Context;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps of a pause: a mover that is to end does not sleep longer.
const STEP: Duration = Duration::from_millis(5);

/// One step of a move.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) took: Duration,
}

/// What a move came to.
#[derive(Clone, Debug)]
pub(crate) struct Relocation {
    pub(crate) phases: Vec<Phase>,
}

impl Relocation {
    /// The time in which nothing could travel.
    pub(crate) fn blackout(&self) -> Duration {
        self.phases.iter().map(|phase| phase.took).sum()
    }
}

/// Whether so many moves can be made at all; asked before anything begins.
pub(crate) fn supported(moves: u32) -> Result<(), String> {
    if moves == 0 {
        return Ok(());
    }
    Err(format!(
        "--moves {moves}: this build of sojourn cannot relocate a device yet; use --moves 0"
    ))
}

/// Puts everything that `context` has onto the device `device`.
fn relocate(_context: &Context, device: &str) -> Result<Relocation, sojourn::Error> {
    Err(sojourn::Error::unsupported(format!(
        "relocating to {device}: this build of sojourn cannot relocate a device"
    )))
}

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
        let until = Instant::now() + options.pause;
        while Instant::now() < until {
            if over.load(Ordering::Relaxed) {
                return Ok(moves);
            }
            std::thread::sleep(STEP.min(options.pause));
        }
        let moved = relocate(context, device)
            .map_err(|error| format!("rank {rank}, move {number} to {device}: {error}"))?;
        moves.push(describe(rank, device, &moved));
    }
    Ok(moves)
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

    #[test]
    fn a_move_is_told_with_its_phases() {
        let phase = |name, ms| Phase { name, took: Duration::from_millis(ms) };
        let moved = Relocation { phases: vec![phase("suspend", 2), phase("attach", 3)] };
        let told = describe(1, "soft1", &moved);
        assert_eq!(told["blackout_ms"], 5.0);
        assert_eq!(told["phases"][1], json!({"name": "attach", "ms": 3.0}));
    }

    #[test]
    fn moves_are_refused_before_anything_begins() {
        assert!(supported(0).is_ok());
        assert!(supported(2).unwrap_err().contains("--moves 2"));
    }
}
