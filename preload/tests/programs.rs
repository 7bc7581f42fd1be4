//! Unmodified programs of Debian's `ibverbs-utils` over virtual verbs, on the soft device.

mod common;

use common::{Place, finish, installed, sojourn};
use std::net::TcpListener;
use std::time::Duration;

/// A TCP port that nobody has at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Two ranks of a job that run `program` against each other: rank 0 is the server. They find each
/// other as they do without Sojourn; the client waits until the server listens.
fn pingpong(program: &str, args: &str) {
    if !installed(program) {
        return;
    }
    let port = free_port();
    let script = format!(
        r#"
        if [ "$SOJOURN_RANK" = 0 ]; then
            exec env LD_PRELOAD="$OBJECT" {program} -p {port} {args}
        fi
        tries=0
        until grep -qs ':{port:04X} [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6; do
            tries=$((tries + 1))
            [ $tries -lt 1000 ] || exit 99
            sleep 0.02
        done
        exec env LD_PRELOAD="$OBJECT" {program} -p {port} {args} 127.0.0.1
        "#
    );
    let out = Place::new().job(2, &script).ok();
    let count = |text: &str| out.matches(text).count();
    assert_eq!(count(" iters in "), 2, "{program} {args}: {out}");
    assert_eq!(count("invalid data"), 0, "{program} {args}: {out}");
    // The job's names: each rank has its own LID, and knows that of the other.
    for lid in ["local address:  LID 0x0001", "local address:  LID 0x0002"] {
        assert!(count(lid) >= 1, "{program} {args}: {out}");
    }
}

/// Promise: a program that only looks sees the soft device, outside a job.
#[test]
fn ibv_devices_lists_the_soft_device() {
    if !installed("ibv_devices") {
        return;
    }
    let place = Place::new();
    let out = finish(place.alone("ibv_devices")).ok();
    let line = out.lines().find(|line| line.trim_start().starts_with("soft0")).expect("a line");
    let guid = line.split_whitespace().last().unwrap();
    assert!(guid.len() == 16 && guid.bytes().any(|digit| digit != b'0'), "{out}");

    // Without a choice there is at least the soft device, whatever else the machine has.
    let mut any = place.alone("ibv_devices");
    any.env_remove("SOJOURN_DEVICE").env("SOJOURN_SOFT_DEVICES", "soft0,soft1");
    let out = finish(any).ok();
    assert!(out.contains("soft0") && out.contains("soft1"), "{out}");
}

/// Promise: all that a program can ask of a device has an answer, outside a job and in one; in a job
/// the names are the job's.
#[test]
fn ibv_devinfo_shows_everything() {
    if !installed("ibv_devinfo") {
        return;
    }
    let place = Place::new();
    let mut alone = place.alone("ibv_devinfo");
    alone.arg("-v");
    let alone = finish(alone).ok();
    let inside = place.job(2, r#"exec env LD_PRELOAD="$OBJECT" ibv_devinfo -v"#).ok();
    for out in [&alone, &inside] {
        for part in ["hca_id:\tsoft0", "PORT_ACTIVE (4)", "InfiniBand", "max_qp_wr:", "GID[  0]:"] {
            assert!(out.contains(part), "no {part} in: {out}");
        }
    }
    for (rank, lid) in [(0, 1), (1, 2)] {
        let line = format!("[{rank}] \t\t\tport_lid:\t\t{lid}\n");
        assert!(inside.contains(&line), "no {line:?} in: {inside}");
    }
}

#[test]
fn rc_pingpong_polls() {
    pingpong("ibv_rc_pingpong", "");
}

#[test]
fn rc_pingpong_waits_for_events() {
    pingpong("ibv_rc_pingpong", "-e");
}

/// Promise: what arrives is what was sent, in every size: one byte, one packet and more, a
/// megabyte and more; inline and not; with few receives posted and many; by LID and by GID.
#[test]
fn rc_pingpong_of_every_size_arrives_intact() {
    for args in [
        "-c -s 1 -n 300",
        "-c -s 64 -n 2000 -r 1",
        "-c -s 4097 -n 500 -m 256",
        "-c -s 65536 -n 200 -r 8 -e",
        "-c -s 1048577 -n 20",
        "-c -s 8388608 -n 3 -e",
        "-c -g 0",
        "-c -e -n 1",
    ] {
        pingpong("ibv_rc_pingpong", args);
    }
}

/// Promise: an unmodified program goes from device to device in mid-run, and notices nothing: what
/// arrives is what was sent, whichever end moves.
#[test]
fn rc_pingpong_is_relocated_in_mid_run() {
    if !installed("ibv_rc_pingpong") {
        return;
    }
    for args in ["-c -s 4096", "-c -e -s 20000"] {
        let place = Place::new();
        let port = free_port();
        // Long enough for all moves; the last of them ends it.
        let script = format!(
            r#"
            echo $$ > pid$SOJOURN_RANK
            [ "$SOJOURN_RANK" = 0 ] || sleep 1
            [ "$SOJOURN_RANK" = 0 ] || to=127.0.0.1
            exec env LD_PRELOAD="$OBJECT" ibv_rc_pingpong -p {port} {args} -n 20000 $to
            "#
        );
        let moved = std::thread::scope(|scope| {
            let job = scope.spawn(|| place.job(2, &script));
            let mut moved = Vec::new();
            let ranks = ["pid0", "pid1"].map(|name| place.path(name));
            'job: for device in ["soft1", "soft0"].into_iter().cycle() {
                for rank in &ranks {
                    let Some(pid) = read_number(rank) else {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    if job.is_finished() {
                        break 'job;
                    }
                    let mut relocate = place.command(sojourn());
                    relocate.args(["relocate", "--json", "--pid", &pid, device]);
                    let done = finish(relocate);
                    // Before it has opened its device, there is nothing to move; after its end, nobody.
                    if done.status.success() && done.out.contains("blackout") {
                        moved.push(done.out);
                    }
                }
            }
            let out = job.join().unwrap().ok();
            assert_eq!(out.matches(" iters in ").count(), 2, "{args}: {out}");
            assert_eq!(out.matches("invalid data").count(), 0, "{args}: {out}");
            moved
        });
        let live = moved.iter().filter(|out| out.contains("\"queue_pairs\":1,\"peers\":1")).count();
        assert!(live > 3, "{args}: {live} moves of a connected program: {moved:?}");
    }
}

fn read_number(path: &std::path::Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.trim().parse::<u32>().ok().map(|number| number.to_string())
}

/// Promise: the other kinds of queue pairs, shared receive queues and address handles work too.
#[test]
fn other_pingpongs_run() {
    for (program, args) in [
        ("ibv_uc_pingpong", "-c"),
        ("ibv_uc_pingpong", "-e -g 0"),
        ("ibv_ud_pingpong", "-c"),
        ("ibv_ud_pingpong", "-e -g 0"),
        // With several queue pairs this program leaves while the other still receives.
        ("ibv_srq_pingpong", "-c -q 1"),
        ("ibv_srq_pingpong", "-e -q 1"),
    ] {
        pingpong(program, args);
    }
}

/// Promise: what virtual verbs do not have, a program is told by the verbs' own means.
#[test]
fn programs_that_want_more_are_told() {
    for (program, args, says) in [
        ("ibv_rc_pingpong", "-N", "Couldn't create QP"),
        ("ibv_rc_pingpong", "-t", "completion timestamp"),
        ("ibv_xsrq_pingpong", "", "Couldn't Open the XRC Domain 95"),
    ] {
        if installed(program) {
            let script = format!(r#"exec env LD_PRELOAD="$OBJECT" {program} {args}"#);
            let err = Place::new().job(1, &script).failed();
            assert!(err.contains(says), "{program} {args}: {err}");
        }
    }
}

/// Promise: bad input gives one clear line that names the variable, and the verbs' error.
#[test]
fn bad_input_is_named() {
    if !installed("ibv_devinfo") || !installed("ibv_rc_pingpong") {
        return;
    }
    let place = Place::new();
    let missing = place.path("no-such-key").display().to_string();
    let socket = format!("unix:{}", place.path("no-such-directory").display());
    let member = [
        ("SOJOURN_RANK", "0"),
        ("SOJOURN_SIZE", "1"),
        ("SOJOURN_DIRECTORY", &socket),
        ("SOJOURN_KEY_FILE", &missing),
    ];
    for (program, variables, says) in [
        ("ibv_devices", &[("SOJOURN_DEVICE", "nope")][..], "SOJOURN_DEVICE=nope"),
        ("ibv_devinfo", &[("SOJOURN_DEVICE", "nope")], "SOJOURN_DEVICE=nope"),
        ("ibv_devinfo", &member[..1], "SOJOURN_SIZE"),
        ("ibv_devinfo", &member, "SOJOURN_KEY_FILE="),
        ("ibv_rc_pingpong", &[], "SOJOURN_DIRECTORY is not set"),
    ] {
        let mut command = place.alone(program);
        command.envs(variables.iter().copied());
        let err = finish(command).failed();
        let ours: Vec<&str> = err.lines().filter(|line| line.starts_with("sojourn: ")).collect();
        assert!(ours.len() == 1 && ours[0].contains(says), "{program} {variables:?}: {err}");
        // The program's own line: it got the error of the verb, and no more than that happened.
        assert_eq!(err.lines().count(), 2, "{program} {variables:?}: {err}");
    }
}

/// Promise: one rank is one process at a time; a second is told so, and the first is not disturbed.
/// One after the other is fine.
#[test]
fn two_processes_are_not_the_same_rank() {
    if !installed("ibv_asyncwatch") || !installed("ibv_devinfo") {
        return;
    }
    let script = r#"
        LD_PRELOAD="$OBJECT" stdbuf -oL ibv_asyncwatch >watch & watch=$!
        tries=0
        until grep -q 'async event FD' watch; do
            tries=$((tries + 1))
            [ $tries -lt 1000 ] || exit 99
            sleep 0.02
        done
        LD_PRELOAD="$OBJECT" ibv_devinfo && exit 98
        kill $watch
        wait $watch
        exec env LD_PRELOAD="$OBJECT" ibv_devinfo
    "#;
    let done = Place::new().job(1, script);
    assert!(done.status.success(), "{done:#?}");
    assert!(done.err.contains("already in the job and alive"), "{done:#?}");
    assert!(done.out.contains("hca_id:\tsoft0"), "{done:#?}");
}
