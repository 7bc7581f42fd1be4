//! Shells that are broken on purpose. Each must be caught by the checks, or these prove nothing.
//!
//! The simulator plays the shell, so a broken one is a flag here, and production code knows nothing of
//! it. Most of the list is what others have got wrong.

macro_rules! broken {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A shell that does one thing wrong.
        #[doc = "\n| variant | what it does wrong |\n| --- | --- |"]
        $(#[doc = concat!("| `", stringify!($name), "` |", $($doc),*, " |")])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Broken { $($(#[doc = $doc])* $name,)* }

        impl Broken {
            /// All of them.
            pub const ALL: &[Broken] = &[$(Broken::$name,)*];
        }
    };
}

broken! {
    /// Hands everything again that has no completion, executed or not.
    NoDuplicateCheck,
    /// Hands inline payload again from the program's buffer.
    InlineNotCopied,
    /// Takes the old queue pair to RESET instead of ERR.
    Reset,
    /// Leaves the old queue pair as it is.
    NoFencing,
    /// Judges by counts alone, and takes what they do not tell of for not executed.
    NumberIgnored,
    /// Hands the whole rest again from the first request that has to be.
    Suffix,
    /// Asks for the numbers as soon as `modify(ERR)` has returned.
    NoBarrier,
    /// Takes an atomic whose result was lost for not executed.
    AtomicsReplayed,
    /// Makes a completion at once, and once more in its turn.
    SynthesisedTwice,
    /// Makes completions ahead of those of requests that were handed again.
    SynthesisedOutOfOrder,
    /// Makes completions that nobody had asked for.
    UnsignalledReported,
    /// Hands a WRITE that was cut again from its first byte.
    CutFromTheStart,
    /// Does not tell the receiver how much of a WRITE with immediate data had landed.
    CutNotTold,
    /// Does not wait until the receiver knows.
    CutNotAwaited,
    /// Posts to the new queue pair only receives that the old one never had.
    ReceivesLost,
    /// Forgets failures that came while it was stopped, and goes on with the old queue pair.
    WithheldForgotten,
    /// Proves a tail while requests before it still wait to be handed again.
    ProofBeforeReplays,
    /// Proves a tail each time that it stops, though an earlier proof is still out.
    ProofAtEachStop,
    /// Counts receives that came back in error as deliveries.
    FlushedCounted,
    /// Takes receives for filled that a device says are, at ERR, whatever its number says.
    FalseSuccessesCounted,
    /// Begins to follow while it is moving itself.
    BusyIgnored,
    /// Says of every group that has ended that it has finished, though it had given up.
    AlwaysFinished,
    /// Hands what was cut though its mover, who may not know, is not heard of.
    CutHandedAfterAll,
    /// Records a WRITE before it is handed.
    RecordFirst,
    /// Takes WRITEs behind the last record for not executed.
    BeyondRecordReplayed,
    /// Keeps a group whose mover offers the same links anew.
    StaleKept,
    /// Posts to the new shared queue what was in the old one, and not what had been taken from it.
    SharedVanishedForgotten,
    /// Posts a shared receive again that was consumed.
    SharedConsumedAgain,
    /// Follows, and never creates the shared queue anew though receives may have vanished from it.
    SharedNeverAnew,
    /// Tells the numbers of a queue pair with shared receives without waiting for a barrier.
    SharedNotAwaited,
    /// Stands still for a holder as soon as nothing that is signalled is under way.
    HeldWhenQuiet,
    /// Posts receives while it holds, though it says that it posts none.
    HeldReceives,
}
