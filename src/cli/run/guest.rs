//! A launcher that joins another's job finds out whether it can, before it starts anything.

use crate::cli::{Failure, Outcome, While};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sojourn_fabric::names::directory::{Answer, Client, Directory};
use sojourn_fabric::names::{Address, Endpoint, Error, HANDSHAKE_TIME, JobKey, MachineId};
use std::time::{Duration, Instant};

/// How long the launcher that hosts the directory may come later than this one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(200);

/// Returns when the directory at `place` has let us in with this key.
pub(super) fn check(place: &Endpoint, key: &JobKey) -> Outcome {
    let give_up = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match knock(place, key)? {
            Ok(()) => return Ok(()),
            // Nobody is there; anything else will not change.
            Err(Error::Directory { .. }) if Instant::now() < give_up => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("sojourn: waiting for the directory at {place}");
                }
                std::thread::sleep(RETRY);
            }
            Err(error) => return Err(Failure::new(error.to_string())),
        }
    }
}

/// Joins as one that is no rank, and leaves again.
fn knock(place: &Endpoint, key: &JobKey) -> Outcome<Result<(), Error>> {
    let mut client = match Client::new(place.clone(), key.clone(), HANDSHAKE_TIME) {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    // Nobody looks for a launcher.
    let uid = nix::unistd::geteuid().as_raw();
    let nowhere = Address { machine: MachineId([0; 16]), uid, unix: None, tcp: Vec::new() };
    client.join(None, nowhere, Instant::now());
    let give_up = Instant::now() + HANDSHAKE_TIME;
    loop {
        client.drive(Instant::now());
        if let Some(Answer::Joined(joined)) = client.next_answer() {
            return Ok(joined.map(drop));
        }
        let now = Instant::now();
        if now >= give_up {
            return Err(Failure::new(format!(
                "the directory at {place} does not answer (waited {} s)",
                HANDSHAKE_TIME.as_secs()
            )));
        }
        let until = client.next_deadline().map_or(give_up, |at| at.min(give_up));
        // Rounded up, so as not to wake before it is time.
        let left = until.saturating_duration_since(now) + Duration::from_micros(999);
        let mut fds = [PollFd::new(client.fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => Err(errno).doing("waiting for the directory")?,
        }
    }
}
