//! The loop of the service thread: sleep, take commands, do IO, call back.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::answer::Answers;
use super::fetch::{Fetches, Io};
use super::{Command, Job, OnReady, Shared};
use crate::names::links::{Event, Links};
use crate::names::poller::Ready;
use crate::names::stream::PrivateDir;
use crate::names::timers::Timers;

pub(super) const WAKE: u64 = 0;
pub(super) const LINKS: u64 = 1;
pub(super) const DIRECTORY: u64 = 2;
pub(super) const FIRST_WATCH: u64 = 16;

struct Watched {
    call: OnReady,
    /// Keeps the descriptor open for as long as it may be called for.
    _fd: Arc<dyn AsFd + Send + Sync>,
}

/// Everything that lives on the thread. Fields are dropped in order: connections before the
/// directory that their sockets are in.
pub(super) struct Thread {
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    links: Links,
    answers: Answers,
    fetches: Fetches,
    later: Timers<Job>,
    watched: HashMap<u64, Watched>,
    _own_dir: Option<PrivateDir>,
}

impl Thread {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
        links: Links,
        answers: Answers,
        fetches: Fetches,
        own_dir: Option<PrivateDir>,
    ) -> Thread {
        Thread {
            shared,
            inbox,
            links,
            answers,
            fetches,
            later: Timers::new(),
            watched: HashMap::new(),
            _own_dir: own_dir,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.shared.wake.clear();
            // Descriptors first, commands second: who is called for a descriptor is a command
            // that was sent before the descriptor was watched.
            let ready = self.shared.poller.ready();
            let now = Instant::now();
            while let Ok(command) = self.inbox.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.command(command, now);
            }
            for (token, ready) in ready {
                self.ready(token, ready);
            }
            let deadline = self.drive(now);
            self.shared.poller.sleep(deadline);
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Fetch { peer, what, deadline, done } => {
                let io = Io { links: &mut self.links, answers: &mut self.answers, now };
                self.fetches.fetch(peer, what, deadline, done, io);
            }
            Command::Publish { name, note } => self.answers.publish(name, note, &mut self.links),
            Command::Withdraw { name } => self.answers.withdraw(&name),
            Command::Run(job) => job(),
            Command::Later(at, job) => {
                self.later.set(at, job);
            }
            Command::Watch { token, fd, call } => {
                self.watched.insert(token, Watched { call, _fd: fd });
            }
            Command::Unwatch { token } => {
                self.watched.remove(&token);
            }
            Command::Stop => {}
        }
    }

    fn ready(&mut self, token: u64, ready: Ready) {
        if let Some(watched) = self.watched.get_mut(&token) {
            (watched.call)(ready);
        }
    }

    /// Everything that can be done now. Returns when to come back at the latest.
    fn drive(&mut self, now: Instant) -> Option<Instant> {
        self.links.drive(now);
        loop {
            let mut idle = true;
            while let Some(event) = self.links.next_event() {
                idle = false;
                self.event(event, now);
            }
            let io = Io { links: &mut self.links, answers: &mut self.answers, now };
            idle &= !self.fetches.drive(io);
            self.answers.drive(now);
            if idle {
                break;
            }
        }
        while let Some(job) = self.later.expired(now) {
            job();
        }
        [
            self.links.next_deadline(),
            self.fetches.next_deadline(),
            self.answers.next_deadline(),
            self.later.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn event(&mut self, event: Event, now: Instant) {
        let link = match &event {
            Event::Opened(link) | Event::Message(link, _) | Event::Ended(link, _) => *link,
        };
        if self.fetches.owns(link) {
            let io = Io { links: &mut self.links, answers: &mut self.answers, now };
            self.fetches.event(event, io);
        } else {
            self.answers.event(event, &mut self.links, now);
        }
    }
}
