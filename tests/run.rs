//! `sojourn run`, as its user sees it.
#![cfg(feature = "cli")]

mod common;

use common::{Place, finish, gone, start};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

#[test]
fn every_line_comes_whole_behind_its_rank_and_on_its_stream() {
    let script = r#"
        i=0
        while [ $i -lt 50 ]; do
            printf "a line "; printf "in %s" "$SOJOURN_RANK/$SOJOURN_SIZE"; echo " parts $i"
            i=$((i+1))
        done
        echo "complaint of $SOJOURN_RANK" >&2
        printf "unterminated"
    "#;
    let done = Place::new().run("-n 3", script);
    assert!(done.status.success(), "{done:#?}");
    for rank in 0..3 {
        let prefix = format!("[{rank}] ");
        let mine: Vec<&str> =
            done.out.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let mut expected: Vec<String> =
            (0..50).map(|i| format!("a line in {rank}/3 parts {i}")).collect();
        expected.push("unterminated".to_owned());
        assert_eq!(mine, expected);
        assert!(done.err.contains(&format!("[{rank}] complaint of {rank}\n")));
    }
    assert_eq!(done.out.lines().count(), 3 * 51);
    assert_eq!(done.err.lines().count(), 3);
}

#[test]
fn the_status_of_the_first_rank_that_fails_is_passed_on_and_the_rest_is_ended() {
    let place = Place::new();
    let done = place.run("-n 3", "[ $SOJOURN_RANK = 1 ] && exit 3; exec sleep 1000");
    let said = done.failed(3);
    assert!(said.contains("rank 1 ended with status 3; ending the other 2 ranks"), "{said}");
    assert!(place.scratch().is_empty());
}

#[test]
fn a_rank_that_dies_by_a_signal_is_reported_with_it() {
    let done = Place::new().run("-n 3", "[ $SOJOURN_RANK = 2 ] && kill -SEGV $$; exec sleep 1000");
    let said = done.failed(128 + 11);
    assert!(said.contains("rank 2 ended by signal 11 (SIGSEGV)"), "{said}");
}

/// Promise: a rank that dies by a signal is started anew as often as was said, and not once more.
#[test]
fn a_rank_that_dies_by_a_signal_is_started_anew() {
    let place = Place::new();
    let script = "echo life >> lives; echo rank $SOJOURN_RANK; \
        [ $SOJOURN_RANK = 0 ] || [ $(wc -l < lives) -ge 5 ] || { sleep 0.2; kill -9 $$; }; \
        until [ $(wc -l < lives) -ge 5 ]; do sleep 0.01; done; echo over";
    let done = place.run("-n 2 --restarts 3", script);
    let err = done.err.clone();
    let out = done.ok();
    assert_eq!(out.matches("[1] rank 1").count(), 4, "{out}");
    assert_eq!((out.matches("[0] over").count(), out.matches("[1] over").count()), (1, 1), "{out}");
    assert_eq!(err.matches("rank 1 ended by signal 9 (SIGKILL); starting it anew").count(), 3);
    let err = place.run("-n 2 --restarts 2", "[ $SOJOURN_RANK = 0 ] || kill -9 $$; sleep 9");
    assert!(err.failed(137).contains("rank 1 ended by signal 9 (SIGKILL); ending the other rank"));
    // Any other end is one.
    let done = place.run("-n 2 --restarts 2", "[ $SOJOURN_RANK = 0 ] || exit 3; sleep 9");
    assert!(!done.failed(3).contains("anew"));
}

#[test]
fn a_death_by_a_signal_counts_before_the_failures_that_it_brings_about() {
    // Rank 0 fails first; but rank 1 was dying then, as a process whose connections close before
    // its end is told.
    let place = Place::new();
    let script = "[ $SOJOURN_RANK = 0 ] && { touch failed; exit 1; }
                  [ $SOJOURN_RANK = 1 ] && { while [ ! -e failed ]; do :; done; kill -KILL $$; }
                  exec sleep 1000";
    let said = place.run("-n 3", script).failed(137);
    assert!(said.contains("rank 1 ended by signal 9 (SIGKILL)"), "{said}");
}

#[test]
fn a_rank_that_does_not_want_to_end_is_killed_with_all_that_it_started() {
    let place = Place::new();
    let script = r#"
        if [ $SOJOURN_RANK = 0 ]; then
            while [ ! -e ready ]; do sleep 0.05; done
            exit 5
        fi
        trap "" TERM
        sleep 1000 &
        echo $$; echo $!
        touch ready
        while true; do sleep 1000; done
    "#;
    let done = place.run("-n 2", script);
    let pids: Vec<String> = done.out.lines().map(|line| line[4..].to_owned()).collect();
    assert_eq!(pids.len(), 2, "{done:#?}");
    done.failed(5);
    gone(&pids);
}

#[test]
fn a_stopped_rank_is_ended_too() {
    let place = Place::new();
    let script = "[ $SOJOURN_RANK = 0 ] && { while [ ! -e ready ]; do sleep 0.05; done; exit 6; }
                  touch ready; kill -STOP $$; sleep 1000";
    place.run("-n 2", script).failed(6);
}

#[test]
fn no_rank_is_reaped_before_the_whole_job_has_ended() {
    let script = r#"
        if [ $SOJOURN_RANK = 0 ]; then echo $$ > tmp; mv tmp pid; exit; fi
        while [ ! -e pid ]; do sleep 0.02; done
        pid=$(cat pid)
        while [ -e /proc/$pid ]; do
            case "$(cat /proc/$pid/stat)" in *") Z "*) sleep 0.3; break;; esac
            sleep 0.02
        done
        [ -e /proc/$pid ] && echo reserved
    "#;
    assert_eq!(Place::new().run("-n 2", script).ok(), "[1] reserved\n");
}

#[test]
fn a_job_that_takes_too_long_ends_with_124() {
    let done = Place::new().run("-n 2 --timeout 0.3", "exec sleep 1000");
    let said = done.failed(124);
    assert!(said.contains("did not end within 0.3 s"), "{said}");
}

/// The command with no signal ignored, as a shell's background jobs ignore SIGINT.
fn hearing_signals(command: Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env.current_dir(command.get_current_dir().unwrap());
    env
}

#[test]
fn a_signal_to_the_launcher_ends_all_ranks_and_leaves_nothing_behind() {
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let place = Place::new();
        let script = "sleep 1000 & echo $!; echo $$; wait";
        let sojourn = place.sojourn(["run", "-n", "2", "--", "sh", "-c", script]);
        let job = start(hearing_signals(sojourn));
        let pids: Vec<String> = (0..4).map(|_| job.line()[4..].to_owned()).collect();
        assert_eq!(place.scratch().len(), 1);
        job.signal(signal);
        let said = job.finish().failed(status);
        assert!(said.contains(&format!("interrupted by SIG{signal}")), "{said}");
        gone(&pids);
        assert!(place.scratch().is_empty());
    }
}

#[test]
fn a_signal_that_the_launcher_was_told_to_ignore_does_not_end_the_job() {
    let place = Place::new();
    let mut shell = Command::new("sh");
    let job = "echo ready; while [ ! -e go ]; do sleep 0.02; done; echo done";
    shell
        .args(["-c", "trap '' HUP; exec \"$0\" run -n 1 -- sh -c \"$1\""])
        .args([env!("CARGO_BIN_EXE_sojourn"), job]);
    place.dress(&mut shell);
    let job = start(shell);
    assert_eq!(job.line(), "[0] ready");
    job.signal("HUP");
    fs::write(place.path("go"), "").unwrap();
    assert_eq!(job.finish().ok(), "[0] ready\n[0] done\n");
}

#[test]
fn ranks_die_with_a_launcher_that_is_killed_and_the_next_one_tidies_up() {
    let place = Place::new();
    let script = "echo $$; exec sleep 1000";
    let job = start(place.sojourn(["run", "-n", "3", "--", "sh", "-c", script]));
    let pids: Vec<String> = (0..3).map(|_| job.line()[4..].to_owned()).collect();
    job.signal("KILL");
    gone(&pids);
    drop(job);
    let left = place.scratch();
    assert_eq!(left.len(), 1);
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&left[0]).unwrap().set_modified(long_ago).unwrap();
    place.run("-n 1", "true").ok();
    assert!(place.scratch().is_empty());
}

#[test]
fn a_reader_that_goes_away_does_not_hang_the_job() {
    let place = Place::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" run -n 2 -- yes | head -n 1"]).arg(env!("CARGO_BIN_EXE_sojourn"));
    place.dress(&mut shell);
    assert!(finish(shell).ok().ends_with("] y\n"));
}
