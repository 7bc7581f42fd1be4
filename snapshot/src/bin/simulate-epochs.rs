//! Runs the simulator of epochs: many seeds, or one of them again with its trace. [`command`] says how to call it.

use sojourn_logging::sim::command::{self, Arguments, Simulator};
use sojourn_snapshot::epoch::sim::Epochs;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Arguments::read(&[]) {
        Ok(given) => command::main::<Epochs>(&given),
        Err(why) => command::refused(Epochs::NAME, &why),
    }
}
