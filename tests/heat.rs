//! Heat, and the demo that shows it.
#![cfg(feature = "cli")]

mod common;

use common::{Place, finish, gone, start};
use std::fs::File;
use std::io::BufReader;
use std::net::TcpListener;
use std::path::Path;

const SOJOURN: &str = env!("CARGO_BIN_EXE_sojourn");

/// What rank 0 of `ranks` prints.
fn heat(place: &Place, ranks: u32, args: &str) -> String {
    let out =
        place.run(&format!("-n {ranks} --timeout 100"), &format!("exec {SOJOURN} heat {args}"));
    let out = out.ok();
    let lines: Vec<&str> = out.lines().map(|line| line.strip_prefix("[0] ").unwrap()).collect();
    lines.join("\n")
}

fn alone(place: &Place, args: &str) -> String {
    finish(place.sojourn(["heat"].into_iter().chain(args.split(' ')))).ok().trim().to_owned()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_field_is_the_same_bit_for_bit_for_any_number_of_ranks() {
    let place = Place::new();
    let args = "--size 61x47 --steps 64 --checksum";
    let one = alone(&place, args);
    assert_eq!(one.len(), 16, "{one}");
    assert_ne!(one, alone(&place, "--size 61x47 --steps 63 --checksum"));
    for ranks in [1, 2, 3, 4, 5, 7] {
        assert_eq!(heat(&place, ranks, args), one, "{ranks} ranks");
    }
}

/// Promise: ranks go to other devices in mid-run, and the field stays the same, bit for bit.
#[test]
fn it_is_the_same_while_ranks_are_relocated() {
    let place = Place::new();
    let args = "--size 96x96 --steps 3000 --json --progress";
    let one = json(alone(&place, args).lines().last().unwrap());
    for mode in ["SOJOURN_SOFT_MODE=sync", "SOJOURN_SOFT_MODE=async:seed=3,latency_us=20,gbps=10"] {
        let command = format!(
            "export SOJOURN_SOFT_DEVICES=2 {mode}; \
             exec {SOJOURN} heat {args} --relocate soft1,soft0,soft1,soft0"
        );
        let out = place.run("-n 3 --timeout 100", &command).ok();
        let moves: Vec<_> = out.lines().filter_map(|line| line.split_once("moved ")).collect();
        assert!(moves.len() > 3, "{mode}: {} moves\n{out}", moves.len());
        for (_, moved) in moves {
            let moved = json(moved);
            let phases = moved["phases"].as_array().unwrap();
            assert_eq!(phases.len(), 5, "{moved}");
            assert!(moved["blackout_seconds"].as_f64().unwrap() > 0.0);
        }
        let report = out.lines().find_map(|line| line.strip_prefix("[0] {")).unwrap();
        let report = json(&format!("{{{report}"));
        assert_eq!(report["checksum"], one["checksum"], "{mode}");
    }
}

/// Promise: a rank that is killed is replaced by another process, and the field stays the same.
#[test]
fn it_is_the_same_where_ranks_are_killed_and_others_take_their_places() {
    let place = Place::new();
    let args = "--size 96x96 --steps 6000 --checksum";
    let one = alone(&place, args);
    // Each of these ranks is killed once, one after the other.
    for (i, killed) in ["0", "1", "2 0", "1 2 0"].into_iter().enumerate() {
        let command = format!(
            "tenths=0
             for rank in {killed}; do
                tenths=$((tenths + 3))
                [ $rank = $SOJOURN_RANK ] && mkdir killed-{i}-$rank 2>/dev/null &&
                    {{ sleep 0.$tenths; kill -9 $$; }} &
             done
             exec {SOJOURN} heat {args} --recover"
        );
        let done = place.run("-n 3 --restarts 3 --timeout 100", &command);
        let died = done.err.matches("starting it anew").count();
        assert_eq!(done.ok().trim(), format!("[0] {one}"), "{killed}");
        assert_eq!(died, killed.split(' ').count());
    }
}

/// Promise: where a device fails under a rank that has another, the program notices nothing; where it may
/// not go there, it gets the error that verbs give.
#[test]
fn it_is_the_same_where_a_device_fails() {
    let place = Place::new();
    let args = "--size 96x96 --steps 2000 --json --progress";
    let one = json(alone(&place, args).lines().last().unwrap());
    for (rank, more) in [(0, ""), (1, "--relocate soft1"), (2, "--relocate soft1,soft0")] {
        let command = format!(
            "export SOJOURN_SOFT_DEVICES=2 SOJOURN_LOG=error; \
             exec {SOJOURN} heat {args} --fail {rank} {more}"
        );
        let out = place.run("-n 3 --timeout 100", &command).ok();
        let moves = out.lines().filter_map(|line| line.split_once("moved ").map(|it| json(it.1)));
        assert!(moves.clone().any(|moved| moved["failed"] == true), "{out}");
        let report = out.lines().find_map(|line| line.strip_prefix("[0] {")).unwrap();
        assert_eq!(json(&format!("{{{report}"))["checksum"], one["checksum"], "rank {rank}");
    }
    let command = format!(
        "export SOJOURN_SOFT_DEVICES=2 SOJOURN_FAILOVER=off; exec {SOJOURN} heat {args} --fail 1"
    );
    let done = place.run("-n 3 --timeout 100", &command);
    assert!(!done.status.success());
    assert!(done.err.contains("RETRY_EXC_ERR"), "{}", done.err);
}

#[test]
fn without_virtual_verbs_it_is_the_same_too() {
    let place = Place::new();
    let args = "--size 40x40 --steps 100 --checksum";
    assert_eq!(heat(&place, 3, &format!("{args} --raw")), alone(&place, args));
}

#[test]
fn it_is_the_same_where_messages_are_long_on_their_way_or_go_another_way() {
    let place = Place::new();
    let args = "--size 40x40 --steps 100 --checksum";
    let one = alone(&place, args);
    for mode in [
        "SOJOURN_SOFT_MODE=async:seed=1,latency_us=50,gbps=10",
        "SOJOURN_SOFT_MODE=async:seed=2,latency_us=0,gbps=0.5",
        "SOJOURN_SOFT_COPY=ring",
    ] {
        let done = place.run("-n 4", &format!("export {mode}; exec {SOJOURN} heat {args}"));
        assert_eq!(done.ok(), format!("[0] {one}\n"), "{mode}");
    }
}

#[test]
fn the_step_at_which_it_stops_does_not_depend_on_the_number_of_ranks() {
    let place = Place::new();
    let args = "--size 48x32 --steps 100000 --tolerance 1e-3 --json";
    let one = json(&alone(&place, args));
    let steps = one["steps"].as_u64().unwrap();
    assert!(steps > 8 && steps < 100_000, "{one}");
    assert!(one["residual"].as_f64().unwrap() <= 1e-3, "{one}");
    for ranks in [2, 3, 4] {
        let many = json(&heat(&place, ranks, args));
        for what in ["steps", "residual", "checksum"] {
            assert_eq!(many[what], one[what], "{what} of {ranks} ranks");
        }
        assert_eq!(many["ranks"], ranks);
    }
}

#[test]
fn thin_plates_and_single_cells_work() {
    let place = Place::new();
    for (size, ranks) in [("1x1", 1), ("1x7", 4), ("7x1", 7), ("2x2", 4), ("3x1", 2)] {
        let args = format!("--size {size} --steps 20 --checksum");
        assert_eq!(heat(&place, ranks, &args), alone(&place, &args), "{size} on {ranks}");
    }
}

fn picture(path: &Path) -> (u32, u32) {
    let reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

#[test]
fn it_starts_from_a_picture_and_writes_one() {
    let place = Place::new();
    let input = place.path("in.png");
    let mut encoder = png::Encoder::new(File::create(&input).unwrap(), 50, 30);
    encoder.set_color(png::ColorType::Grayscale);
    let pixels: Vec<u8> = (0..50 * 30).map(|i| (i * 7 % 251) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();

    let args = "--input in.png --steps 64 --output out.png --checksum";
    let one = alone(&place, args);
    assert_eq!(picture(&place.path("out.png")), (50, 30));
    let first = std::fs::read(place.path("out.png")).unwrap();
    std::fs::remove_file(place.path("out.png")).unwrap();
    assert_eq!(heat(&place, 4, args), one);
    assert_eq!(std::fs::read(place.path("out.png")).unwrap(), first);
    assert_ne!(one, alone(&place, "--size 50x30 --steps 64 --checksum"));
}

#[test]
fn ranks_that_were_asked_for_different_things_say_so() {
    let place = Place::new();
    let script = format!("exec {SOJOURN} heat --size 32x32 --steps $((10 + SOJOURN_RANK))");
    let said = place.run("-n 2", &script).failed(1);
    assert!(said.contains("another plate, number of steps or tolerance"), "{said}");
}

#[test]
fn a_rank_that_is_killed_ends_the_job_at_once() {
    let place = Place::new();
    let script = format!("echo $$; exec {SOJOURN} heat --size 64x64 --steps 1000000000 --progress");
    let job = start(place.sojourn(["run", "-n", "3", "--", "sh", "-c", &script]));
    let mut pids = vec![String::new(); 3];
    // All have joined, and computed, when rank 0 tells of its progress.
    loop {
        let line = job.line();
        let (rank, text) = (line[1..2].parse::<usize>().unwrap(), &line[4..]);
        if text.starts_with("progress") {
            break;
        }
        pids[rank] = text.to_owned();
    }
    let killed =
        std::process::Command::new("kill").args(["-s", "KILL", &pids[1]]).status().unwrap();
    assert!(killed.success());
    let said = job.finish().failed(137);
    assert!(said.contains("rank 1 ended by signal 9 (SIGKILL)"), "{said}");
    gone(&pids);
    assert!(place.scratch().is_empty());
}

#[test]
fn two_launchers_make_one_job() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let heat = ["--key-file", "key", "--", SOJOURN, "heat", "--size", "33x21", "--steps", "50"];
    let host = ["run", "-n", "3", "--ranks", "0,2", "--listen", &free].into_iter().chain(heat);
    let host = start(place.sojourn(host.chain(["--checksum"])));
    // The guest waits for its host, but not for its key.
    while !place.path("key").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let guest = ["run", "-n", "3", "--ranks", "1", "--join", &free].into_iter().chain(heat);
    let guest = start(place.sojourn(guest.chain(["--checksum"])));
    assert_eq!(guest.finish().ok(), "");
    let one = alone(&place, "--size 33x21 --steps 50 --checksum");
    assert_eq!(host.finish().ok(), format!("[0] {one}\n"));
}

#[test]
fn the_demo_is_quiet_in_a_pipe_writes_its_picture_and_ends_with_ok() {
    let place = Place::new();
    let done = finish(place.sojourn(["demo", "--steps", "40", "--output", "plate.png"]));
    assert_eq!(done.err, "");
    let out = done.ok();
    assert!(out.ends_with("\ndemo: ok\n"), "{out}");
    let path = place.path("plate.png");
    assert!(out.contains(path.to_str().unwrap()), "{out}");
    assert_eq!(picture(&path), (512, 512));
    assert!(place.scratch().is_empty());
}

#[test]
fn the_demo_speaks_json() {
    let place = Place::new();
    let out = finish(place.sojourn(["demo", "--steps", "20", "--json"])).ok();
    let shown = json(&out);
    assert_eq!(shown["ok"], true);
    assert_eq!(shown["job"]["ranks"], 4);
    assert_eq!(shown["job"]["device"], "soft0");
    assert_eq!(shown["job"]["checksum"], shown["alone"]["checksum"]);
    assert!(shown["job"]["bytes"].as_u64().unwrap() > 0);
}

#[test]
fn devices_lists_soft0() {
    let place = Place::new();
    let text = finish(place.sojourn(["devices", "-v"])).ok();
    assert!(text.contains("packet number") && text.contains("live"), "{text}");
    assert!(text.contains("soft0\n") && text.contains("InfiniBand"), "{text}");
    let all = json(&finish(place.sojourn(["devices", "--json"])).ok());
    let soft = all.as_array().unwrap().iter().find(|device| device["name"] == "soft0").unwrap();
    assert_eq!(soft["kind"], "soft");
    let port = &soft["ports"][0];
    assert_eq!((&port["state"], &port["link_layer"]), (&"ACTIVE".into(), &"InfiniBand".into()));
    assert!(port["lid"].as_u64().unwrap() > 0 && port["active_mtu"].as_u64().unwrap() >= 256);
}
