//! What carries the words between the two sides of a case.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

/// Most bytes in one frame. What cases say is small: keys, numbers, a sentence.
pub const MAX_FRAME: usize = 8 * 1024;

/// A connection between two sides that keeps frames whole and in order.
///
/// A link is trusted to come from the other side (who connects it authenticates it); what it
/// carries is checked all the same, since the other side may be of another version.
pub trait Link: Send {
    /// Sends one frame of at most [`MAX_FRAME`] bytes.
    ///
    /// # Errors
    /// When the other side is gone, or does not take the frame within the link's own deadline.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// The next frame, or `None` when none comes before `until`.
    ///
    /// # Errors
    /// When the other side is gone, or sent a frame that is too long.
    fn recv(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>>;
}

/// Two ends of a link inside this process.
#[must_use]
pub fn pair() -> (impl Link + use<>, impl Link + use<>) {
    let (to_b, from_a) = channel();
    let (to_a, from_b) = channel();
    (End { to: to_b, from: from_b }, End { to: to_a, from: from_a })
}

struct End {
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
}

impl Link for End {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.to.send(frame.to_vec()).map_err(|_| gone())
    }

    fn recv(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(frame) => Ok(Some(frame)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the other side of the link is gone")
}
