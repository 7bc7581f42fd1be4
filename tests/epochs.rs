//! Epochs of a program in the stores of other nodes: what is lost, and what comes back.
#![cfg(feature = "cli")]

mod common;

use common::{Done, Place, finish, wait_for_epochs};
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::epoch::Member;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Stdio};

const SOJOURN: &str = env!("CARGO_BIN_EXE_sojourn");
const NODES: [&str; 4] = ["a", "b", "c", "d"];

/// Nodes of this test, each a store.
struct Nodes {
    place: Place,
    stores: Vec<(&'static str, Child)>,
}

impl Nodes {
    fn new(names: &[&'static str], bytes: &str) -> Self {
        let place = Place::new();
        let stores = place.path("s");
        std::fs::DirBuilder::new().mode(0o700).create(stores).unwrap();
        key(&place.path("key"), 7);
        let mut nodes = Nodes { place, stores: Vec::new() };
        names.iter().for_each(|name| nodes.start(name, bytes));
        nodes
    }

    fn start(&mut self, name: &'static str, bytes: &str) {
        let listen = self.at(name);
        let args =
            ["store", "--with-parent", "--name", name, "--bytes", bytes, "--listen", &listen];
        let mut command = self.place.sojourn(args.into_iter().chain(["--key-file", "key"]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("store {name} at {listen}, soft0, ")), "{line:?}");
        self.stores.push((name, child));
    }

    fn kill(&mut self, name: &str) {
        let (_, store) = self.stores.iter_mut().find(|(other, _)| *other == name).unwrap();
        store.kill().unwrap();
        store.wait().unwrap();
    }

    fn at(&self, name: &str) -> String {
        format!("unix:{}", self.place.path(&format!("s/{name}")).display())
    }

    /// What ranks are told of them.
    fn told(&self, redundancy: &str) -> String {
        let stores: Vec<_> =
            self.stores.iter().map(|(name, _)| format!("{name}={}", self.at(name))).collect();
        format!(
            "export SOJOURN_STORES={} SOJOURN_STORE_KEY_FILE=key SOJOURN_REDUNDANCY={redundancy} \
             SOJOURN_EPOCH_SECONDS=0.05 SOJOURN_LOG=info;",
            stores.join(",")
        )
    }

    /// Heat on as many ranks as there are nodes, each on one.
    fn heat(&self, redundancy: &str, options: &str, before: &str, args: &str) -> Done {
        let names: Vec<_> = self.stores.iter().map(|(name, _)| *name).collect();
        let options =
            format!("-n {} --timeout 100 --nodes {} {options}", names.len(), names.join(","));
        let told = self.told(redundancy);
        self.place.run(&options, &format!("{told} {before} exec {SOJOURN} heat {args}"))
    }

    fn alone(&self, args: &str) -> String {
        let all = ["heat"].into_iter().chain(args.split(' '));
        finish(self.place.sojourn(all)).ok().trim().to_owned()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, store) in &mut self.stores {
            let _ = store.kill();
            let _ = store.wait();
        }
    }
}

/// Writes a key that only this user reads.
fn key(file: &Path, byte: u8) {
    let private = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    private.unwrap().write_all(&[byte; 32]).unwrap();
}

/// The step that ranks say they are back at, and how many say so.
fn back(done: &Done) -> Vec<u64> {
    let step = |line: &str| {
        let (_, rest) = line.split_once("is back at step ")?;
        rest.split(' ').next()?.parse().ok()
    };
    done.err.lines().filter_map(step).collect()
}

const ARGS: &str = "--size 96x96 --steps 3000 --checksum";

/// Promise: a rank that is killed is restored from a peer's memory into a new process, all go back to the same
/// epoch, and the field is the same bit for bit.
#[test]
fn a_rank_that_is_killed_comes_back_from_the_memory_of_another_node() {
    let nodes = Nodes::new(&NODES, "64M");
    let one = nodes.alone(ARGS);
    let done = nodes.heat("copies:1", "--restarts 1", "", &format!("{ARGS} --recover --kill 2"));
    let steps = back(&done);
    assert!(done.err.contains("rank 2 ended by signal 9 (SIGKILL); starting it anew"), "{done:#?}");
    assert_eq!(done.ok().trim(), format!("[0] {one}"));
    assert!(
        steps.len() == 4 && steps.iter().all(|step| *step == steps[0] && *step > 0),
        "{steps:?}"
    );
}

/// Promise: the same where the store of its node is lost with it, and ranks on other nodes had their only near
/// copies there.
#[test]
fn a_node_that_is_lost_takes_nothing_with_it_of_which_there_is_another_copy() {
    let nodes = Nodes::new(&NODES, "64M");
    let one = nodes.alone(ARGS);
    let lost = nodes.stores[1].1.id();
    // Rank 1 ends the store of its node, before it dies.
    let before = format!(
        "[ $SOJOURN_RANK = 1 ] && mkdir once 2>/dev/null &&
         {{ until [ -e committed ]; do sleep 0.02; done; kill -9 {lost}; kill -9 $$; }} &"
    );
    let args = format!("{ARGS} --recover").replace("3000", "6000");
    let one_long = nodes.alone(&ARGS.replace("3000", "6000"));
    assert_ne!(one, one_long);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let at = |name: &&str| Endpoint::parse(&nodes.at(name)).unwrap();
            let stores: Vec<_> = NODES.iter().map(at).collect();
            let key = JobKey::read(&nodes.place.path("key")).unwrap();
            wait_for_epochs(&stores, &key, Member(1), 2);
            std::fs::write(nodes.place.path("committed"), []).unwrap();
        });
        nodes.heat("copies:2", "--restarts 1", &before, &args)
    });
    let steps = back(&done);
    assert_eq!(done.ok().trim(), format!("[0] {one_long}"));
    assert!(
        steps.len() == 4 && steps.iter().all(|step| *step == steps[0] && *step > 0),
        "{steps:?}"
    );
}

/// Promise: a job that has ended as a whole goes on from its stores when it is started anew.
#[test]
fn a_job_that_is_started_anew_goes_on_where_it_was() {
    let nodes = Nodes::new(&NODES[..2], "64M");
    let one = nodes.alone(ARGS);
    let done = nodes.heat("copies:1", "", "", &format!("{ARGS} --recover --kill 1"));
    assert_eq!(done.status.code(), Some(128 + 9), "{done:#?}");
    let again = nodes.heat("copies:1", "", "", ARGS);
    let steps = back(&again);
    assert_eq!(again.ok().trim(), format!("[0] {one}"));
    assert!(steps.len() == 2 && steps[0] == steps[1] && steps[0] > 0, "{steps:?}");
}

/// Promise: what was committed and is lost is an error, never a quiet start from nothing.
#[test]
fn an_epoch_that_is_lost_is_an_error_that_says_where_it_was() {
    let mut nodes = Nodes::new(&NODES[..3], "64M");
    let done = nodes.heat("copies:1", "", "", &format!("{ARGS} --recover --kill 1"));
    assert_eq!(done.status.code(), Some(128 + 9));
    nodes.kill("a");
    let err = nodes.heat("copies:1", "", "", ARGS).failed(1);
    assert!(err.contains("no epoch can be restored") && err.contains("does not answer"), "{err}");
}

/// Promise: an epoch that finds no room, or no store, stops nobody.
#[test]
fn a_store_that_is_too_small_stops_nobody() {
    let nodes = Nodes::new(&NODES[..2], "64K");
    let one = nodes.alone(ARGS);
    let done = nodes.heat("copies:1", "", "export SOJOURN_LOG=warn;", ARGS);
    assert!(done.err.contains("is given up") && done.err.contains("bytes"), "{done:#?}");
    assert_eq!(done.ok().trim(), format!("[0] {one}"));
}

#[test]
fn what_makes_no_sense_is_one_clear_error() {
    let nodes = Nodes::new(&NODES[..2], "64M");
    let failed = |redundancy: &str, before: &str, args: &str, words: &[&str]| {
        let err = nodes.heat(redundancy, "", before, args).failed(1);
        assert!(words.iter().all(|word| err.contains(word)), "{err}");
    };
    failed("copies:2", "", ARGS, &["copies:2", "nodes"]);
    failed("copies:x", "", ARGS, &["SOJOURN_REDUNDANCY", "copies:x"]);
    failed("copies:1", "export SOJOURN_EPOCH_SECONDS=soon;", ARGS, &["SOJOURN_EPOCH_SECONDS=soon"]);
    failed("copies:1", "export SOJOURN_TRACKING=magic;", ARGS, &["SOJOURN_TRACKING=magic"]);
    // Another plate is other memory.
    let done = nodes.heat("copies:1", "", "", &format!("{ARGS} --recover --kill 1"));
    assert_eq!(done.status.code(), Some(128 + 9));
    failed("copies:1", "", "--size 64x64 --steps 9", &["the epoch is of other memory", "areas"]);
    // Another key than that of the stores: nobody gives it any.
    key(&nodes.place.path("other"), 8);
    let before = "export SOJOURN_STORE_KEY_FILE=other;";
    failed("copies:1", before, ARGS, &["no epoch is found", "store of node a", "leave it out"]);
}

/// Promise: a job does not begin from nothing while a store that may have its epochs does not answer.
#[test]
fn a_store_that_is_silent_at_the_beginning_is_not_passed_over() {
    let mut nodes = Nodes::new(&NODES[..3], "64M");
    nodes.kill("b");
    let err = nodes.heat("copies:1", "", "", ARGS).failed(1);
    assert!(err.contains("store of node b") && err.contains("SOJOURN_STORES"), "{err}");
}
