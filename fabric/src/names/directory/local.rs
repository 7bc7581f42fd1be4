//! A directory inside one process, for programs that no launcher started.
//!
//! The same state machine as the server's, behind a mutex. Handles of one directory may belong to
//! several services (several threads) of the process; each wakes the others.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::state::State;
use super::{Answer, Directory, denied, found};
use crate::names::error::Error;
use crate::names::message::{self, FromDirectory, ToDirectory};
use crate::names::poller::Wake;
use crate::names::types::{Address, JobId, ProcessId};

struct Shared {
    state: State<u64>,
    next_handle: u64,
    inboxes: HashMap<u64, Inbox>,
}

struct Inbox {
    wake: Arc<Wake>,
    replies: VecDeque<FromDirectory>,
}

impl Shared {
    /// Puts what the state machine has to say where each handle finds it.
    fn deliver(&mut self) {
        while let Some((to, reply)) = self.state.next_reply() {
            if let Some(inbox) = self.inboxes.get_mut(&to) {
                inbox.replies.push_back(reply);
                inbox.wake.wake();
            }
        }
    }
}

/// A handle of a directory that lives in this process. [`another`](Self::another) makes more.
pub struct LocalDirectory {
    shared: Arc<Mutex<Shared>>,
    handle: u64,
    wake: Arc<Wake>,
    lookups: HashMap<u32, ProcessId>,
    next_lookup: u32,
    answers: VecDeque<Answer>,
}

const PLACE: &str = "(in this process)";

impl LocalDirectory {
    /// A new, empty directory.
    pub fn new(job: JobId) -> Result<LocalDirectory, Error> {
        let shared = Shared { state: State::new(job, 0), next_handle: 0, inboxes: HashMap::new() };
        LocalDirectory::attach(Arc::new(Mutex::new(shared)))
    }

    /// Another handle of the same directory, for another member.
    pub fn another(&self) -> Result<LocalDirectory, Error> {
        LocalDirectory::attach(self.shared.clone())
    }

    fn attach(shared: Arc<Mutex<Shared>>) -> Result<LocalDirectory, Error> {
        let wake = Arc::new(Wake::new()?);
        let mut locked = lock(&shared);
        let handle = locked.next_handle;
        locked.next_handle += 1;
        locked.inboxes.insert(handle, Inbox { wake: wake.clone(), replies: VecDeque::new() });
        locked.state.handle_opened(handle);
        drop(locked);
        Ok(LocalDirectory {
            shared,
            handle,
            wake,
            lookups: HashMap::new(),
            next_lookup: 0,
            answers: VecDeque::new(),
        })
    }

    fn request(&self, request: ToDirectory, now: Instant) {
        let mut shared = lock(&self.shared);
        shared.state.handle_request(self.handle, request, now);
        shared.deliver();
    }
}

/// The state machine does not panic half-way; a handle that panicked elsewhere spoils nothing.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Directory for LocalDirectory {
    fn place(&self) -> String {
        PLACE.into()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn join(&mut self, wanted: Option<ProcessId>, address: Address, now: Instant) {
        self.request(ToDirectory::Join { wanted, address }, now);
    }

    fn lookup(&mut self, process: ProcessId, until: Option<Instant>, now: Instant) {
        let id = self.next_lookup;
        self.next_lookup = self.next_lookup.wrapping_add(1);
        self.lookups.insert(id, process);
        let wait_ms = until.map_or(0, |at| message::wait_ms(at, now));
        self.request(ToDirectory::Lookup { id, process, wait_ms }, now);
    }

    fn drive(&mut self, now: Instant) {
        self.wake.clear();
        let mut shared = lock(&self.shared);
        shared.state.handle_time(now);
        shared.deliver();
        let replies = match shared.inboxes.get_mut(&self.handle) {
            Some(inbox) => std::mem::take(&mut inbox.replies),
            None => VecDeque::new(),
        };
        drop(shared);
        for reply in replies {
            let answer = match reply {
                FromDirectory::Granted(grant) => Answer::Joined(Ok(grant)),
                FromDirectory::Denied(denial) => Answer::Joined(Err(denied(denial, PLACE))),
                FromDirectory::Place { id, place } => match self.lookups.remove(&id) {
                    Some(process) => found(process, place, PLACE),
                    None => continue,
                },
            };
            self.answers.push_back(answer);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        lock(&self.shared).state.next_deadline()
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

impl Drop for LocalDirectory {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.inboxes.remove(&self.handle);
        shared.state.handle_closed(self.handle);
    }
}
