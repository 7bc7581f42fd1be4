//! The ranks of one launcher, from their start to the end of the last.
//!
//! One thread waits on a signalfd: for the ends of ranks (SIGCHLD), for signals that end the job,
//! for its deadlines. A rank that dies by a signal may be started anew. No rank is reaped before all have ended: until then its process id stays
//! reserved, so that no peer's `process_vm_writev` and no signal of ours ever meets a stranger.

use super::output::{Pump, Sink, Source, Stream};
use super::program;
use crate::cli::{Failure, Outcome, While};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Time between SIGTERM and SIGKILL for ranks that must end.
const GRACE: Duration = Duration::from_secs(3);

/// How long a rank's exit status waits for another rank's death by a signal, which is then the
/// cause: the connections of a dying process close before its parent hears of its end, so that its
/// peers may fail, and be heard of, first.
const SETTLE: Duration = Duration::from_millis(250);

/// Signals that end a job, and pass their number on as its status.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// How a job came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every rank ended with status 0.
    Success,
    /// This rank was the first to fail, with this status.
    Rank(u32, i32),
    /// This rank was the first to fail, by this signal.
    Killed(u32, Signal),
    /// The launcher was told to end by this signal.
    Interrupted(Signal),
    /// The job did not end in time.
    TimedOut,
}

impl End {
    /// The launcher's own exit status, as shells and `timeout(1)` count it.
    pub(crate) fn status(self) -> u8 {
        match self {
            End::Success => 0,
            End::Rank(_, status) => u8::try_from(status).unwrap_or(1),
            End::Killed(_, signal) | End::Interrupted(signal) => 128 + signal as u8,
            End::TimedOut => 124,
        }
    }
}

/// The signals of the launcher, blocked in every thread and read from one descriptor.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks them in this thread, and so in every thread that it starts from here on.
    pub(crate) fn block() -> Outcome<Self> {
        // Under nohup, or in the background of a script, some are to be ignored; but a blocked
        // signal is queued even so.
        let ignored = ignored_mask().doing("reading /proc/self/status")?;
        let heard = ENDING.into_iter().filter(|signal| ignored >> (*signal as u32 - 1) & 1 == 0);
        let mut set = SigSet::from_iter(heard);
        set.add(Signal::SIGCHLD);
        set.thread_block().doing("blocking signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Signals).doing("creating a signalfd")
    }

    /// Waits until a signal is there, `other` hangs up or `until` has come.
    fn wait(&self, other: Option<&PipeReader>, until: Option<Instant>) -> Outcome {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up: waking a little early would be a busy loop.
                let left = at.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::new(format!("waiting for the ranks: {errno}"))),
        }
    }

    /// The next signal that is there, and whom it is about.
    fn next(&self) -> Outcome<Option<(Signal, Pid)>> {
        let info = self.0.read_signal().doing("reading a signalfd")?;
        Ok(info.and_then(|info| {
            let signal = Signal::try_from(info.ssi_signo.cast_signed()).ok()?;
            Some((signal, Pid::from_raw(info.ssi_pid.cast_signed())))
        }))
    }
}

/// The signals that this process ignores: bit n - 1 for signal n.
fn ignored_mask() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    digits
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .ok_or_else(|| std::io::Error::other("it has no SigIgn"))
}

struct Rank {
    rank: u32,
    child: Child,
    /// How it ended; its process is a zombie then.
    ended: Option<WaitStatus>,
}

/// The ranks, and what starts each.
pub(super) struct Restarts {
    /// What is left of the times that one may be started anew.
    pub(super) left: u32,
    /// Nothing is said of it.
    pub(super) quiet: bool,
    /// By rank.
    pub(super) commands: Vec<(u32, Command)>,
}

impl Rank {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

/// All ranks of this launcher. Dropping it ends them, and reaps them.
struct Ranks(Vec<Rank>);

impl Ranks {
    /// Starts a rank, and returns what it prints on.
    fn start(&mut self, rank: u32, command: &mut Command) -> Outcome<Vec<Source>> {
        let doing = format!("starting rank {rank} ({})", command.get_program().to_string_lossy());
        let mut child = program::start(command).doing(&doing)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        self.0.push(Rank { rank, child, ended: None });
        let mut sources = Vec::new();
        if let (Some(out), Some(err)) = (out, err) {
            sources.push(Source::new(rank, Stream::Out, out).doing(&doing)?);
            sources.push(Source::new(rank, Stream::Err, err).doing(&doing)?);
        }
        Ok(sources)
    }

    /// Sends `signal` to every rank, and all that it started, where the rank itself has not ended.
    fn signal(&self, signal: Signal) {
        for rank in self.0.iter().filter(|rank| rank.ended.is_none()) {
            let _ = killpg(rank.pid(), signal);
        }
    }

    fn running(&self) -> usize {
        self.0.iter().filter(|rank| rank.ended.is_none()).count()
    }

    /// Looks at those that had not ended, `first` before the others, and returns those that have.
    fn look(&mut self, first: Option<Pid>) -> Outcome<Vec<(u32, WaitStatus)>> {
        let mut news = Vec::new();
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        for rank in self.0.iter_mut().filter(|rank| rank.ended.is_none()) {
            let pid = rank.pid();
            let status = waitid(Id::Pid(pid), flags).doing("waiting for a rank")?;
            if status != WaitStatus::StillAlive {
                rank.ended = Some(status);
                news.push((Some(pid) != first, (rank.rank, status)));
            }
        }
        news.sort_by_key(|(later, _)| *later);
        Ok(news.into_iter().map(|(_, news)| news).collect())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &self.0 {
            // Nobody of the group outlives the job. The group's number is still reserved, since
            // its leader is not reaped.
            let _ = killpg(rank.pid(), Signal::SIGKILL);
        }
        for rank in &mut self.0 {
            let _ = rank.child.wait();
        }
    }
}

/// Starts the ranks, and stays until the last has ended and all of their output
/// has reached `sink`, which is returned. Complaints go to stderr.
///
/// It must be called by a thread that lives as long as the job, since ranks die with the thread
/// that started them (`PR_SET_PDEATHSIG`).
pub(super) fn supervise(
    signals: &Signals,
    mut restarts: Restarts,
    timeout: Option<Duration>,
    sink: Box<dyn Sink>,
) -> Outcome<(End, Box<dyn Sink>)> {
    let mut ranks = Ranks(Vec::with_capacity(restarts.commands.len()));
    let mut sources = Vec::with_capacity(2 * restarts.commands.len());
    for (rank, command) in &mut restarts.commands {
        sources.extend(ranks.start(*rank, command)?);
    }
    let mut pump = Pump::start(sources, sink).doing("starting the output thread")?;
    let end = watch(signals, &mut ranks, restarts, &mut pump, timeout)?;
    // Ends what the ranks have left behind, so that nothing more comes; reaps.
    drop(ranks);
    let (done, thread) = pump.finish();
    while !thread.is_finished() {
        // Somebody may read our output slowly, or not at all.
        signals.wait(Some(&done), None)?;
        while let Some((signal, _)) = signals.next()? {
            if ENDING.contains(&signal) {
                return Err(Failure::status(End::Interrupted(signal).status()));
            }
        }
        if hung_up(&done) {
            break;
        }
    }
    let sink = thread.join().map_err(|_| Failure::new("the output thread failed"))?;
    Ok((end, sink))
}

fn hung_up(pipe: &PipeReader) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// Waits for the end of every rank, and brings it about once one has failed.
fn watch(
    signals: &Signals,
    ranks: &mut Ranks,
    mut restarts: Restarts,
    pump: &mut Pump,
    timeout: Option<Duration>,
) -> Outcome<End> {
    let mut deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut end = End::Success;
    let mut phase = Phase::Running;
    loop {
        let mut reason = None;
        let mut first = None;
        while let Some((signal, pid)) = signals.next()? {
            if signal == Signal::SIGCHLD {
                // Pending signals of one number merge into the first, which names the rank that
                // ended first.
                first.get_or_insert(pid);
            } else if matches!(phase, Phase::Running | Phase::Settling) {
                reason.get_or_insert(End::Interrupted(signal));
            } else {
                // Asked twice: no more patience.
                deadline = Some(Instant::now());
            }
        }
        for (rank, status) in ranks.look(first)? {
            let failed = match status {
                WaitStatus::Exited(_, 0) => continue,
                WaitStatus::Exited(_, status) => End::Rank(rank, status),
                WaitStatus::Signaled(_, signal, _) => {
                    if phase == Phase::Running && restarts.again(rank, signal, ranks, pump)? {
                        continue;
                    }
                    End::Killed(rank, signal)
                }
                _ => continue,
            };
            match (reason, failed) {
                (None, _) | (Some(End::Rank(..)), End::Killed(..)) => reason = Some(failed),
                _ => {}
            }
        }
        let due = deadline.is_some_and(|at| Instant::now() >= at);
        if due && phase == Phase::Running && ranks.running() > 0 {
            reason.get_or_insert(End::TimedOut);
        }
        // Only the first reason counts, and before it what may have brought it about; the rest
        // follows from it.
        match (phase, reason) {
            (Phase::Running, Some(reason)) => {
                (end, phase) = (reason, Phase::Settling);
                deadline = Some(Instant::now() + SETTLE);
            }
            (Phase::Settling, Some(reason @ (End::Killed(..) | End::Interrupted(_)))) => {
                end = reason;
            }
            _ => {}
        }
        let settled = due || !matches!(end, End::Rank(..)) || ranks.running() == 0;
        match phase {
            Phase::Settling if settled => {
                phase = Phase::Asked;
                tell(end, ranks.running(), timeout);
                ranks.signal(Signal::SIGTERM);
                // A stopped rank takes its SIGTERM only when it goes on.
                ranks.signal(Signal::SIGCONT);
                deadline = Some(Instant::now() + GRACE);
            }
            Phase::Asked if due => {
                phase = Phase::Killed;
                deadline = None;
                ranks.signal(Signal::SIGKILL);
            }
            _ => {}
        }
        if ranks.running() == 0 {
            return Ok(end);
        }
        signals.wait(None, deadline)?;
    }
}

impl Restarts {
    /// Starts a rank anew, where that may still be done. Whatever it had started itself is ended first.
    fn again(
        &mut self,
        rank: u32,
        signal: Signal,
        ranks: &mut Ranks,
        pump: &mut Pump,
    ) -> Outcome<bool> {
        let command = self.commands.iter_mut().find(|(number, _)| *number == rank);
        let Some((_, command)) = command.filter(|_| self.left > 0) else { return Ok(false) };
        self.left -= 1;
        for life in ranks.0.iter().filter(|life| life.rank == rank) {
            let _ = killpg(life.pid(), Signal::SIGKILL);
        }
        if !self.quiet {
            eprintln!(
                "sojourn: rank {rank} ended by signal {} ({}); starting it anew",
                signal as i32,
                signal.as_str()
            );
        }
        for source in ranks.start(rank, command)? {
            pump.add(source).doing("reading what a rank prints")?;
        }
        Ok(true)
    }
}

/// How far the end of a job has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has failed.
    Running,
    /// One has failed; the cause may be another.
    Settling,
    /// The ranks were asked to end.
    Asked,
    /// They were made to.
    Killed,
}

/// Says why the job ends, and what happens to the rest.
fn tell(end: End, running: usize, timeout: Option<Duration>) {
    let what = match end {
        End::Success => return,
        End::Rank(rank, status) => format!("rank {rank} ended with status {status}"),
        End::Killed(rank, signal) => {
            format!("rank {rank} ended by signal {} ({})", signal as i32, signal.as_str())
        }
        End::Interrupted(signal) => format!("interrupted by {}", signal.as_str()),
        End::TimedOut => {
            format!("the job did not end within {} s", timeout.unwrap_or_default().as_secs_f64())
        }
    };
    match running {
        0 => eprintln!("sojourn: {what}"),
        1 => eprintln!("sojourn: {what}; ending the other rank"),
        n => eprintln!("sojourn: {what}; ending the other {n} ranks"),
    }
}
