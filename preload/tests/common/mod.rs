//! What the tests share: where things are, and running a command with a deadline in a place of its
//! own.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod library;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No command of these tests takes this long, on a loaded machine either.
const PATIENCE: Duration = Duration::from_secs(120);
/// After this the launcher itself ends the ranks of a job; shorter, so that none outlives its test.
const JOB_SECONDS: &str = "100";
/// Set by `.ci/run`, where nothing may be missing.
const CI: &str = "SOJOURN_CI";

/// The folder where cargo puts what tests link with, and this test.
fn here() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// The shared object, which cargo builds together with the half that this test is linked with.
pub(crate) fn object() -> PathBuf {
    let path = here().join("libsojourn_preload.so");
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// The launcher. `cargo test --workspace` has built it; where only this package is tested it may be
/// missing.
pub(crate) fn sojourn() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = here().parent().unwrap().to_owned();
        let path = folder.join("sojourn");
        if !path.exists() {
            let profile = match folder.file_name().and_then(|name| name.to_str()) {
                Some("debug") | None => "dev",
                Some(profile) => profile,
            };
            let status = Command::new(env!("CARGO"))
                .args(["build", "--package", "sojourn", "--bin", "sojourn", "--profile", profile])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .expect("cargo runs");
            assert!(status.success() && path.exists(), "{} was not built", path.display());
        }
        path
    })
}

/// Whether the programs of Debian's `ibverbs-utils` are installed. Without them a test that needs
/// them says so and passes, since a fresh machine has none; in CI it fails.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let what = format!("{program} is not installed (Debian package ibverbs-utils)");
    assert!(std::env::var_os(CI).is_none(), "{what}, and {CI} is set");
    println!("skipped: {what}");
    false
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// What it printed, where it succeeded and complained of nothing: neither the program, nor
    /// Sojourn, nor the dynamic linker.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success() && self.err.is_empty(), "{self:#?}");
        self.out
    }

    /// What it said on stderr, where it failed, and not by a signal.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert!(self.status.code().is_some_and(|code| code != 0), "{self:#?}");
        self.err
    }
}

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

    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SOJOURN_") {
                command.env_remove(name);
            }
        }
        command
            .env("TMPDIR", self.0.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env("SOJOURN_SOFT_DIR", self.path("soft"))
            .env("SOJOURN_DEVICE", "soft0")
            .env("SOJOURN_SOFT_DEVICES", "2")
            .current_dir(self.0.path());
        command
    }

    /// A program of no job, preloaded.
    pub(crate) fn alone(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.env("LD_PRELOAD", object());
        command
    }

    /// Runs a shell script in every rank of a job. The script finds the object in `$OBJECT`, and
    /// preloads it itself.
    pub(crate) fn job(&self, ranks: u32, script: &str) -> Done {
        let mut command = self.command(sojourn());
        command
            .args(["run", "-n", &ranks.to_string(), "--timeout", JOB_SECONDS])
            .args(["--", "sh", "-c", script])
            .env("OBJECT", object());
        finish(command)
    }
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Killed when dropped, so that no child outlives a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end, or kills it and fails.
#[track_caller]
pub(crate) fn finish(mut command: Command) -> Done {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let out = drain(running.0.stdout.take().unwrap());
    let err = drain(running.0.stderr.take().unwrap());
    let since = Instant::now();
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(since.elapsed() < PATIENCE, "{command:?} hangs");
        std::thread::sleep(Duration::from_millis(5));
    };
    Done { status, out: out.join().unwrap(), err: err.join().unwrap() }
}
