//! What is kept of messages until the receiver has a committed epoch that covers them, so that one
//! process that has failed can be replayed alone.
//!
//! A [`Log`] knows neither memory nor files: it is given lengths, deals places in a ring and in a spill
//! file, and says what is to be copied from the one to the other. Its shell is `virt::core::retain` of
//! `sojourn-fabric`, which holds it under a lock and does the copying outside of that.
//!
//! # Life of a record
//!
//! ```text
//!           append            filled          next_to_spill         spilled
//! (message) ──────▶ filling ─────────▶ kept ─────────────▶ spilling ────────▶ in the file
//!              │ no room                 │ cover, or dropped  │                   │
//!              ├─ append_to_file ─▶ writing ── written ─▶ in the file ────────────┤
//!              └─ miss ─▶ not kept       ▼                    ▼                   ▼
//!                                       gone                 gone                gone
//! ```
//!
//! # What it promises
//!
//! - A record is kept, whole, until an epoch of the peer covers it, or until the retention of its
//!   connection is dropped, which is told ([`Log::take_dropped`]) and can be seen ([`Status::gap`]).
//! - Nobody waits for an epoch: where the ring is full the oldest records are to be spilled; where there
//!   is no spill, the connection to which the oldest one belongs loses its retention. It keeps messages
//!   again from the next epoch on.
//! - A place in the ring is dealt again only when no record has its payload there, nobody copies into it or
//!   out of it, and no device can be reading it: places are *pinned* by the window's sequence of the
//!   request that is sent from them.
//!
//! # What a count covers
//!
//! An epoch tells how many messages it has consumed of a connection: SENDs, and WRITEs with immediate
//! data. They execute in order, so everything up to the last one of them is covered, the plain WRITEs
//! among them too. Those behind it stay until the next epoch.
//!
//! # Lives of a connection
//!
//! Counts begin with a connection, and a queue pair may be reset and connected again, to the same peer too. Each
//! time it is another connection here. What the peer says is of the last one; that its own queue pair
//! is gone, of the first that it has not said this of.

mod arena;
mod connection;
mod file;
#[cfg(test)]
mod tests;

pub use connection::{Gap, Lost, Message, Place, Record, Status};

use arena::{Arena, Span, Stage, Stays};
use connection::{Connection, Held, Kept};
use file::FilePlaces;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// Connections without records whose queue pair is gone that are remembered for the sake of what the peer
/// may still say of them; of more the oldest are forgotten.
const MAX_ENDED: usize = 1 << 16;
/// Bytes of the ring for each record that may be kept: what is known of a message takes about as much of
/// the heap, spilled or not.
const BYTES_PER_RECORD: u64 = 64;
/// Least number of records that may be kept, however small the ring.
const MIN_RECORDS: u64 = 1024;
/// Records that one call of [`Log::cover`] lets go, for those who wait for the lock meanwhile.
pub const COVER_AT_ONCE: usize = 512;

/// A connection, by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deal {
    /// It is kept, and has no payload.
    Kept,
    /// Its payload is to be copied to `at` of the ring; then [`Log::filled`].
    Ring {
        /// What [`Log::filled`] is told.
        span: u64,
        /// Offset in the ring.
        at: u64,
    },
    /// It is not kept.
    Not,
}

/// Why a message was not taken. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Records have to be spilled first.
    Spill,
    /// Spilling does not help: it is longer than the ring, or somebody is at the oldest place.
    Stuck,
}

/// A payload that is to be copied from the ring to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    connection: u64,
    number: u64,
    span: u64,
    /// Offset in the ring.
    pub from: u64,
    /// Offset in the file.
    pub to: u64,
    /// Bytes.
    pub length: u64,
}

/// A connection whose retention was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Our queue pair.
    pub qpn: u32,
    /// The process that it is connected to.
    pub peer: u32,
    /// Why.
    pub why: Lost,
}

/// A peer tells of more than was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// What it says that it has consumed.
    pub told: u64,
    /// What was posted.
    pub posted: u64,
}

/// Peer, its queue pair, ours.
type Name = (u32, u32, u32);

/// The log.
pub struct Log {
    ring: Arena,
    file: Option<FilePlaces>,
    /// By number, from `first` on; those that are gone leave a hole.
    connections: VecDeque<Option<Box<Connection>>>,
    first: u64,
    /// Those of a name, oldest first.
    names: HashMap<Name, VecDeque<u64>>,
    records: u64,
    max_records: u64,
    ended: VecDeque<u64>,
    dropped: Vec<Dropped>,
}

impl Log {
    /// A log over a ring of so many bytes, with or without a file to spill to.
    #[must_use]
    pub fn new(bytes: u64, spills: bool) -> Self {
        let ring = Arena::new(bytes);
        Log {
            max_records: (ring.capacity() / BYTES_PER_RECORD).max(MIN_RECORDS),
            ring,
            file: spills.then(FilePlaces::default),
            connections: VecDeque::new(),
            first: 0,
            names: HashMap::new(),
            records: 0,
            ended: VecDeque::new(),
            dropped: Vec::new(),
        }
    }

    fn get(&self, id: u64) -> Option<&Connection> {
        self.connections.get(usize::try_from(id.checked_sub(self.first)?).ok()?)?.as_deref()
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut Connection> {
        let at = usize::try_from(id.checked_sub(self.first)?).ok()?;
        self.connections.get_mut(at)?.as_deref_mut()
    }

    /// A connection of our queue pair `qpn` begins.
    pub fn open(&mut self, qpn: u32, peer: u32, peer_qpn: u32) -> ConnectionId {
        let id = self.first + self.connections.len() as u64;
        self.connections.push_back(Some(Box::new(Connection::new(qpn, peer, peer_qpn))));
        self.names.entry((peer, peer_qpn, qpn)).or_default().push_back(id);
        ConnectionId(id)
    }

    /// Our queue pair has been reset or destroyed; no device reads for it any more. What it has sent
    /// stays until the peer says what it has made of it.
    pub fn end(&mut self, id: ConnectionId) {
        let Some(connection) = self.get_mut(id.0) else { return };
        connection.status.ended = true;
        self.ended.push_back(id.0);
        while self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            if self.get(oldest).is_some_and(|it| it.kept.is_empty()) {
                self.remove(oldest);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(connection) = self.get(id) else { return };
        let Status { qpn, peer, peer_qpn, .. } = connection.status;
        let name = (peer, peer_qpn, qpn);
        if let Some(same) = self.names.get_mut(&name) {
            same.retain(|it| *it != id);
            if same.is_empty() {
                self.names.remove(&name);
            }
        }
        self.connections[(id - self.first) as usize] = None;
        while matches!(self.connections.front(), Some(None)) {
            self.connections.pop_front();
            self.first += 1;
        }
    }

    /// A message is being posted. With `pin` its request is sent from the ring, and is the one of that
    /// sequence in the window; `retired` tells how many requests of a connection's window have retired
    /// (all, where the queue pair is gone).
    ///
    /// # Errors
    /// [`Full`], where there is no room right now.
    pub fn append(
        &mut self,
        id: ConnectionId,
        message: Message,
        pin: Option<u64>,
        retired: &impl Fn(ConnectionId) -> u64,
    ) -> Result<Deal, Full> {
        let Some(connection) = self.get_mut(id.0) else { return Ok(Deal::Not) };
        let number = connection.status.messages;
        if let Some(why) = connection.dropped {
            // The gap grows.
            self.miss(id, message, why);
            return Ok(Deal::Not);
        }
        if self.records >= self.max_records {
            self.drop_retention(id.0, Lost::TooMany);
            self.miss(id, message, Lost::TooMany);
            return Ok(Deal::Not);
        }
        if message.length == 0 {
            self.push(id, message, Held::Nowhere);
            return Ok(Deal::Kept);
        }
        loop {
            if let Some((span, at)) = self.ring.take(message.length, id.0, number, pin) {
                self.push(id, message, Held::Ring(span));
                return Ok(Deal::Ring { span, at });
            }
            if message.length > self.ring.capacity() {
                return self.no_room(id, message, Full::Stuck);
            }
            match self.ring.give_back(&|owner| retired(ConnectionId(owner))) {
                Ok(true) => {}
                Ok(false) | Err(Stays::InUse) => return self.no_room(id, message, Full::Stuck),
                Err(Stays::Spilling) => return Err(Full::Spill),
                Err(Stays::Live(_)) if self.file.is_some() => return Err(Full::Spill),
                Err(Stays::Live(owner)) => {
                    self.drop_retention(owner, Lost::Full);
                    if owner == id.0 {
                        self.miss(id, message, Lost::Full);
                        return Ok(Deal::Not);
                    }
                }
            }
        }
    }

    fn no_room(&mut self, id: ConnectionId, message: Message, why: Full) -> Result<Deal, Full> {
        if self.file.is_some() {
            return Err(why);
        }
        self.drop_retention(id.0, Lost::Full);
        self.miss(id, message, Lost::Full);
        Ok(Deal::Not)
    }

    fn push(&mut self, id: ConnectionId, message: Message, held: Held) {
        if let Some(connection) = self.get_mut(id.0) {
            let record = connection.count(message);
            connection.push(record, held);
            self.records += 1;
        }
    }

    /// The same for one whose payload goes to the file at once: its number, and where; then
    /// [`Log::written`]. `None`, where it is not kept.
    pub fn append_to_file(&mut self, id: ConnectionId, message: Message) -> Option<(u64, u64)> {
        let connection = self.get(id.0)?;
        let number = connection.status.messages;
        let dropped = connection.dropped;
        let Some(file) = self.file.as_mut().filter(|_| dropped.is_none()) else {
            self.miss(id, message, dropped.unwrap_or(Lost::Full));
            return None;
        };
        let to = file.take(message.length);
        self.push(id, message, Held::Writing(to));
        Some((number, to))
    }

    /// The payload is in the file, or could not be written.
    pub fn written(&mut self, id: ConnectionId, number: u64, to: u64, length: u64, done: bool) {
        let held = self.get(id.0).and_then(|it| it.find(number)).map(|kept| kept.held);
        if held == Some(Held::Writing(to)) && done {
            if let Some(connection) = self.get_mut(id.0) {
                connection.relocate(number, Held::File(to));
            }
            return;
        }
        if held == Some(Held::Writing(to)) {
            self.drop_retention(id.0, Lost::SpillFailed);
        }
        if let Some(file) = &mut self.file {
            file.give_back(to, length);
        }
    }

    /// A message is posted that is not kept, though those before it and behind it may be.
    pub fn miss(&mut self, id: ConnectionId, message: Message, why: Lost) {
        if let Some(connection) = self.get_mut(id.0) {
            let record = connection.count(message);
            connection.miss(record.number, why);
        }
    }

    /// The payload of the message to which that span was dealt is in the ring.
    pub fn filled(&mut self, span: u64) {
        self.ring.set_stage(span, Stage::Kept);
    }

    /// The last messages of a connection were not posted after all, of which `receives` take one. No device has
    /// them.
    pub fn take_back(&mut self, id: ConnectionId, messages: u64, receives: u64) {
        let Some(connection) = self.get_mut(id.0) else { return };
        connection.uncount(messages, receives);
        let upto = connection.status.messages;
        let at = connection.kept.partition_point(|kept| kept.record.number < upto);
        let gone = connection.kept.split_off(at);
        gone.iter().for_each(|it| connection.forget(it));
        for it in &gone {
            if let Held::Ring(span) = it.held {
                self.ring.unpin(span);
            }
            self.let_go(it);
        }
    }

    /// A record has left its connection.
    fn let_go(&mut self, kept: &Kept) {
        self.records -= 1;
        match kept.held {
            // Whoever writes there gives it back.
            Held::Nowhere | Held::Writing(_) => {}
            Held::Ring(span) => self.ring.release(span),
            Held::File(at) => {
                if let Some(file) = &mut self.file {
                    file.give_back(at, kept.record.message.length);
                }
            }
        }
    }

    /// What is to be copied next from the ring to the file, oldest first, until it is `most` bytes or more:
    /// then [`Log::spilled`]. Empty, where there is nothing, or no file.
    pub fn next_to_spill(&mut self, most: u64) -> Vec<Move> {
        let (mut moves, mut bytes) = (Vec::new(), 0);
        while bytes < most && self.file.is_some() {
            let Some(span) = self.ring.next_to_spill() else { break };
            moves.extend(self.begin_move(span));
            bytes += moves.last().map_or(0, |it: &Move| it.length);
        }
        moves
    }

    fn begin_move(&mut self, span: u64) -> Option<Move> {
        let &Span { at: from, owner: connection, number, .. } = self.ring.get(span)?;
        let length = self.get(connection)?.find(number)?.record.message.length;
        let to = self.file.as_mut()?.take(length);
        self.ring.set_stage(span, Stage::Spilling);
        Some(Move { connection, number, span, from, to, length })
    }

    /// They have been copied, or could not be.
    pub fn spilled(&mut self, moves: &[Move], done: bool) {
        for it in moves {
            self.ring.set_stage(it.span, Stage::Kept);
            let held = self.get(it.connection).and_then(|con| con.find(it.number));
            let stands = held.is_some_and(|kept| kept.held == Held::Ring(it.span));
            if stands && done {
                if let Some(connection) = self.get_mut(it.connection) {
                    connection.relocate(it.number, Held::File(it.to));
                }
                self.ring.release(it.span);
                continue;
            }
            // Covered or dropped meanwhile, or about to be.
            if let Some(file) = &mut self.file {
                file.give_back(it.to, it.length);
            }
            if stands {
                self.drop_retention(it.connection, Lost::SpillFailed);
            }
        }
    }

    /// Bytes in the ring that are nowhere else.
    #[must_use]
    pub fn unspilled(&self) -> u64 {
        self.ring.live()
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// Ranges of the file that hold nothing any more, since the last call; they are not dealt again.
    pub fn take_holes(&mut self) -> Vec<Range<u64>> {
        self.file.as_mut().map(FilePlaces::take_holes).unwrap_or_default()
    }

    /// Connections whose retention was dropped since the last call.
    pub fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// All that is kept of a connection goes, and nothing more is kept until the next epoch of the peer.
    fn drop_retention(&mut self, id: u64, why: Lost) {
        let Some(connection) = self.get_mut(id) else { return };
        if connection.dropped.is_some() {
            return;
        }
        connection.dropped = Some(why);
        let kept = std::mem::take(&mut connection.kept);
        kept.iter().for_each(|it| connection.forget(it));
        if let Some(first) = kept.front() {
            connection.miss(first.record.number, why);
        }
        let Status { qpn, peer, .. } = connection.status;
        self.dropped.push(Dropped { qpn, peer, why });
        kept.iter().for_each(|it| self.let_go(it));
    }

    /// A committed epoch of `peer` has consumed so many messages of the connection of its queue pair `peer_qpn`
    /// with ours. Lets go of [`COVER_AT_ONCE`] at most; true where it is to be called again.
    ///
    /// # Errors
    /// [`Beyond`], where that is more than were posted: nothing has changed.
    pub fn cover(
        &mut self,
        peer: u32,
        peer_qpn: u32,
        qpn: u32,
        messages: u64,
    ) -> Result<bool, Beyond> {
        let last = self.names.get(&(peer, peer_qpn, qpn)).and_then(|same| same.back().copied());
        let Some(id) = last else { return Ok(false) };
        let Some(connection) = self.get_mut(id) else { return Ok(false) };
        if messages > connection.status.receives {
            return Err(Beyond { told: messages, posted: connection.status.receives });
        }
        for _ in 0..COVER_AT_ONCE {
            let Some(connection) = self.get_mut(id) else { return Ok(false) };
            let Some(oldest) = connection.pop_covered(messages) else {
                connection.mend(messages);
                return Ok(false);
            };
            self.let_go(&oldest);
        }
        Ok(true)
    }

    /// The queue pair `peer_qpn` of `peer` is gone since the first committed epoch that says so: of its
    /// first connection with ours nothing is needed any more. As [`Log::cover`], true where it is to be
    /// called again.
    pub fn gone(&mut self, peer: u32, peer_qpn: u32, qpn: u32) -> bool {
        let first = self.names.get(&(peer, peer_qpn, qpn)).and_then(|same| same.front().copied());
        first.is_some_and(|id| self.forget(id))
    }

    /// Forgets a connection; true where it is to be called again.
    fn forget(&mut self, id: u64) -> bool {
        for _ in 0..COVER_AT_ONCE {
            let Some(connection) = self.get_mut(id) else { return false };
            let Some(oldest) = connection.kept.pop_front() else {
                self.remove(id);
                return false;
            };
            connection.forget(&oldest);
            self.let_go(&oldest);
        }
        true
    }

    /// Nothing that was sent to `peer` is needed any more: it has left for good. As [`Log::cover`], true
    /// where it is to be called again.
    pub fn forget_peer(&mut self, peer: u32) -> bool {
        let of_peer = |(name, ids): (&Name, &VecDeque<u64>)| {
            (name.0 == peer).then(|| ids.front().copied()).flatten()
        };
        match self.names.iter().find_map(of_peer) {
            Some(id) => {
                self.forget(id);
                true
            }
            None => false,
        }
    }

    /// Every connection that is known, by number.
    #[must_use]
    pub fn statuses(&self) -> Vec<(ConnectionId, Status)> {
        let all = self.connections.iter().enumerate();
        all.filter_map(|(at, connection)| {
            let status = connection.as_ref()?.status.clone();
            Some((ConnectionId(self.first + at as u64), status))
        })
        .collect()
    }

    /// Whether anything is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The first record of a connection whose number is `from` or more, and where its payload is; the place is
    /// `None` while that is on its way.
    #[must_use]
    pub fn next_record(&self, id: ConnectionId, from: u64) -> Option<(Record, Option<Place>)> {
        let connection = self.get(id.0)?;
        let at = connection.kept.partition_point(|kept| kept.record.number < from);
        let Kept { record, held } = *connection.kept.get(at)?;
        let place = match held {
            Held::Nowhere => Some(Place::Nowhere),
            Held::File(at) => Some(Place::File(at)),
            Held::Writing(_) => None,
            Held::Ring(span) => self
                .ring
                .get(span)
                .filter(|it| it.stage != Stage::Filling)
                .map(|it| Place::Ring(it.at)),
        };
        Some((record, place))
    }
}
