//! Epochs whose redundancy is parity: heat, of which nodes are lost.
#![cfg(feature = "cli")]

mod common;

use common::{PATIENCE, Place, Running, finish, start, wait_for_epochs};
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::parity::member_of;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::Instant;

const SOJOURN: &str = env!("CARGO_BIN_EXE_sojourn");
const HEAT: &str = "--size 96x96 --steps 6000 --checksum";

/// Nodes, each with a store.
struct Nodes {
    place: Place,
    key: JobKey,
    stores: Vec<Option<Running>>,
}

impl Nodes {
    fn new(many: usize) -> Nodes {
        let place = Place::new();
        DirBuilder::new().mode(0o700).create(place.path("s")).unwrap();
        let key = JobKey::generate().unwrap();
        key.write(&place.path("key")).unwrap();
        let stores = (0..many).map(|node| {
            let args = ["store", "--bytes", "256M", "--key-file", "key"].map(str::to_owned);
            let own = ["--name", &format!("n{node}"), "--listen"].map(str::to_owned);
            let at = at(&place, node).to_string();
            let store = start(place.sojourn(args.into_iter().chain(own).chain([at])));
            store.line();
            Some(store)
        });
        let stores = stores.collect();
        Nodes { place, key, stores }
    }

    /// Heat on the first of them, one rank each.
    fn heat(&self, ranks: usize, scheme: &str, restarts: u32) -> Running {
        let stores = (0..self.stores.len()).map(|i| format!("n{i}={}", at(&self.place, i)));
        let stores = stores.collect::<Vec<_>>().join(",");
        let script = format!(
            "echo $$ > pid.$SOJOURN_RANK
             export SOJOURN_STORES={stores} SOJOURN_STORE_KEY_FILE=key SOJOURN_REDUNDANCY={scheme}
             export SOJOURN_EPOCH_SECONDS=0.1 SOJOURN_NODE=n$SOJOURN_RANK SOJOURN_LOG=sojourn=info
             exec {SOJOURN} heat {HEAT} --recover"
        );
        let options = format!("-n {ranks} --restarts {restarts} --timeout 100");
        let args = ["run"].into_iter().chain(options.split(' '));
        start(self.place.sojourn(args.chain(["--", "sh", "-c", &script])))
    }

    /// Waits until so many epochs are noted as committed by a store of parity.
    fn committed(&self, count: u64) {
        let stores: Vec<_> = (0..self.stores.len()).map(|node| at(&self.place, node)).collect();
        wait_for_epochs(&stores, &self.key, member_of(0, 0), count);
    }

    /// Their stores are gone, and their ranks, if they have any: all at the same time as far as the others can tell, which
    /// stand still meanwhile. Otherwise they may have put their images elsewhere between one loss and the next.
    fn kill(&mut self, nodes: &[usize]) {
        self.signal("STOP", &(0..self.stores.len()).collect::<Vec<_>>());
        for node in nodes {
            let mut store = self.stores[*node].take().unwrap();
            store.child.kill().unwrap();
            store.child.wait().unwrap();
        }
        self.signal("KILL", nodes);
        let rest: Vec<_> = (0..self.stores.len()).filter(|node| !nodes.contains(node)).collect();
        self.signal("CONT", &rest);
    }

    /// To the ranks of these nodes; not every node has one.
    fn signal(&self, signal: &str, nodes: &[usize]) {
        for node in nodes {
            if let Ok(pid) = std::fs::read_to_string(self.place.path(&format!("pid.{node}"))) {
                let mut kill = std::process::Command::new("kill");
                let sent = kill.args(["-s", signal, pid.trim()]).status();
                assert!(sent.unwrap().success(), "{signal} to rank {node}");
            }
        }
    }
}

fn at(place: &Place, node: usize) -> Endpoint {
    Endpoint::Unix(place.path(&format!("s/{node}")))
}

/// The field of a run that nothing happens to.
fn alone() -> String {
    let place = Place::new();
    finish(place.sojourn(["heat"].into_iter().chain(HEAT.split(' ')))).ok().trim().to_owned()
}

/// Promise: as many nodes as the scheme says may be lost with their ranks and stores, and the field is the same,
/// from the last epoch on and not from the beginning.
#[test]
fn heat_survives_the_loss_of_nodes_within_the_promise() {
    let field = alone();
    for (nodes, scheme, lost) in [(4, "xor:3", &[1][..]), (5, "rs:3+2", &[0, 2])] {
        let mut nodes = Nodes::new(nodes);
        let run = nodes.heat(3, scheme, 6);
        nodes.committed(3);
        nodes.kill(lost);
        let done = run.finish();
        let back = done.err.contains("is back at step");
        assert!(back && !done.err.contains("is back at step 0 "), "{scheme}: {}", done.err);
        assert_eq!(done.ok().trim(), format!("[0] {field}"), "{scheme}");
    }
}

/// Promise: what is beyond the scheme is an error that names each share that is missing.
#[test]
fn heat_says_what_is_missing_beyond_the_promise() {
    let mut nodes = Nodes::new(4);
    let run = nodes.heat(3, "xor:3", 1);
    nodes.committed(2);
    nodes.kill(&[1, 3]);
    let done = run.finish();
    assert!(!done.status.success(), "{done:?}");
    let says = "of the 4 shares of group 0, 2 are missing, and xor:3 makes up for 1";
    assert!(done.err.contains(says), "{}", done.err);
    for node in [1, 3] {
        assert!(done.err.contains(&format!("/s/{node}\" does not answer)")), "{}", done.err);
    }
}

/// Promise: `sojourn snapshots` lists shares of parity with the group that they are of, shows where each lies, and checks
/// every byte of them, of a job that runs.
#[test]
fn shares_of_parity_are_listed_shown_and_verified() {
    let nodes = Nodes::new(4);
    let run = nodes.heat(3, "xor:3", 0);
    nodes.committed(2);
    let stores = (0..4).map(|i| at(&nodes.place, i).to_string()).collect::<Vec<_>>().join(",");
    let ask = |what: &str, more: &[&str]| {
        let all = ["snapshots", what, "--store", &stores, "--key-file", "key"];
        finish(nodes.place.sojourn(all.into_iter().chain(more.iter().copied())))
    };
    let listed = ask("list", &[]).ok();
    assert!(listed.contains("parity 0 of group 0: "), "{listed}");
    // What the job overwrites meanwhile says nothing: so until a share was read as a whole, between two epochs.
    let until = Instant::now() + PATIENCE;
    loop {
        let found: serde_json::Value =
            serde_json::from_str(&ask("verify", &["--json"]).ok()).unwrap();
        let shares = found["shares"].as_array().unwrap();
        assert!(
            shares.iter().all(|share| (&share["group"], &share["share"]) == (&0.into(), &0.into()))
        );
        let sound = shares.iter().find(|share| share["outcome"] == "sound");
        if let Some(sound) = sound {
            assert_eq!(sound["processes"].as_array().unwrap().len(), 3, "{found}");
            break;
        }
        assert!(Instant::now() < until, "{found}");
    }
    while !ask("show", &[]).out.contains("parity 0 of group 0 in store n") {
        assert!(Instant::now() < until, "an epoch is shown without its parity");
    }
    run.finish().ok();
}
