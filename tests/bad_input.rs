//! What makes no sense is refused: with one clear error, a status that is not 0, and no hang.
#![cfg(feature = "cli")]

mod common;

use common::{Done, Place, finish, start};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// One sentence from the command, and no more.
#[track_caller]
fn refused(done: Done, status: i32, parts: &[&str]) {
    let said = done.failed(status);
    assert!(said.starts_with("sojourn: "), "{said}");
    assert_eq!(said.matches("sojourn: ").count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

fn key(path: &Path, mode: u32, byte: u8) -> String {
    fs::write(path, [byte; 32]).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let place = Place::new();
    for (args, part) in [
        ("run -n 0 -- true", "at least one"),
        ("run -n x -- true", "x"),
        ("run -n -3 -- true", "-3"),
        ("run -n 4294967296 -- true", "4294967296"),
        ("run -n 2", "PROGRAM"),
        ("run -n 4 --ranks 0-4 -- true", "no rank 4"),
        ("run -n 4 --ranks 2-1 -- true", "backwards"),
        ("run -n 4 --ranks 1,1 -- true", "twice"),
        ("run -n 4 --ranks 0,1 -- true", "--listen"),
        ("run -n 2 --ranks 0 --listen 127.0.0.1:1 -- true", "--key-file"),
        ("run -n 2 --join 127.0.0.1:1 --key-file k -- true", "--ranks"),
        ("run -n 2 --timeout -1 -- true", "seconds"),
        ("run -n 2 --timeout nan -- true", "seconds"),
        ("heat --size 0x5", "at least 1"),
        ("heat --size 5", "512x512"),
        ("heat --size 99999x1", "65536"),
        ("heat --steps 0", "0"),
        ("heat --tolerance nan", "from 0"),
        ("nonsense", "nonsense"),
    ] {
        let done = finish(place.sojourn(args.split(' ')));
        refused(done, 2, &[part]);
    }
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::new();
    fs::write(place.path("text"), "").unwrap();
    let short = key(&place.path("short"), 0o600, 1);
    fs::write(&short, "short").unwrap();
    let open = key(&place.path("open"), 0o644, 1);
    for (args, parts) in [
        ("run -n 2 -- no-such-program", ["no-such-program", "not found"].as_slice()),
        ("run -n 2 -- ./no-such-program", &["./no-such-program", "No such file"]),
        ("run -n 2 -- ./text", &["./text", "not executable"]),
        ("run -n 2 -- /", &["not a file"]),
        ("run -n 2 --device rxe7 -- true", &["\"rxe7\" not found", "soft0"]),
        ("run -n 2 --key-file none -- true", &["none", "No such file"]),
        (&format!("run -n 2 --key-file {open} -- true"), &[&open, "0644", "chmod 600"]),
        (&format!("run -n 2 --key-file {short} -- true"), &[&short, "5 bytes"]),
        ("run -n 2 --ranks 0 --listen nowhere --key-file new -- true", &["nowhere", "host:port"]),
        ("run -n 2 --ranks 0 --listen 0.0.0.0:9 --key-file new -- true", &["0.0.0.0:9", "name"]),
        ("devices --device rxe7", &["\"rxe7\" not found", "soft0"]),
        ("heat --input none.png", &["none.png", "No such file"]),
        ("heat --input text", &["text"]),
        ("demo --device rxe7", &["\"rxe7\" not found", "soft0"]),
    ] {
        refused(finish(place.sojourn(args.split(' '))), 1, parts);
    }
    assert!(place.scratch().is_empty());
}

#[test]
fn a_taken_port_is_named() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let key = key(&place.path("key"), 0o600, 1);
    let args = ["run", "-n", "2", "--ranks", "0", "--listen", &at, "--key-file", &key, "true"];
    refused(finish(place.sojourn(args)), 1, &[&at, "taken"]);
}

#[test]
fn a_key_that_does_not_match_is_found_before_anything_starts() {
    let place = Place::new();
    let (right, wrong) = (key(&place.path("right"), 0o600, 1), key(&place.path("wrong"), 0o600, 2));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let script = "echo ready; exec sleep 1000";
    let host = start(place.sojourn([
        "run",
        "-n",
        "2",
        "--ranks",
        "0",
        "--listen",
        &free,
        "--key-file",
        &right,
        "sh",
        "-c",
        script,
    ]));
    assert_eq!(host.line(), "[0] ready");
    let join = |key: &str| {
        finish(place.sojourn([
            "run",
            "-n",
            "2",
            "--ranks",
            "1",
            "--join",
            &free,
            "--key-file",
            key,
            "echo",
            "started",
        ]))
    };
    let done = join(&wrong);
    assert_eq!(done.out, "");
    refused(done, 1, &["key", &wrong, "does not match", &free]);
    assert_eq!(join(&right).ok(), "[1] started\n");
}

#[test]
fn too_few_descriptors_are_found_before_anything_starts() {
    let place = Place::new();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n 40; exec \"$0\" run -n 4 -- echo started"])
        .arg(env!("CARGO_BIN_EXE_sojourn"));
    place.dress(&mut shell);
    let done = finish(shell);
    assert_eq!(done.out, "");
    refused(done, 1, &["file descriptors", "40", "ulimit -n"]);
}

#[test]
fn a_rank_without_descriptors_says_so_and_the_job_ends() {
    let place = Place::new();
    let script = format!("ulimit -n 7; exec {} heat --size 64x64", env!("CARGO_BIN_EXE_sojourn"));
    let said = place.run("-n 2", &script).failed(1);
    assert!(said.contains("descriptors") || said.contains("Too many open files"), "{said}");
}

#[test]
fn a_plate_that_cannot_be_cut_is_refused_by_every_rank() {
    let place = Place::new();
    let sojourn = env!("CARGO_BIN_EXE_sojourn");
    let said = place.run("-n 5", &format!("exec {sojourn} heat --size 2x2 --steps 1")).failed(1);
    assert!(said.contains("cannot be cut into 5 blocks"), "{said}");
}
