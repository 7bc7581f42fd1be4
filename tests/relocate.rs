//! `sojourn relocate`: a running process goes to another device on order.
#![cfg(feature = "cli")]

mod common;

use common::{Place, finish, start};

const SOJOURN: &str = env!("CARGO_BIN_EXE_sojourn");

/// Promise: a process that is told to goes to another device, and its job comes to the same end; where it
/// cannot go there it goes on where it was, and the order says why.
#[test]
fn a_process_goes_where_it_is_told() {
    let place = Place::new();
    let order = |pid: &str, device: &str| {
        let mut relocate = place.sojourn(["relocate", "--json", "--pid", pid, device]);
        relocate.env("SOJOURN_SOFT_DEVICES", "2");
        finish(relocate)
    };
    let heat = "heat --size 64x64 --steps 20000 --json";
    let script = format!("echo $$; exec {SOJOURN} {heat}");
    let mut job = place.sojourn(["run", "-n", "2", "--timeout", "100", "--", "sh", "-c", &script]);
    // On a machine that is busy with others a path may seem to have failed; that is no error.
    job.env("SOJOURN_SOFT_DEVICES", "2").env("SOJOURN_LOG", "error");
    let mut job = start(job);
    let pids = [job.line(), job.line()].map(|line| line.split(' ').next_back().unwrap().to_owned());
    let mut moves: Vec<serde_json::Value> = Vec::new();
    for turn in 0.. {
        let (pid, device) = (&pids[turn % 2], ["soft1", "soft0"][turn / 2 % 2]);
        let done = order(pid, device);
        // Before it has opened its device there is nothing to move, or it has not joined yet.
        if done.status.success() && done.out.contains("\"peers\":1") {
            moves.push(serde_json::from_str(&done.out).unwrap());
        }
        if moves.len() == 4 {
            break;
        }
        if job.child.try_wait().unwrap().is_some() {
            panic!("the job has ended after {} moves: {:?}; {done:?}", moves.len(), job.finish());
        }
    }
    for moved in &moves {
        assert_ne!(moved[0]["from"], moved[0]["to"]);
        assert!(moved[0]["blackout_seconds"].as_f64().unwrap() > 0.0);
    }
    let error = order(&pids[0], "soft7").failed(1);
    assert!(error.contains("device \"soft7\" not found; this machine has: soft0"), "{error}");
    let out = job.finish().ok();
    let one = finish(place.sojourn(heat.split(' '))).ok();
    let checksum = |text: &str| {
        let json = &text[text.find('{').unwrap()..];
        serde_json::from_str::<serde_json::Value>(json).unwrap()["checksum"].clone()
    };
    assert_eq!(checksum(&out), checksum(&one));
}

/// Promise: an order that makes no sense says what is wrong with it.
#[test]
fn an_order_that_makes_no_sense_is_refused() {
    let place = Place::new();
    let order = |pid: &str, device: &str| finish(place.sojourn(["relocate", "--pid", pid, device]));
    let error = order("4294967295", "soft0").failed(1);
    assert!(error.contains("/proc/4294967295/environ"), "{error}");
    let own = std::process::id().to_string();
    let error = order(&own, "soft0").failed(1);
    assert!(error.contains(&format!("process {own} is of no job")), "{error}");
    let error = order(&own, &"x".repeat(64)).failed(2);
    assert!(error.contains("between 1 and 63 bytes"), "{error}");
}
