//! What a run has met. A kind that many runs never meet is a hole in the simulator.

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A fault, or an interleaving.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[doc = $doc])* $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];
        }
    };
}

kinds! {
    /// A move ended well.
    Moved,
    /// One move followed another on the same link.
    MovedAgain,
    /// Requests were handed again.
    Replayed,
    /// A WRITE went on at its first packet that had not landed.
    WriteCut,
    /// A WRITE with immediate data did.
    WriteImmCut,
    /// A request was cut twice.
    CutTwice,
    /// A SEND of which some packets had come was handed again whole.
    SendCut,
    /// A READ that had been executed was issued again.
    ReadAgain,
    /// An executed request got its completion from the shell.
    Synthesised,
    /// One of those stood behind a request that was handed again.
    SynthesisedInTurn,
    /// An atomic's result was lost.
    AtomicUndecided,
    /// A WRITE could not be decided: no number, or no barrier.
    WriteUndecided,
    /// A request of ours proved an unsignalled tail.
    Proof,
    /// The program posted while its queue pair was suspended.
    PostedSuspended,
    /// The program met a full window.
    WindowFull,
    /// A responder had no receive.
    Rnr,
    /// What was under way did not drain in time.
    DrainDeadline,
    /// A fenced request waited for a READ or an atomic.
    Fenced,
    /// A requester sent a packet again.
    Retransmitted,
    /// Inline payload was sent again from the log.
    InlineReplayed,
    /// Requests waited for names when the move began.
    MovedWhileBlocked,
    /// A responder executed a packet after ERR, before the barrier.
    EdgePacket,
    /// A barrier was not passed in time.
    NoBarrier,
    /// A receive came back from ERR as filled, and was not.
    FalseSuccess,
    /// The number of a device was not live.
    NoPsn,
    /// A record decided what no count did.
    RecordProved,
    /// A number passed 2²⁴.
    PsnWrapped,
    /// A message between processes was lost before the commit point.
    LetterLostBefore,
    /// One was lost after it.
    LetterLostAfter,
    /// A request was asked twice, and came twice.
    AskedTwice,
    /// A message overtook an older one.
    LetterOvertaken,
    /// Both ends of a link moved at once.
    BothMoved,
    /// A move was refused.
    Refused,
    /// A move was taken back because somebody was silent.
    TakenBackSilent,
    /// A follower gave up a mover that was silent.
    GaveUpSilent,
    /// A mover began anew while its last move was still kept by a follower.
    StaleGroup,
    /// A follower died while a peer moved.
    FollowerDied,
    /// A mover died.
    MoverDied,
    /// A follower was past the commit point when its mover died.
    MoverDiedAfterCommit,
    /// The old device of a mover died during its move.
    DeviceDiedMoving,
    /// A device died, and its process moved to another.
    FailedOver,
    /// A link was lost after the commit point while its peer was alive.
    LostAfterCommit,
    /// The peer's queue pair was gone when a move began.
    PeerGone,
    /// Failures that came while a link was stopped were given back.
    GivenBack,
    /// A group of three processes, one of which followed two movers at once.
    FollowedTwo,
    /// A move of several groups with the same peer.
    SplitGroups,
    /// Path MTUs differed between the incarnations of a link.
    MtuChanged,
    /// An error completion reached the program.
    ErrorSeen,
    /// Links that share their receives were given some of one queue.
    SharedReceives,
    /// A shared receive came ahead of one that had been posted before it.
    SharedOvertaken,
    /// A shared receive that a SEND had filled in part vanished with its queue pair.
    SharedReceiveVanished,
    /// One came back flushed.
    SharedReceiveReturned,
    /// A shared queue went over to another device, with all that was not consumed.
    SharedMoved,
    /// One that had vanished was among that.
    SharedFoundAgain,
    /// A queue pair followed, and the shared queue stayed.
    SharedFollowed,
    /// Who had followed created the queue anew, as receives might have vanished.
    SharedAnew,
    /// A queue pair with shared receives had no barrier.
    SharedNoBarrier,
    /// What was under way behind it could not be decided.
    SharedUndecided,
    /// A process and its peers stood still.
    Held,
    /// They did though a message waited for a receive.
    HeldStarved,
    /// A peer went on before its holder said so.
    HoldLapsed,
    /// A hold was taken back.
    HoldTakenBack,
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u64);

impl Kinds {
    /// Adds one.
    pub fn add(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }

    /// Whether it is in there.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

const _: () = assert!(Kind::ALL.len() <= 64, "a set is one word");
