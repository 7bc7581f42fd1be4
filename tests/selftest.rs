//! `sojourn selftest`, as an administrator runs it.
#![cfg(feature = "cli")]

mod common;

use common::{Place, Running, finish, start};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Starts the listening side, and returns it with its address.
fn listening(place: &Place, key: &str) -> (Running, String) {
    let at = "127.0.0.1:0";
    let args = ["selftest", "--device", "soft0", "--listen", at, "--key-file", key];
    let listener = start(place.sojourn(args));
    let line = listener.line();
    let at = line.strip_prefix("waiting for the other side at tcp:").expect(&line).to_owned();
    (listener, at)
}

#[test]
fn a_device_is_checked_against_itself_line_by_line() {
    let place = Place::new();
    let said = finish(place.sojourn(["selftest", "--device", "soft0", "--only", "rc.*"])).ok();
    let (count, lines) = said.lines().collect::<Vec<_>>().split_last().map(split).unwrap();
    assert!(lines.iter().all(|line| line.starts_with("ok ") && line.contains("/rc.")), "{said}");
    for layer in ["raw", "virtual"] {
        let of_layer = lines.iter().filter(|line| line.contains(&format!(" {layer}/"))).count();
        assert!(of_layer > 10, "{layer}: {said}");
    }
    assert_eq!(count, format!("{} passed, 0 failed, 0 not applicable", lines.len()));
}

fn split<'a>((last, rest): (&&'a str, &[&'a str])) -> (&'a str, Vec<&'a str>) {
    (last, rest.to_vec())
}

#[test]
fn two_processes_check_the_device_between_them() {
    let place = Place::new();
    let key = place.path("key");
    let key = key.to_str().unwrap();
    let (listener, at) = listening(&place, key);
    let args = ["selftest", "--device", "soft0", "--connect", &at, "--key-file", key, "--json"];
    let said = finish(place.sojourn(args)).ok();
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["failed"], 0, "{said}");
    assert!(found["passed"].as_u64().unwrap() > 200, "{said}");
    assert_eq!(found["peer"], format!("tcp:{at}"));
    assert_eq!(found["packet_number"]["verdict"], "live", "{said}");
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run["stopped"].is_null()), "{said}");
    let heard = listener.finish().ok();
    for layer in ["raw", "virtual"] {
        assert!(heard.contains(&format!("the other side runs the {layer} cases")), "{heard}");
    }
}

#[test]
fn a_side_without_the_key_is_turned_away_and_told_why() {
    let place = Place::new();
    let key = place.path("key");
    let (listener, at) = listening(&place, key.to_str().unwrap());
    let other = place.path("other");
    fs::write(&other, [7; 32]).unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o600)).unwrap();
    let connect = |key: &str| {
        let args = ["selftest", "--device", "soft0", "--connect", &at, "--key-file", key];
        finish(place.sojourn(args.into_iter().chain(["--only", "query.*"])))
    };
    let said = connect(other.to_str().unwrap()).failed(1);
    assert!(said.contains("job key") && said.contains("does not match"), "{said}");
    // The one with the key is still let in.
    connect(key.to_str().unwrap()).ok();
    listener.finish().ok();
}

#[test]
fn what_cannot_be_checked_is_refused_in_one_sentence() {
    let place = Place::new();
    for (args, status, part) in [
        (&["--device", "soft7"][..], 1, "device \"soft7\" not found"),
        (&["--device", "soft0", "--only", "nonesuch"], 1, "no case fits --only nonesuch"),
        (&[], 2, "--device"),
        (&["--device", "soft0", "--connect", "127.0.0.1:1"], 2, "--key-file"),
        (&["--device", "soft0", "--listen", "nowhere", "--key-file", "key"], 1, "host:port"),
        (&["--device", "soft0", "--listen", "0.0.0.0:0", "--key-file", "key"], 1, "reaches"),
    ] {
        let said = finish(place.sojourn(["selftest"].iter().chain(args))).failed(status);
        assert!(said.starts_with("sojourn: ") && said.contains(part), "{args:?}: {said}");
    }
}

#[test]
fn the_list_names_every_case_and_its_source() {
    let place = Place::new();
    let said = finish(place.sojourn(["selftest", "--list"])).ok();
    assert!(said.lines().count() > 100);
    for line in said.lines() {
        let (name, guards) = line.split_once(": ").expect(line);
        assert!(name.contains('.') && guards.contains('('), "{line}");
    }
}
