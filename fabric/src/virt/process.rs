//! A process as a member of its job: its names, the service that resolves those of others, and the
//! contexts that it opens.
//!
//! The shell around [`core`](super::core): it starts the control service, hands it what
//! this process publishes, and hands the core what the service fetches.

use super::core::{Answer, Core, Policy, Resolver};
use super::{Context, Restored};
use crate::device::{self, DeviceContext};
use crate::error::{Error, Result};
use crate::names::directory::LocalDirectory;
use crate::names::env::JobEnvironment;
use crate::names::{
    Done, Fetch, Grant, Handle, JobKey, Order, ProcessId, Record, Relocated, Service, ServiceConfig,
};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two questions how an order goes.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A member of a job. There is one per operating system process, except in tests.
///
/// It is in the job as long as this value lives. What was opened through it stays usable after that,
/// as far as the names of peers are known already.
pub struct Process {
    core: Core,
    service: Service,
}

impl Process {
    /// Joins the job that a launcher told of.
    ///
    /// # Errors
    /// Where the job key cannot be read or does not match, where the directory cannot be reached, or
    /// where a live process has this number.
    pub fn join(told: &JobEnvironment) -> Result<Self> {
        Self::start(told.service()?)
    }

    /// Joins a job by another way than a launcher's environment.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub fn start(config: ServiceConfig) -> Result<Self> {
        Self::member(config, false)
    }

    /// The one process of a job of its own. Whatever is not this process is foreign to it.
    ///
    /// # Errors
    /// Where no file descriptor is left.
    pub fn standalone() -> Result<Self> {
        let key = JobKey::generate()?;
        let directory = LocalDirectory::new(key.job_id())?;
        Self::member(ServiceConfig::new(Box::new(directory), key), true)
    }

    fn member(config: ServiceConfig, alone: bool) -> Result<Self> {
        let core = Core::new();
        let service = Service::start(config, core.owner())?;
        core.joined(Arc::new(Member { service: Handle::clone(&service), alone }));
        Ok(Process { core, service })
    }

    /// Who this process is in its job.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        self.service.grant()
    }

    /// Opens virtual verbs over the device of that name.
    ///
    /// # Errors
    /// As [`device::open`], and [`Self::open_over`].
    pub fn open(&self, device: &str) -> Result<Context> {
        self.open_over(device::open(device)?)
    }

    /// Opens virtual verbs over a device that is open already.
    ///
    /// # Errors
    /// `EMFILE` where no file descriptor is left, `EINVAL` where an environment variable of
    /// [`Policy`] makes no sense.
    pub fn open_over(&self, device: Arc<dyn DeviceContext>) -> Result<Context> {
        self.open_with(device, Policy::from_env()?)
    }

    /// The same with a policy of the caller's, whatever the environment says.
    ///
    /// # Errors
    /// `EMFILE` where no file descriptor is left.
    pub fn open_with(&self, device: Arc<dyn DeviceContext>, policy: Policy) -> Result<Context> {
        Ok(Context::over(self.core.open_over(device, policy)?))
    }

    /// Makes a context anew that [`Suspension::capture`](super::Suspension::capture) has written down, over a device that is open already:
    /// this one, or any other. Nothing of what was captured may be there any more in this process; it is
    /// the process that was captured, or a later incarnation of it, which has joined under the same
    /// number.
    ///
    /// The memory of every region ([`captured_regions`](super::captured_regions) tells which) is to be as it
    /// was at the capture, at the same addresses, before this is called: what had been posted then begins
    /// to be executed during the call. When it returns, everything is as it was for the program: names,
    /// states, posted receives; completions that it had not taken come first.
    ///
    /// # Safety
    /// - The memory of each region is mapped as long as the region is registered, is nobody else's, and is
    ///   accessed with atomics alone by whoever does not know that no request reaches it.
    /// - Whoever takes a region out of [`Restored`] becomes the owner of its mapping.
    /// - What was made for one thread ([`Context::create_cq_single_threaded`] and the like) is used by one
    ///   thread at a time, as was promised then.
    ///
    /// # Errors
    /// Nothing was executed then, and what had been made is gone.
    /// - `EINVAL`: the bytes are damaged, or of another process; or the device is too small: the message
    ///   names the limit and the need;
    /// - `EOPNOTSUPP`: they are of another version, or the policy keeps what is sent;
    /// - `EFAULT`: the memory of a region is not there: the message names it;
    /// - `EEXIST`: a name is in use;
    /// - whatever the device answers.
    pub unsafe fn restore(
        &self,
        device: Arc<dyn DeviceContext>,
        policy: Policy,
        bytes: &[u8],
    ) -> Result<Restored> {
        // SAFETY: the caller's promise.
        Ok(Restored::over(unsafe { self.core.restore_over(device, policy, bytes) }?))
    }

    /// Leaves a note under a name, for other processes of the job to fetch.
    ///
    /// # Errors
    /// Where the name or the note is longer than a note may be.
    pub fn publish(&self, name: &str, note: &[u8]) -> Result<()> {
        Ok(self.service.publish_note(name, note)?)
    }

    /// Takes a note back: who fetches it from now on waits for another of that name.
    pub fn withdraw(&self, name: &str) {
        self.service.withdraw_note(name);
    }

    /// Tells `peer` to take all its contexts to the device of that name, and waits until it has.
    ///
    /// # Errors
    /// Whatever keeps it from that (then it is where it was, and goes on); `EHOSTUNREACH` where it has
    /// died; `ETIMEDOUT` where it has not said until `deadline` that it has done so.
    pub fn order(
        &self,
        peer: ProcessId,
        device: &str,
        deadline: Instant,
    ) -> Result<Vec<Relocated>> {
        let ticket = RandomState::new().hash_one(device);
        loop {
            let what = Fetch::Relocate { ticket, device: device.to_owned() };
            match self.service.fetch_wait(peer, what, deadline)? {
                Record::Order(Order::Done(moves)) => return Ok(moves),
                Record::Order(Order::Failed(why)) => {
                    return Err(Error::new(libc::ECANCELED, format!("{peer}: {why}")));
                }
                Record::Order(Order::UnderWay) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Record::Order(Order::UnderWay) => {
                    let text = format!("{peer} has not come to {device} yet, and is still at it");
                    return Err(Error::new(libc::ETIMEDOUT, text));
                }
                _ => {
                    let text =
                        format!("{peer} answered something else than how it goes to {device}");
                    return Err(Error::new(libc::EPROTO, text));
                }
            }
        }
    }

    /// The note that `peer` has published under that name, or publishes before `deadline`.
    ///
    /// # Errors
    /// `ETIMEDOUT` where none came; `EHOSTUNREACH` at once where the peer has died.
    pub fn fetch(&self, peer: ProcessId, name: &str, deadline: Instant) -> Result<Vec<u8>> {
        match self.service.fetch_wait(peer, Fetch::Note(name.to_owned()), deadline) {
            Ok(Record::Note(note)) => Ok(note),
            Ok(_) => Err(Error::new(
                libc::EPROTO,
                format!("{peer} answered with something else than the note {name:?}"),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

/// The core's way to the service.
struct Member {
    service: Handle,
    alone: bool,
}

impl Resolver for Member {
    fn grant(&self) -> Grant {
        *self.service.grant()
    }

    fn alone(&self) -> bool {
        self.alone
    }

    fn fetch(&self, peer: ProcessId, what: Fetch, deadline: Instant, done: Done) {
        self.service.fetch(peer, what, deadline, done);
    }

    fn fetch_wait(&self, peer: ProcessId, what: Fetch, deadline: Instant) -> Answer {
        self.service.fetch_wait(peer, what, deadline)
    }

    fn run_later(&self, at: Instant, job: Box<dyn FnOnce() + Send>) {
        self.service.run_later(at, job);
    }

    fn run_soon(&self, job: Box<dyn FnOnce() + Send>) {
        self.service.run(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a program that no launcher started is a job of one, and has names all the same.
    #[test]
    fn a_process_alone_has_names() {
        let process = Process::standalone().unwrap();
        assert_eq!(process.grant().process, ProcessId(1));
        process.publish("a", b"note").unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        assert_eq!(process.fetch(ProcessId(1), "a", deadline).unwrap(), b"note");
        let error = process.open("no-such-device").err().unwrap();
        assert!(error.to_string().contains("\"no-such-device\" not found"), "{error}");
    }
}
