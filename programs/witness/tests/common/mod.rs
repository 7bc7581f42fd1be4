//! Running the witness under the launcher, with a deadline, in a place of its own.
#![allow(dead_code, reason = "each test file uses a part of it")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const WITNESS: &str = env!("CARGO_BIN_EXE_witness");

/// Seconds that no job of these tests takes, on a loaded machine either.
const TIMEOUT: &str = "60";

/// The launcher, which stands beside our own program. `cargo test --workspace` has built it; where
/// only this package is tested it may be missing.
fn sojourn() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(find_or_build)
}

fn find_or_build() -> PathBuf {
    let path = Path::new(WITNESS).with_file_name("sojourn");
    if !path.exists() {
        let profile = match path.parent().and_then(Path::file_name).and_then(|name| name.to_str()) {
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
}

/// A directory for everything that a job leaves behind, so that tests do not see each other.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    more: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn new() -> Self {
        // Short, since it holds unix sockets.
        let dir = tempfile::Builder::new().prefix("sjw").tempdir_in("/tmp").unwrap();
        Place { dir, more: Vec::new() }
    }

    /// The directory.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.dir.path().to_owned()
    }

    /// Sets a variable of the environment.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.more.push((name.to_owned(), value.to_owned()));
    }

    /// Runs the witness on `ranks` processes.
    pub(crate) fn job(&self, ranks: usize, args: &[&str]) -> Done {
        let mut command = Command::new(sojourn());
        for name in ["SOJOURN_RANK", "SOJOURN_SIZE", "SOJOURN_DIRECTORY", "SOJOURN_KEY_FILE"] {
            command.env_remove(name);
        }
        let output = command
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", self.dir.path())
            .env("SOJOURN_SOFT_DIR", self.dir.path().join("soft"))
            .env("SOJOURN_DEVICE", "soft0")
            .envs(self.more.iter().map(|(name, value)| (name, value)))
            .args(["run", "-n", &ranks.to_string(), "--timeout", TIMEOUT, "--", WITNESS])
            .args(args)
            .output()
            .unwrap();
        Done(output)
    }
}

/// A job that has ended.
pub(crate) struct Done(Output);

impl Done {
    /// What it printed, where it succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> String {
        assert!(self.0.status.success(), "{}\n{}", self.0.status, self.errors());
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// What it said on stderr, where it ended with `status`.
    #[track_caller]
    pub(crate) fn failed(&self, status: i32) -> String {
        assert_eq!(self.0.status.code(), Some(status), "{}", self.errors());
        self.errors()
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

/// The result that rank 0 prints with `--json`.
#[track_caller]
pub(crate) fn json(done: &Done) -> Value {
    let out = done.ok();
    let line = out.strip_prefix("[0] ").unwrap_or_else(|| panic!("no line of rank 0: {out}"));
    assert_eq!(line.lines().count(), 1, "{out}");
    serde_json::from_str(line).unwrap()
}
