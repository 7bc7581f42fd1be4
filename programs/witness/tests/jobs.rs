//! The witness as a user runs it: several processes under `sojourn run`, over the soft device.

mod common;

use common::{Place, json};
use serde_json::Value;

/// Every kind of every transport, as results name them.
const KINDS: [&str; 13] = [
    "RC SEND",
    "RC SEND_WITH_IMM",
    "RC WRITE",
    "RC WRITE_WITH_IMM",
    "RC READ",
    "RC FETCH_ADD",
    "RC CMP_SWAP",
    "UC SEND",
    "UC SEND_WITH_IMM",
    "UC WRITE",
    "UC WRITE_WITH_IMM",
    "UD SEND",
    "UD SEND_WITH_IMM",
];

/// Messages of each stream.
const MESSAGES: u64 = 150;

/// Checks that every message of a run is accounted for, and that so many moves were made.
fn complete_with(result: &Value, ranks: u64, qps: u64, moves: usize) {
    let of = |key: &str| result[key].as_object().unwrap();
    let sum = |key: &str| of(key).values().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("done"), ranks * (ranks - 1) * qps * MESSAGES, "{result}");
    assert_eq!(sum("done"), sum("checked") + sum("lost"), "{result}");
    assert!(of("lost").keys().all(|kind| !kind.starts_with("RC")), "{result}");
    assert_eq!(result["ranks"], ranks);
    assert_eq!(result["moves"].as_array().unwrap().len(), moves, "{result}");
}

fn complete(result: &Value, ranks: u64, qps: u64) {
    complete_with(result, ranks, qps, 0);
}

/// Promises 1 to 4: while the device of one side is relocated, of the other, and of both at once, no message
/// is lost, repeated, reordered or damaged, and every request completes once, in order. (UC and UD may
/// lose, and do nothing else.)
#[test]
fn every_message_is_accounted_for_while_devices_are_relocated() {
    const MOVES: usize = 25;
    for (mode, seed) in [("sync", "11"), ("async:seed=5,latency_us=20,gbps=20", "12")] {
        for (who, movers) in [("first", 1), ("last", 1), ("all", 2)] {
            let mut place = Place::new();
            place.set("SOJOURN_SOFT_MODE", mode);
            place.set("SOJOURN_SOFT_DEVICES", "2");
            let moves = MOVES.to_string();
            let args = ["--messages", "150", "--max-size", "65536", "--seed", seed, "--json"];
            let moving =
                ["--moves", &moves, "--who", who, "--devices", "soft1,soft0", "--pause-ms", "3"];
            let result = json(&place.job(2, &[&args[..], &moving].concat()));
            // Streams go on until all moves are made.
            let more = result["done"].as_object().unwrap().values().map(|n| n.as_u64().unwrap());
            assert!(more.sum::<u64>() >= 2 * 8 * MESSAGES, "{result}");
            assert_eq!(result["moves"].as_array().unwrap().len(), movers * MOVES, "{mode} {who}");
            for moved in result["moves"].as_array().unwrap() {
                assert!(moved["blackout_ms"].as_f64().unwrap() > 0.0, "{moved}");
            }
        }
    }
}

/// Promise: where every message is kept, and the log overflows all the time, into a file or not, no message is
/// lost, repeated, reordered or damaged, while devices are relocated too.
#[test]
fn every_message_is_accounted_for_where_payloads_are_kept() {
    const MOVES: usize = 10;
    for (mode, spills, seed) in [
        ("sync", true, "21"),
        ("async:seed=8,latency_us=20,gbps=20", true, "22"),
        ("sync", false, "23"),
    ] {
        let mut place = Place::new();
        place.set("SOJOURN_SOFT_MODE", mode);
        place.set("SOJOURN_SOFT_DEVICES", "2");
        place.set("SOJOURN_RETENTION", "payload");
        // A few of the largest messages.
        place.set("SOJOURN_LOG_BYTES", "256K");
        if spills {
            place.set("SOJOURN_SPILL", place.path().to_str().unwrap());
        }
        let moves = MOVES.to_string();
        let args = ["--messages", "150", "--max-size", "65536", "--seed", seed, "--json"];
        let moving =
            ["--moves", &moves, "--who", "all", "--devices", "soft1,soft0", "--pause-ms", "3"];
        let result = json(&place.job(2, &[&args[..], &moving].concat()));
        let done = result["done"].as_object().unwrap().values().map(|n| n.as_u64().unwrap());
        assert!(done.sum::<u64>() >= 2 * 8 * MESSAGES, "{result}");
        assert_eq!(result["moves"].as_array().unwrap().len(), 2 * MOVES, "{mode} {spills}");
    }
}

/// Promises 1 to 4, and that nothing is stuck: the same where nearly everything waits in the windows.
#[test]
fn every_message_is_accounted_for_where_little_may_be_outstanding() {
    for (outstanding, mode) in [
        ("requests=1", "sync"),
        ("qp-requests=3,qp-bytes=20K", "async:seed=8,latency_us=20,gbps=20"),
    ] {
        let mut place = Place::new();
        place.set("SOJOURN_SOFT_MODE", mode);
        place.set("SOJOURN_SOFT_DEVICES", "2");
        place.set("SOJOURN_OUTSTANDING", outstanding);
        let args = ["--messages", "150", "--max-size", "32768", "--json", "--moves", "8"];
        let moving = ["--who", "all", "--devices", "soft1,soft0", "--pause-ms", "3"];
        let result = json(&place.job(2, &[&args[..], &moving].concat()));
        assert_eq!(result["moves"].as_array().unwrap().len(), 16, "{outstanding}: {result}");
        assert!(result["lost"].as_object().unwrap().keys().all(|kind| !kind.starts_with("RC")));
    }
}

/// Guards: over each way in which the soft device executes, every message of every kind arrives
/// as promised, each request completes once, and all ranks end together.
#[test]
fn every_message_of_every_kind_is_accounted_for() {
    for (mode, value, seed) in [
        ("SOJOURN_SOFT_MODE", "sync", "1"),
        ("SOJOURN_SOFT_MODE", "async:seed=3,latency_us=20,gbps=20", "2"),
        ("SOJOURN_SOFT_MODE", "async:seed=4,latency_us=500,gbps=2", "3"),
        ("SOJOURN_SOFT_COPY", "ring", "4"),
    ] {
        let mut place = Place::new();
        place.set(mode, value);
        let args = ["--messages", "150", "--max-size", "32768", "--seed", seed, "--json"];
        let result = json(&place.job(2, &args));
        complete(&result, 2, 8);
        for kind in KINDS {
            assert!(result["done"][kind].as_u64() > Some(0), "{kind} in {mode}={value}: {result}");
        }
    }
}

/// Promise: where the port of a device goes down under one side, or under both, and there is another device,
/// the program sees neither an error nor a lost completion. (Atomics are left out: one whose answer was
/// lost on the way ends with an error, as it must.)
#[test]
fn every_message_is_accounted_for_while_ports_go_down() {
    let mix = "send,send-imm,write,write-imm,read,uc-send,uc-write,ud-send";
    for (mode, who, movers) in
        [("sync", "first", 1), ("async:seed=6,latency_us=20,gbps=20", "all", 2)]
    {
        let mut place = Place::new();
        place.set("SOJOURN_SOFT_MODE", mode);
        place.set("SOJOURN_SOFT_DEVICES", "2");
        let args = ["--messages", "150", "--max-size", "16384", "--mix", mix, "--json"];
        let failing =
            ["--moves", "2", "--who", who, "--devices", "!soft0,!soft1", "--pause-ms", "900"];
        let result = json(&place.job(2, &[&args[..], &failing].concat()));
        assert_eq!(result["moves"].as_array().unwrap().len(), 2 * movers, "{mode}: {result}");
        assert!(result["lost"].as_object().unwrap().keys().all(|kind| !kind.starts_with("RC")));
    }
}

/// Promises 1 to 4, where no packet number is live and peers record how far they have come: devices are
/// relocated under WRITEs of all sizes. Where a port goes down under them, whatever is behind the last
/// record ends with an error, as it must: so WRITEs, and messages of several packets, are left out there.
#[test]
fn every_message_is_accounted_for_by_records() {
    for (mode, who, movers) in
        [("sync", "last", 1), ("async:seed=8,latency_us=20,gbps=20", "all", 2)]
    {
        let mut place = Place::new();
        place.set("SOJOURN_EVIDENCE", "record");
        place.set("SOJOURN_SOFT_MODE", mode);
        place.set("SOJOURN_SOFT_DEVICES", "2");
        let args = ["--messages", "150", "--max-size", "65536", "--seed", "13", "--json"];
        let moving = ["--moves", "10", "--who", who, "--devices", "soft1,soft0", "--pause-ms", "3"];
        let result = json(&place.job(2, &[&args[..], &moving].concat()));
        assert_eq!(result["moves"].as_array().unwrap().len(), movers * 10, "{mode}: {result}");
        let mix = "send,send-imm,write-imm,read,uc-send,uc-write,ud-send";
        let args = ["--messages", "150", "--max-size", "1024", "--mix", mix, "--json"];
        let failing =
            ["--moves", "2", "--who", who, "--devices", "!soft0,!soft1", "--pause-ms", "900"];
        let result = json(&place.job(2, &[&args[..], &failing].concat()));
        assert_eq!(result["moves"].as_array().unwrap().len(), 2 * movers, "{mode}: {result}");
        assert!(result["lost"].as_object().unwrap().keys().all(|kind| !kind.starts_with("RC")));
    }
}

#[test]
fn three_ranks_check_all_pairs() {
    for value in ["sync", "async:seed=9,latency_us=50,gbps=10"] {
        let mut place = Place::new();
        place.set("SOJOURN_SOFT_MODE", value);
        let args = ["--messages", "150", "--max-size", "8192", "--qps", "5", "--json"];
        complete(&json(&place.job(3, &args)), 3, 5);
    }
}

/// Guards: the smallest window and a mix without any receive do not leave both sides waiting.
#[test]
fn small_windows_and_one_sided_mixes_end() {
    for args in [
        &["--window", "2"][..],
        &["--mix", "write,uc-write", "--qps", "4"],
        &["--mix", "read", "--qps", "2"],
        &["--mix", "fetch-add,cmp-swap", "--qps", "3", "--window", "64"],
        &["--mix", "ud-send", "--qps", "2", "--window", "64"],
    ] {
        let common = ["--messages", "150", "--max-size", "4096", "--json"];
        let result = json(&Place::new().job(2, &[&common[..], args].concat()));
        complete(&result, 2, result["qps"].as_u64().unwrap());
    }
}

/// Guards: messages of the largest default size, and streams that end by time.
#[test]
fn large_messages_for_a_given_time() {
    let out = Place::new().job(2, &["--seconds", "0.5", "--qps", "3", "--seed", "5"]).ok();
    assert!(out.contains("[0] completed: ") && out.contains(": ok\n"), "{out}");
}
