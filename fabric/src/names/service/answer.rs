//! What this process answers: its owner's records, and notes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Owner;
use crate::names::links::{Event, LinkId, Links};
use crate::names::message::{self, Answer, Checked, Peer};
use crate::names::timers::{TimerKey, Timers};
use crate::names::types::{Asker, Fetch, Grant, ProcessId, Record};

/// Most requests of one peer that wait for notes. Bounds what publishing can make us send at once.
pub(super) const MAX_WAITING: usize = 256;

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Who {
    /// A peer, by its connection and the number of its request.
    Peer(LinkId, u32),
    /// This process itself, by the number of its fetch.
    Me(u32),
}

struct Connected {
    /// Known once it has introduced itself.
    process: Option<ProcessId>,
    waiting: usize,
}

/// The answering half of the service.
pub(super) struct Answers {
    me: Grant,
    owner: Arc<dyn Owner>,
    peers: HashMap<LinkId, Connected>,
    notes: HashMap<String, Vec<u8>>,
    waiting: HashMap<String, HashMap<Who, TimerKey>>,
    timers: Timers<(String, Who)>,
    /// Notes that this process itself has waited for.
    mine: Vec<(u32, Record)>,
}

impl Answers {
    pub(super) fn new(me: Grant, owner: Arc<dyn Owner>) -> Answers {
        Answers {
            me,
            owner,
            peers: HashMap::new(),
            notes: HashMap::new(),
            waiting: HashMap::new(),
            timers: Timers::new(),
            mine: vec![],
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Forgets those who wait no longer. They know it themselves.
    pub(super) fn drive(&mut self, now: Instant) {
        while let Some((name, who)) = self.timers.expired(now) {
            self.stop_waiting(&name, who);
        }
    }

    /// Answers of this process to itself that had to wait.
    pub(super) fn take_mine(&mut self) -> Vec<(u32, Record)> {
        std::mem::take(&mut self.mine)
    }

    pub(super) fn publish(&mut self, name: String, note: Vec<u8>, links: &mut Links) {
        for (who, timer) in self.waiting.remove(&name).unwrap_or_default() {
            self.timers.cancel(timer);
            let record = Record::Note(note.clone());
            match who {
                Who::Me(id) => self.mine.push((id, record)),
                Who::Peer(link, id) => {
                    if let Some(peer) = self.peers.get_mut(&link) {
                        peer.waiting -= 1;
                    }
                    let answer = Answer::Record(record);
                    links.send(link, &message::encode(&Peer::Answer { id, answer }));
                }
            }
        }
        self.notes.insert(name, note);
    }

    /// Nobody gets that note any more.
    pub(super) fn withdraw(&mut self, name: &str) {
        self.notes.remove(name);
    }

    /// Something happened on a connection that a peer made.
    pub(super) fn event(&mut self, event: Event, links: &mut Links, now: Instant) {
        match event {
            Event::Opened(link) => {
                self.peers.insert(link, Connected { process: None, waiting: 0 });
            }
            Event::Message(link, bytes) => {
                if let Err(why) = self.message(link, &bytes, links, now) {
                    warn!("a peer is dropped: {why}");
                    links.close(link);
                    self.forget(link);
                }
            }
            Event::Ended(link, why) => {
                debug!("a peer has hung up: {why}");
                self.forget(link);
            }
        }
    }

    fn message(
        &mut self,
        link: LinkId,
        bytes: &[u8],
        links: &mut Links,
        now: Instant,
    ) -> Result<(), String> {
        let message = message::decode::<Peer>(bytes).map_err(|e| e.to_string())?;
        let Some(peer) = self.peers.get_mut(&link) else { return Ok(()) };
        let reply = match (peer.process, message) {
            (None, Peer::Hello { process }) => {
                peer.process = Some(process);
                let Grant { process, incarnation, .. } = self.me;
                Some(Peer::Welcome { process, incarnation })
            }
            (Some(asker), Peer::Ask { id, wait_ms, what }) => {
                let until = now + Duration::from_millis(wait_ms.into());
                self.answer(asker, Who::Peer(link, id), &what, until)
                    .map(|answer| Peer::Answer { id, answer })
            }
            (None, _) => return Err("it did not introduce itself".into()),
            (Some(process), _) => return Err(format!("{process} sent a message out of turn")),
        };
        if let Some(reply) = reply {
            links.send(link, &message::encode(&reply));
        }
        Ok(())
    }

    /// The answer, or `None` when a note has to be waited for.
    pub(super) fn answer(
        &mut self,
        asker: ProcessId,
        who: Who,
        what: &Fetch,
        until: Instant,
    ) -> Option<Answer> {
        let record = match what {
            Fetch::Qpn { qpn, own_qpn, own_end } => {
                // Names are derived and not taken from the message: a peer can't lend itself
                // those of another.
                let asker = Asker {
                    process: asker,
                    lid: asker.lid(),
                    gid: asker.gid(self.me.job),
                    qpn: *own_qpn,
                    physical: *own_end,
                };
                self.owner.qpn(&asker, *qpn).map(Record::Qpn)
            }
            Fetch::Key(key) => {
                self.owner.key(asker, *key).filter(|r| r.check().is_ok()).map(Record::Key)
            }
            Fetch::Remap(group, request) => {
                Some(Record::Remap(self.owner.remap(asker, *group, request)))
            }
            Fetch::Moved(qps) => {
                qps.iter().for_each(|(qpn, end)| self.owner.moved(asker, *qpn, end));
                Some(Record::Noted)
            }
            Fetch::Committed { serial, covers } => {
                self.owner.committed(asker, *serial, covers);
                Some(Record::Noted)
            }
            Fetch::Written { report, part } => {
                Some(Record::Written(self.owner.written(asker, *report, *part)))
            }
            Fetch::WrittenSaved { report } => {
                self.owner.written_saved(asker, *report);
                Some(Record::Noted)
            }
            Fetch::Relocate { ticket, device } => {
                Some(Record::Order(self.owner.relocate(*ticket, device)))
            }
            Fetch::Note(name) => match self.notes.get(name) {
                Some(note) => Some(Record::Note(note.clone())),
                None => return self.wait(name, who, until),
            },
        };
        Some(record.map_or(Answer::Unknown, Answer::Record))
    }

    fn wait(&mut self, name: &str, who: Who, until: Instant) -> Option<Answer> {
        if let Who::Peer(link, _) = who {
            let peer = self.peers.get_mut(&link)?;
            if peer.waiting >= MAX_WAITING {
                return Some(Answer::Busy);
            }
            peer.waiting += 1;
        }
        let timer = self.timers.set(until, (name.into(), who));
        let waiting = self.waiting.entry(name.into()).or_default();
        if let Some(twice) = waiting.insert(who, timer) {
            // The same request number again: one wait, one answer.
            self.timers.cancel(twice);
            if let Who::Peer(link, _) = who
                && let Some(peer) = self.peers.get_mut(&link)
            {
                peer.waiting -= 1;
            }
        }
        None
    }

    fn stop_waiting(&mut self, name: &str, who: Who) {
        let Some(waiting) = self.waiting.get_mut(name) else { return };
        if let Some(timer) = waiting.remove(&who) {
            self.timers.cancel(timer);
            if let Who::Peer(link, _) = who
                && let Some(peer) = self.peers.get_mut(&link)
            {
                peer.waiting -= 1;
            }
        }
        if waiting.is_empty() {
            self.waiting.remove(name);
        }
    }

    fn forget(&mut self, link: LinkId) {
        let Some(peer) = self.peers.remove(&link) else { return };
        if peer.waiting == 0 {
            return;
        }
        let timers = &mut self.timers;
        self.waiting.retain(|_, waiting| {
            waiting.retain(|who, timer| {
                let gone = matches!(who, Who::Peer(of, _) if *of == link);
                if gone {
                    timers.cancel(*timer);
                }
                !gone
            });
            !waiting.is_empty()
        });
    }
}
