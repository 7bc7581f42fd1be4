//! Byte streams over verbs: [`Read`] and [`Write`] over SEND and RECV with credits, as rsockets
//! do it, for programs and libraries that expect a socket.
//!
//! A [`VerbsStream`] promises what a TCP connection does: bytes arrive once, in order and intact;
//! a peer that reads nothing holds the writer back; [`VerbsStream::shutdown`] ends one half, and
//! the peer reads to its end; a peer that dies is an error ([`io::ErrorKind::ConnectionReset`]
//! for readers, [`io::ErrorKind::BrokenPipe`] for writers) that names the status of the work
//! request which failed. Clones share the stream, and a reader and a writer work at once.
//!
//! What differs from TCP:
//! - Every [`Write::write`] is one message, handed to the device before the call returns; so wrap
//!   writers of small pieces in a [`std::io::BufWriter`], as with a socket.
//! - No thread works behind the program's back: what a peer that waits for credits needs is
//!   done inside calls on the stream (a blocked read does). And a process that ends without
//!   dropping its streams has reset them.
//!
//! It runs over any [`Context`]: virtual verbs normally, a raw device for measuring.
//!
//! | file | what it is |
//! | --- | --- |
//! | `protocol` | credits, framing and half-close, without IO |
//! | `hello` | what the two sides tell each other first |
//! | `connect` | from a context to a connected stream |
//! | `mesh` | streams between the ranks of a job |
//! | `connection` | the verbs objects, and the threads that wait on them |

mod connect;
mod connection;
mod hello;
mod mesh;
mod protocol;

pub use connect::{StreamOptions, Unconnected};
pub use hello::HELLO_BYTES;

use connection::Connection;
use sojourn_fabric::virt::Context;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// A connected byte stream.
///
/// Dropping the last clone ends the stream as [`Self::shutdown`] does, and waits for the peer's
/// device to take what was written, a few seconds at most.
#[derive(Clone)]
pub struct VerbsStream {
    connection: Arc<Connection>,
}

impl VerbsStream {
    /// Connects with whoever does the same at the other end of `bootstrap`, over which the two
    /// sides introduce themselves. It blocks as long as `bootstrap` does.
    ///
    /// # Errors
    /// Those of `bootstrap`, a peer that speaks something else, and what verbs refuse.
    pub fn over(
        context: &Context,
        bootstrap: &mut (impl Read + Write),
        options: &StreamOptions,
    ) -> io::Result<Self> {
        let unconnected = Unconnected::new(context, options)?;
        connect::over(unconnected, bootstrap)
    }

    /// Another handle to the same stream.
    ///
    /// # Errors
    /// None today; the form is that of `TcpStream`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    /// Ends one half or both. After [`Shutdown::Write`] the peer reads what was written, and then
    /// its end. It waits until the peer has room for this message, as a write does.
    ///
    /// # Errors
    /// As [`Write::write`].
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.connection.shutdown_read();
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.connection.shutdown_write()?;
        }
        Ok(())
    }

    /// Whether calls that would have to wait return [`io::ErrorKind::WouldBlock`] instead. After
    /// that error [`AsFd::as_fd`] becomes readable when the call should be tried again.
    ///
    /// # Errors
    /// None today; the form is that of `TcpStream`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.connection.lock().nonblocking = nonblocking;
        Ok(())
    }

    /// How long a read waits at most before it fails with [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a wait of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.connection.lock().read_timeout = positive(timeout)?;
        Ok(())
    }

    /// How long a write waits at most before it fails with [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a wait of zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.connection.lock().write_timeout = positive(timeout)?;
        Ok(())
    }

    /// Why the connection is over, where something broke it.
    #[must_use]
    pub fn failure(&self) -> Option<io::Error> {
        self.connection.failure()
    }

    /// The most bytes that one [`Write::write`] takes.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        self.connection.message_bytes
    }
}

fn positive(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    match timeout {
        Some(Duration::ZERO) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a timeout of zero; use None for none"))
        }
        other => Ok(other),
    }
}

impl Read for &VerbsStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.connection.read(into)
    }
}

impl Write for &VerbsStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.connection.write(&[from])
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts: Vec<&[u8]> = from.iter().map(|slice| &**slice).collect();
        self.connection.write(&parts)
    }

    /// Does nothing: what was written is with the device already.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for VerbsStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
}

impl Write for VerbsStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&*self).write(from)
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for VerbsStream {
    /// To be polled for reading in non-blocking mode ([`VerbsStream::set_nonblocking`]).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }
}

impl std::fmt::Debug for VerbsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerbsStream(queue pair {:#x})", self.connection.qp.qp_num())
    }
}
