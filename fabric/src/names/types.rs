//! The words of the control path: who a process is, where it is, and what it publishes.
//!
//! Plain data. Everything here that arrives from another process has passed
//! [`message::decode`](super::message) and its limits first.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sojourn_logging::remap::{self, GroupId, Request};

/// The largest LID that is dealt: unicast LIDs of InfiniBand end here.
pub const MAX_LID: u32 = 0xBFFF;

/// A process of the job. Numbered from 1; rank `r` is process `r + 1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// The LID that belongs to this process: its number, or 0 (address it by GID) where the number
    /// is above the unicast range.
    pub fn lid(self) -> Lid {
        Lid(if self.0 <= MAX_LID { self.0 as u16 } else { 0 })
    }

    /// The GID that belongs to this process in the job with this number.
    pub fn gid(self, job: JobId) -> Gid {
        let mut gid = [0; 16];
        gid[..2].copy_from_slice(&[0xfe, 0x80]);
        gid[8..12].copy_from_slice(&job.0.to_be_bytes());
        gid[12..].copy_from_slice(&self.0.to_be_bytes());
        Gid(gid)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

/// 32 bits that tell jobs apart, derived from the job key by a one-way function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct JobId(pub u32);

/// A virtual LID: belongs to one process of the job, 0 for processes past [`MAX_LID`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Lid(pub u16);

/// A virtual GID: belongs to one process of the job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The process and job that a GID belongs to; `None` if it is no GID of this scheme.
    pub fn owner(self) -> Option<(JobId, ProcessId)> {
        let word = |at: usize| {
            u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
        };
        let ours = word(0) == 0xfe80_0000 && word(4) == 0 && word(12) != 0;
        ours.then(|| (JobId(word(8)), ProcessId(word(12))))
    }
}

/// Grows each time that an endpoint is attached anew; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

/// One boot of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct MachineId(pub [u8; 16]);

/// Where the control sockets of a process are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Address {
    /// The machine that the process runs on.
    pub machine: MachineId,
    /// The effective user that it runs as.
    pub uid: u32,
    /// Its unix socket, for processes of the same user on the same machine.
    pub unix: Option<PathBuf>,
    /// Its TCP sockets, for everyone else.
    pub tcp: Vec<SocketAddr>,
}

/// What a process is given when it joins the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// Its number.
    pub process: ProcessId,
    /// Its LID, for life.
    pub lid: Lid,
    /// Its GID, for life.
    pub gid: Gid,
    /// How many times a process of this number has joined, this time included.
    pub incarnation: Incarnation,
    /// The job that it belongs to.
    pub job: JobId,
}

impl Grant {
    /// The grant of a process number in a job; both names follow from the two.
    pub fn new(process: ProcessId, incarnation: Incarnation, job: JobId) -> Grant {
        Grant { process, lid: process.lid(), gid: process.gid(job), incarnation, job }
    }
}

/// What the directory knows of a live process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Where its control sockets are.
    pub address: Address,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
}

/// A device of the process that publishes it, in that process's own numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DeviceId(pub u32);

/// The word into which the peer of a queue pair records how far it has come, as that reaches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordWord {
    /// Its address: a multiple of 8.
    pub addr: u64,
    /// Physical key of the memory, on the queue pair's device.
    pub rkey: u32,
}

/// A physical queue pair, as a peer must know it to reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PhysicalEnd {
    /// The device that it is on.
    pub device: DeviceId,
    /// LID of the device's port.
    pub lid: u16,
    /// GID of the device's port.
    pub gid: [u8; 16],
    /// The device's number for the queue pair.
    pub qpn: u32,
    /// Active path MTU, as `ibv_mtu` counts it (1 is 256 bytes, 5 is 4096).
    pub mtu: u8,
    /// `IBV_LINK_LAYER_*` of the port.
    pub link_layer: u8,
    /// Where its record is kept, if one is wanted.
    pub word: Option<RecordWord>,
}

/// Who asks for a queue pair, as the owner of that queue pair is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The asking process.
    pub process: ProcessId,
    /// Its virtual LID.
    pub lid: Lid,
    /// Its virtual GID.
    pub gid: Gid,
    /// The virtual number of the queue pair that it asks for, 0 for none.
    pub qpn: u32,
    /// The physical one behind it, if there is one at this time.
    pub physical: Option<PhysicalEnd>,
}

/// What a virtual queue pair number stands for today.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QpnRecord {
    /// The physical queue pair.
    pub end: PhysicalEnd,
    /// `IBV_QPT_*`.
    pub qp_type: u8,
    /// Which attachment of the virtual queue pair this is.
    pub incarnation: Incarnation,
    /// Which life of its process.
    pub life: Incarnation,
}

/// What a virtual remote key stands for today: one physical key on each device in use.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Device and physical rkey. At most [`MAX_KEY_DEVICES`](super::MAX_KEY_DEVICES).
    pub on: Vec<(DeviceId, u32)>,
}

/// What to fetch from the process that owns it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fetch {
    /// A queue pair. The asker tells of its own, so that the owner knows the way back before the
    /// first datagram comes.
    Qpn {
        /// The virtual number to resolve.
        qpn: u32,
        /// The asker's virtual number, 0 for none.
        own_qpn: u32,
        /// What the asker's number stands for.
        own_end: Option<PhysicalEnd>,
    },
    /// A virtual remote key.
    Key(u32),
    /// A note. The answer comes when the owner publishes it.
    Note(String),
    /// What the asker, whose context goes to another device, asks of a group of connections.
    Remap(GroupId, Request<PhysicalEnd>),
    /// Queue pairs of the asker for datagrams stand for these from now on.
    Moved(Vec<(u32, PhysicalEnd)>),
    /// Take all contexts to a device; asked again with the same ticket, how that goes.
    Relocate {
        /// Chosen by the asker, at random.
        ticket: u64,
        /// The device's name.
        device: String,
    },
    /// The asker has committed an epoch: what that has consumed of what the asked process has sent.
    Committed {
        /// Grows with each such message of the asker, in its later lives too.
        serial: u64,
        /// At most [`MAX_COVERS`](super::MAX_COVERS).
        covers: Vec<Cover>,
    },
    /// What has the asked process written into the asker's memory?
    Written {
        /// Grows with each report that the asker makes, in its later lives too.
        report: u64,
        /// Of the answer, from 0; the first of a report that is new says up to when it is.
        part: u32,
    },
    /// What was told for that report is safe.
    WrittenSaved {
        /// Its number.
        report: u64,
    },
}

/// Part of what one process has written into another's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrittenPart {
    /// The life of the process that tells: it knows of no earlier one.
    pub life: Incarnation,
    /// The record is whole.
    pub complete: bool,
    /// There is no more.
    pub last: bool,
    /// At most [`MAX_WRITTEN`](super::MAX_WRITTEN).
    pub words: Vec<WrittenWord>,
}

impl WrittenPart {
    /// Of one who cannot tell.
    pub fn nothing(life: Incarnation) -> Self {
        WrittenPart { life, complete: false, last: true, words: Vec::new() }
    }
}

/// Pages of a region that were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrittenWord {
    /// The region's virtual remote key.
    pub key: u32,
    /// Which 256 KiB of its addresses.
    pub chunk: u64,
    /// Which 4 KiB pages of these; none stands for the whole region.
    pub bits: u64,
}

/// What an epoch has consumed of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cover {
    /// The queue pair of the process that is told.
    pub qpn: u32,
    /// The queue pair of the process that tells.
    pub by: u32,
    /// How much.
    pub consumed: Consumed,
}

/// How much an epoch has consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Consumed {
    /// So many messages since the queue pairs were connected.
    Upto(u64),
    /// The queue pair that consumed is gone, and needs nothing any more. The number grows with each such
    /// queue pair of the process that tells, in its later lives too.
    Gone(u64),
}

/// How an order to go to another device goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Ask again.
    UnderWay,
    /// All contexts are there: the moves that this took.
    Done(Vec<Relocated>),
    /// Not all are there, and why. Each of those that are not is where it was.
    Failed(String),
}

/// A context has gone to another device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Relocated {
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// Queue pairs that moved.
    pub queue_pairs: u32,
    /// Processes that followed.
    pub peers: u32,
    /// How long nothing was handed to a device, in nanoseconds.
    pub blackout: u64,
    /// Steps with their nanoseconds.
    pub phases: Vec<(String, u64)>,
}

impl fmt::Display for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fetch::Qpn { qpn, .. } => write!(f, "queue pair {qpn:#x}"),
            Fetch::Key(key) => write!(f, "remote key {key:#x}"),
            Fetch::Note(name) => write!(f, "note {name:?}"),
            Fetch::Remap(GroupId(group), request) => {
                let what = match request {
                    Request::Prepare { .. } => "prepare",
                    Request::Quiesce => "quiesce",
                    Request::Switch { .. } => "switch",
                    Request::Finish { .. } => "finish",
                    Request::Abort => "abort",
                    Request::Hold { .. } => "hold",
                };
                write!(f, "re-map {group:#x}, {what}")
            }
            Fetch::Relocate { device, .. } => write!(f, "going to {device}"),
            Fetch::Moved(qps) => write!(f, "note of {} queue pairs that have moved", qps.len()),
            Fetch::Committed { covers, .. } => {
                write!(f, "note of an epoch that covers {} queue pairs", covers.len())
            }
            Fetch::Written { part, .. } => write!(f, "record of what it wrote, part {part}"),
            Fetch::WrittenSaved { .. } => write!(f, "note that what it wrote is safe"),
        }
    }
}

/// The answer to a [`Fetch`], of the same kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// To [`Fetch::Qpn`].
    Qpn(QpnRecord),
    /// To [`Fetch::Key`].
    Key(KeyRecord),
    /// To [`Fetch::Note`].
    Note(Vec<u8>),
    /// To [`Fetch::Remap`].
    Remap(remap::Answer<PhysicalEnd>),
    /// To [`Fetch::Moved`], [`Fetch::Committed`] and [`Fetch::WrittenSaved`].
    Noted,
    /// To [`Fetch::Relocate`].
    Order(Order),
    /// To [`Fetch::Written`].
    Written(WrittenPart),
}

impl Record {
    /// Whether this can answer that.
    pub fn answers(&self, what: &Fetch) -> bool {
        matches!(
            (self, what),
            (Record::Qpn(_), Fetch::Qpn { .. })
                | (Record::Key(_), Fetch::Key(_))
                | (Record::Note(_), Fetch::Note(_))
                | (Record::Remap(_), Fetch::Remap(..))
                | (
                    Record::Noted,
                    Fetch::Moved(_) | Fetch::Committed { .. } | Fetch::WrittenSaved { .. }
                )
                | (Record::Written(_), Fetch::Written { .. })
                | (Record::Order(_), Fetch::Relocate { .. })
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_process_are_its_own_and_lead_back_to_it() {
        let job = JobId(0xdead_beef);
        for id in [1, 2, MAX_LID, MAX_LID + 1, u32::MAX] {
            let grant = Grant::new(ProcessId(id), Incarnation(1), job);
            assert_eq!(grant.lid.0 as u32, if id <= MAX_LID { id } else { 0 });
            assert_eq!(grant.gid.owner(), Some((job, ProcessId(id))));
        }
        assert_eq!(Gid([0; 16]).owner(), None);
        assert_eq!(Gid([0xff; 16]).owner(), None);
    }
}
