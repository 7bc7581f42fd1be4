//! What the tests of the command share: running it with a deadline, in a place of its own.
#![allow(dead_code, reason = "each test file uses a part of it")]

use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::epoch::Member;
use sojourn_snapshot::store::Client;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No command of these tests takes this long, on a loaded machine either.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A directory for everything that a command leaves behind, so that tests do not see each other.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        // Short, since it holds unix sockets.
        Place(tempfile::Builder::new().prefix("sj").tempdir_in("/tmp").unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command with its arguments.
    pub(crate) fn sojourn<I: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sojourn"));
        command.args(args);
        self.dress(&mut command);
        command
    }

    /// Gives any command this place.
    pub(crate) fn dress(&self, command: &mut Command) {
        for name in ["SOJOURN_RANK", "SOJOURN_SIZE", "SOJOURN_DIRECTORY", "SOJOURN_KEY_FILE"] {
            command.env_remove(name);
        }
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", self.0.path())
            .env("SOJOURN_SOFT_DIR", self.path("soft"))
            .env("SOJOURN_DEVICE", "soft0")
            .current_dir(self.0.path());
    }

    /// `sojourn run` of a shell script.
    pub(crate) fn run(&self, options: &str, script: &str) -> Done {
        let args = ["run"].into_iter().chain(options.split_whitespace());
        finish(self.sojourn(args.chain(["--", "sh", "-c", script])))
    }

    /// The directories of launchers that are here.
    pub(crate) fn scratch(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().contains("/sojourn-run-")).collect()
    }
}

/// Waits until one of the stores says that so many epochs of a member are committed.
pub(crate) fn wait_for_epochs(stores: &[Endpoint], key: &JobKey, member: Member, count: u64) {
    let until = Instant::now() + PATIENCE;
    let has = |at: &Endpoint| {
        let Ok(mut client) = Client::connect(at, key, Instant::now() + Duration::from_secs(2))
        else {
            return false;
        };
        let kept = client.list().unwrap();
        kept.iter().any(|it| it.member == member && it.holding.committed.count() >= count)
    };
    while !stores.iter().any(has) {
        assert!(Instant::now() < until, "no epoch of {member:?} is committed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl Done {
    /// What it printed, where it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.out
    }

    /// What it said on stderr, where it ended with `status`.
    #[track_caller]
    pub(crate) fn failed(self, status: i32) -> String {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        self.err
    }
}

/// A command that runs; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
    lines: std::sync::mpsc::Receiver<String>,
    since: Instant,
}

/// Starts a command.
pub(crate) fn start(mut command: Command) -> Running {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (tell, lines) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut err = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        for line in out.lines().map_while(Result::ok) {
            text += &line;
            text.push('\n');
            let _ = tell.send(line);
        }
        text
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    Running { child, out: Some(out), err: Some(err), lines, since: Instant::now() }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn finish(command: Command) -> Done {
    start(command).finish()
}

impl Running {
    /// The next line that it prints.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line of output")
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Done {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.since.elapsed() > PATIENCE {
                let _ = self.child.kill();
                panic!("it hangs; it said:\n{}", self.err.take().unwrap().join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.since.elapsed();
        Done {
            status,
            out: self.out.take().unwrap().join().unwrap(),
            err: self.err.take().unwrap().join().unwrap(),
            took,
        }
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state letter of a process in /proc; `None` where there is no such process.
pub(crate) fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Waits until none of these processes runs; a zombie that nobody has reaped does not run.
#[track_caller]
pub(crate) fn gone(pids: &[String]) {
    let start = Instant::now();
    while pids.iter().any(|pid| !matches!(state(pid), None | Some('Z' | 'X'))) {
        assert!(start.elapsed() < PATIENCE, "one of {pids:?} still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
}
