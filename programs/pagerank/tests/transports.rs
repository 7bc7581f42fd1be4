//! PageRank as a user runs it: several processes, over verbs and over TCP.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const PAGERANK: &str = env!("CARGO_BIN_EXE_pagerank");

/// The launcher, which stands beside our own program. `cargo test --workspace` has built it; where
/// only this package is tested it may be missing.
fn sojourn() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(find_or_build)
}

fn find_or_build() -> PathBuf {
    let path = Path::new(PAGERANK).with_file_name("sojourn");
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

/// Runs PageRank on `ranks` processes.
fn job(ranks: usize, args: &[&str]) -> Output {
    Command::new(sojourn())
        .args(["run", "-n", &ranks.to_string(), "--timeout", "120", "--", PAGERANK])
        .args(args)
        .output()
        .unwrap()
}

/// What follows `name: ` in the output of a run that ended well.
fn value(output: &Output, name: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    let start = format!("{name}: ");
    let line = text.lines().find_map(|line| line.split_once(&start));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}\n{errors}")).1.to_owned()
}

/// Guards: the engine's result does not depend on what carries its messages, nor on how many
/// processes and threads compute it.
#[test]
fn verbs_tcp_and_one_process_compute_the_same_ranks_to_the_last_bit() {
    let graph = ["--graph", "random:2000,9000", "--iterations", "12", "--check"];
    let alone = Command::new(PAGERANK).args(graph).output().unwrap();
    let expected = value(&alone, "checksum");
    for (ranks, workers, transport) in
        [(3, "1", "verbs"), (3, "1", "tcp"), (2, "2", "verbs"), (4, "1", "verbs")]
    {
        let more = ["--transport", transport, "--workers", workers];
        let output = job(ranks, &[&graph[..], &more[..]].concat());
        assert_eq!(value(&output, "check"), "ok");
        assert_eq!(value(&output, "checksum"), expected, "{ranks} ranks over {transport}");
    }
}

#[test]
fn a_file_of_edges_is_ranked_and_written_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (graph, ranks) = (dir.path().join("graph"), dir.path().join("ranks"));
    std::fs::write(&graph, "# hub and spokes\na hub\nb hub\nc hub\n").unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let output = job(2, &["--graph", &path(&graph), "--output", &path(&ranks), "--check"]);
    assert_eq!(value(&output, "check"), "ok");
    let first = String::from_utf8_lossy(&output.stdout).lines().nth(1).unwrap().to_owned();
    assert!(first.contains("1 ") && first.ends_with("hub"), "{first}");
    let written = std::fs::read_to_string(&ranks).unwrap();
    let names: Vec<_> = written.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(names, ["a", "b", "c", "hub"]);
}

#[test]
fn what_cannot_be_read_is_named_and_the_job_fails() {
    for (graph, message) in [
        ("/no/such/file", "pagerank: reading /no/such/file: No such file"),
        ("random:12", "--graph random:12: expected random:NODES,EDGES"),
        (concat!("dpkg:", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "is not \"Field: value\""),
    ] {
        let output = job(2, &["--graph", graph]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(message), "{graph}: {errors}");
    }
}
