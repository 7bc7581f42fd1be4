//! What shows that the witness would notice: one rank misbehaves on purpose, and another must report it.

mod common;

use common::Place;

/// Runs a job in which rank 0 misbehaves, and returns what rank 1 says, which must be one line.
#[track_caller]
fn report(act: &str, args: &[&str]) -> String {
    let common = ["--messages", "120", "--max-size", "4096", "--sabotage", act];
    let errors = Place::new().job(2, &[&common[..], args].concat()).failed(1);
    let mut lines = errors.lines().filter_map(|line| line.strip_prefix("[1] witness: "));
    let line = lines.next().unwrap_or_else(|| panic!("rank 1 says nothing: {errors}"));
    assert_eq!(lines.next(), None, "{errors}");
    assert!(line.contains("rank 1, ") && line.contains("with rank 0: "), "{line}");
    line.to_owned()
}

#[track_caller]
fn says(line: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| line.contains(part)), "{line}");
}

#[test]
fn a_message_that_is_sent_twice_is_reported() {
    says(&report("duplicate", &[]), &["SEND", "sequence", "expected RECV", "found RECV"]);
    let kind = ["--mix", "send", "--qps", "1"];
    says(&report("duplicate", &kind), &["SEND, sequence 9", "intact message of sequence 8"]);
    for mix in ["uc-send", "ud-send"] {
        let line = report("duplicate", &["--mix", mix, "--qps", "1"]);
        says(&line, &["SEND", "sequence 8", "expected sequence 9", "one that came before"]);
    }
}

#[test]
fn a_message_that_is_lost_is_reported() {
    says(&report("drop", &[]), &["SEND", "sequence"]);
    let few = ["--mix", "send", "--qps", "1", "--max-size", "64"];
    says(&report("drop", &few), &["SEND, sequence 8: expected"]);
}

#[test]
fn a_flipped_bit_is_reported() {
    says(&report("corrupt", &["--mix", "send,read"]), &["SEND, ", "1 wrong bytes of "]);
    for mix in ["uc-send", "ud-send"] {
        let line = report("corrupt", &["--mix", mix, "--qps", "1"]);
        says(&line, &["SEND"]);
        assert!(line.contains("intact") || line.contains("wrong bytes"), "{line}");
    }
}

#[test]
fn messages_that_change_places_are_reported() {
    says(&report("reorder", &["--mix", "send,write,fetch-add"]), &["SEND, sequence"]);
    let line = report("reorder", &["--mix", "uc-send", "--qps", "1"]);
    says(&line, &["one that came before, or that was overtaken"]);
}

/// Guards promise 3 most of all: a WRITE that is executed again after its effect was seen shows.
#[test]
fn a_write_that_is_executed_again_is_reported() {
    for mix in ["send,write", "write"] {
        let line = report("rewrite", &["--mix", mix, "--qps", "2", "--window", "4"]);
        says(&line, &["WRITE, sequence", "expected memory that stays as it is", "found"]);
    }
}

#[test]
fn an_atomic_that_is_executed_twice_is_reported() {
    for mix in ["fetch-add", "send,fetch-add,cmp-swap"] {
        let line = report("atomic", &["--mix", mix, "--qps", "2"]);
        says(&line, &["FETCH_ADD, sequence 120: expected a word of", "found 0x"]);
    }
}

/// Guards: a stall is no silent wait: it ends, and says what each queue pair waits for.
#[test]
fn a_stall_is_told_with_what_each_queue_pair_waits_for() {
    let args = ["--sabotage", "silence", "--stall", "0.5", "--max-size", "4096", "--qps", "2"];
    let errors = Place::new().job(2, &args).failed(1);
    says(&errors, &["witness: no progress for 500ms", "the next one waits for", "queue pair 1"]);
}

#[test]
fn options_that_make_no_sense_are_one_clear_error() {
    for (args, why) in [
        (&["--fly"][..], "witness: unknown option \"--fly\"; --help lists them"),
        (&["--qps", "0"], "witness: --qps 0: a number from 1 to 512 is needed"),
        (&["--mix", "tea"], "witness: --mix tea: \"tea\" is no kind of message"),
    ] {
        let errors = Place::new().job(1, args).failed(2);
        says(&errors, &[why]);
        assert_eq!(errors.lines().filter(|line| line.starts_with("[0]")).count(), 1, "{errors}");
    }
    let errors = Place::new().job(1, &[]).failed(1);
    says(&errors, &["a job of 1 ranks: 2 to 1024 are needed"]);
    let moves = ["--moves", "1", "--who", "first", "--devices", "soft9", "--pause-ms", "0"];
    let errors = Place::new().job(2, &moves).failed(1);
    says(
        &errors,
        &["rank 0, move 1 to soft9: device \"soft9\" not found; this machine has: soft0"],
    );
}
