//! What a run can meet, and what can be done wrong.

macro_rules! list {
    ($(#[doc = $about:literal])* $name:ident, $($(#[doc = $doc:literal])* $item:ident,)*) => {
        $(#[doc = $about])*
        #[doc = "\n| | |\n| --- | --- |"]
        $(#[doc = concat!("| `", stringify!($item), "` |", $($doc),*, " |")])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $doc])* $item,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$item,)*];
        }
    };
}

list! {
    /// A fault, or an interleaving. One that many runs never meet is a hole in the simulator.
    Kind,
    /// An epoch was committed.
    Committed,
    /// One was committed with fewer copies than the policy asks for.
    CommittedWithFewer,
    /// One was given up because too few stores were left.
    TooFew,
    /// One was given up because it took too long.
    Late,
    /// One was given up because the program had not stood still in the pause.
    Moved,
    /// One was given up because the decider said so.
    Aborted,
    /// A process was complete when that happened.
    AbortedWhenComplete,
    /// A store came in while an epoch was written.
    Joined,
    /// A process took a store that it had lost before.
    CameBack,
    /// A process died in the pause, or while its last round was sent.
    DiedInPause,
    /// A process died while it sealed.
    DiedSealing,
    /// A process died when it was complete.
    DiedComplete,
    /// A process died while its stores took note.
    DiedNoting,
    /// A store died.
    StoreDied,
    /// A store died while a recovery was reading.
    StoreDiedInRecovery,
    /// A connection broke.
    Broke,
    /// A store was out of reach for a while.
    Unreachable,
    /// A recovery did without a store that lives.
    StoreSilent,
    /// Bytes in a store were damaged.
    Damaged,
    /// A store found that before the epoch was complete.
    DamageFound,
    /// A recovery went to another copy.
    AnotherCopy,
    /// A WRITE of a process that was dead landed.
    LateWrite,
    /// One landed after its queue pair was taken to ERR.
    LateWriteAtErr,
    /// One did not land, because its queue pair was past the barrier.
    LateWriteFenced,
    /// Somebody had to ask again because an older incarnation was being fenced.
    WaitedForBarrier,
    /// A store was left with a half of a chunk.
    Torn,
    /// All processes were restored.
    RestoredWhole,
    /// One was, and the others computed on.
    RestoredAlone,
    /// A recovery died, and another began.
    RecoveryDied,
    /// A newer epoch than the noted one was restored.
    RestoredNewer,
    /// An older one was: the noted one was lost.
    RestoredOlder,
    /// The noted one was restored though all had a newer one.
    NewerLeft,
    /// What was restored had been given up by the decider.
    RestoredAborted,
    /// Nothing was left to restore.
    NothingLeft,
    /// A decider was replaced while it lived.
    DeciderReplaced,
    /// A new decider committed what an older one had begun.
    CommittedBySuccessor,
    /// A new decider gave up what an older one had begun.
    AbortedBySuccessor,
    /// Something was said to an older decider, or by it, that did not count.
    OldTermIgnored,
    /// Tracking answered after its epoch was given up.
    LateDirty,
    /// A process was taken for dead, and lived.
    Ghost,
    /// A store told it so.
    GhostFenced,
    /// It was told of a commit all the same: the store that noted it was out of the launcher's reach.
    GhostCommitted,
    /// A message was lost.
    MessageLost,
    /// A message came twice.
    MessageTwice,
}

list! {
    /// A shell that does one thing wrong. Each must be caught by the checks, or these prove nothing. The simulator
    /// plays the shell, so production code knows nothing of it.
    Broken,
    /// Posts the word before checksums and header.
    WordFirst,
    /// Does not clear the word of a slot before it writes there.
    NotInvalidated,
    /// Writes each epoch to the same slot.
    OneSlot,
    /// Sends to a slot only what was dirty in this epoch.
    UnionForgotten,
    /// Lets somebody in as soon as `modify(ERR)` has returned.
    NoBarrier,
    /// Leaves the queue pair of an older incarnation as it is.
    NoFencing,
    /// Numbers epochs without the term of the decider.
    NumberReused,
    /// Lets tracking start afresh when the round has been sent.
    CollectedLate,
    /// Takes an epoch for complete everywhere when one process is.
    CommittedAtFirst,
    /// Lets the program compute in the pause.
    NotPaused,
    /// Lets it go on when the last round is posted, and has not landed.
    ResumedEarly,
    /// Tells the program of a commit that no store has noted.
    NotNoted,
    /// Heeds an older decider.
    OldTermHeeded,
    /// Chooses what to restore without regard to what is noted.
    NotesIgnored,
    /// Reads what stores hold without a claim.
    NotClaimed,
    /// Takes a connection that has broken for one whose WRITEs have landed.
    BreakIgnored,
    /// Restores what does not pass its checks.
    DamageIgnored,
    /// Begins to track when the restored program has already run.
    TrackedLate,
    /// Restores each process from the newest epoch that it has.
    EachItsOwn,
    /// Restores one process, whose peers compute on, from what these do not know.
    NewerForOne,
}
