//! `sojourn snapshots`, on stores and directories; and jobs that are restarted from files.
#![cfg(feature = "cli")]

mod common;

use common::{Done, PATIENCE, Place, Running, finish, gone, start};
use serde_json::Value;
use sojourn_fabric::names::JobKey;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SOJOURN: &str = env!("CARGO_BIN_EXE_sojourn");

/// Two stores, and what jobs have to be told of them.
struct World {
    place: Place,
    stores: Vec<Running>,
}

impl World {
    fn new() -> World {
        let place = Place::new();
        JobKey::generate().unwrap().write(&place.path("key")).unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(place.path("s")).unwrap();
        let mut world = World { place, stores: Vec::new() };
        for name in ["a", "b"] {
            let at = world.at(name);
            let key = world.place.path("key");
            let args = ["store", "--name", name, "--bytes", "64M", "--listen", &at, "--key-file"];
            let args = args.map(String::from).into_iter().chain([key.to_str().unwrap().into()]);
            let store = start(world.place.sojourn(args));
            let line = store.line();
            assert!(line.starts_with(&format!("store {name} at ")), "{line}");
            world.stores.push(store);
        }
        world
    }

    fn at(&self, name: &str) -> String {
        format!("unix:{}/{name}", self.place.path("s").display())
    }

    /// What a job is told, as lines of a shell.
    fn told(&self, more: &str) -> String {
        format!(
            "export SOJOURN_STORES=a={},b={} SOJOURN_STORE_KEY_FILE={} SOJOURN_NODE=here \
             SOJOURN_EPOCH_SECONDS=0.1 SOJOURN_REDUNDANCY=copies:2 SOJOURN_LOG=sojourn=info {more}\n",
            self.at("a"),
            self.at("b"),
            self.place.path("key").display()
        )
    }

    /// A job of two ranks, to its end.
    fn heat(&self, args: &str, more: &str) -> Done {
        let script = format!("{}exec {SOJOURN} heat {args}", self.told(more));
        self.place.run("-n 2 --timeout 100", &script)
    }

    /// A job of two ranks that would compute for ever, and is killed once `enough` says so. Returns a number of
    /// steps that it has not reached, and what it said.
    fn heat_killed(&self, more: &str, enough: impl Fn() -> bool) -> (u64, Done) {
        let args = format!("{PLATE} --steps 1000000000 --progress");
        let script = format!("echo $$\n{}exec {SOJOURN} heat {args}", self.told(more));
        let job = start(self.place.sojourn(["run", "-n", "2", "--", "sh", "-c", &script]));
        let pids = [job.line(), job.line()].map(|line| line[4..].to_owned());
        let since = Instant::now();
        while !enough() {
            assert!(since.elapsed() < PATIENCE, "{:#?}", job.finish());
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in &pids {
            let killed = std::process::Command::new("kill").args(["-s", "KILL", pid]).status();
            // The launcher may have been faster with the second one.
            killed.unwrap();
        }
        let done = job.finish();
        assert_eq!(done.status.code(), Some(137));
        gone(&pids);
        let mut told = done.out.lines().filter_map(|line| line.split_once("progress "));
        let last = told.next_back().expect("it told of its progress").1.split(' ').next().unwrap();
        // It tells every 50 ms, and an epoch may be later than what it told last.
        (last.parse::<u64>().unwrap() * 3 / 2 + 4000, done)
    }

    /// `sojourn snapshots` of these stores.
    fn snapshots(&self, args: &str) -> Done {
        let mut command = self.place.sojourn(["snapshots"].into_iter().chain(args.split(' ')));
        command.env("SOJOURN_STORES", format!("a={},b={}", self.at("a"), self.at("b")));
        command.env("SOJOURN_STORE_KEY_FILE", self.place.path("key"));
        finish(command)
    }

    fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.snapshots(&format!("{args} --json")).ok()).unwrap()
    }
}

/// What a job is told that drains each epoch to a directory.
fn each_drained(dir: &Path) -> String {
    format!("SOJOURN_FLUSH_DIR={} SOJOURN_FLUSH_EVERY=1", dir.display())
}

/// `sojourn snapshots` of a directory.
fn of_dir(place: &Place, args: &str, dir: &Path) -> Done {
    let args = ["snapshots"].into_iter().chain(args.split(' '));
    let mut command = place.sojourn(args.map(String::from));
    command.arg("--dir").arg(dir).env_remove("SOJOURN_STORES");
    finish(command)
}

fn dir_json(place: &Place, args: &str, dir: &Path) -> Value {
    serde_json::from_str(&of_dir(place, &format!("{args} --json"), dir).ok()).unwrap()
}

/// The manifests in a directory, upwards.
fn manifests(dir: &Path) -> Vec<PathBuf> {
    files(dir).into_iter().filter(|path| path.extension().is_some_and(|it| it == "json")).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let mut all: Vec<PathBuf> = list(dir).iter().flat_map(|job| list(job)).collect();
    // Not what was being written when its writer was killed.
    all.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("epoch-"));
    all.sort();
    all
}

/// The count of the epoch that a file is of.
fn count(path: &Path) -> u64 {
    path.file_name().unwrap().to_str().unwrap()[6..16].parse().unwrap()
}

/// The epoch and step that the ranks said they are back at.
fn back(done: &Done) -> Option<(u64, u64)> {
    let line = done.err.lines().find(|line| line.contains("is back at step"))?;
    let number = |after: &str| {
        let rest = line.split_once(after).unwrap().1;
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    Some((number("(epoch "), number("back at step ")))
}

fn alone(place: &Place, args: &str) -> String {
    finish(place.sojourn(["heat"].into_iter().chain(args.split(' ')))).ok().trim().to_owned()
}

const PLATE: &str = "--size 48x48";
/// Long enough for some epochs.
const SHORT: &str = "--size 48x48 --steps 8000 --checksum";

/// So many steps in all.
fn until(steps: u64) -> String {
    format!("{PLATE} --steps {steps} --checksum")
}

/// Promise: what stores have is listed, shown, verified and compared, in text and JSON, and can be released.
#[test]
fn epochs_in_stores_are_listed_shown_verified_compared_and_released() {
    let world = World::new();
    let none = world.snapshots("list").ok();
    assert!(none.contains("store a at unix:") && none.contains("no epoch is committed"), "{none}");
    let error = world.snapshots("show").failed(1);
    assert!(error.contains("the stores have no epoch of any process"), "{error}");
    world.heat(SHORT, "").ok();

    let list = world.json("list");
    let last = list["committed"]["epoch"].as_u64().unwrap();
    assert!(last > 2, "{list}");
    assert_eq!(list["stores"][1]["name"], "b");
    assert_eq!(list["processes"].as_array().unwrap().len(), 2);
    let epochs = &list["processes"][0]["epochs"];
    assert_eq!(epochs[1]["epoch"], last);
    assert_eq!(epochs[1]["committed"], true);
    assert_eq!(epochs[1]["copies"].as_array().unwrap().len(), 2);
    assert!(list["processes"][1]["compartments"][0]["bytes"].as_u64().unwrap() > 8192);
    let before = epochs[0]["epoch"].as_u64().unwrap();
    assert!(before < last, "{list}");
    let text = world.snapshots("list").ok();
    assert!(text.contains(&format!("epoch {last}")) && text.contains("in a/"), "{text}");

    let show = world.json("show");
    assert_eq!((&show["epoch"], &show["committed"]), (&last.into(), &true.into()));
    assert_eq!(show["copies"].as_array().unwrap().len(), 4);
    let copy = &show["copies"][0];
    let number = |of: &Value, what: &str| of[what].as_u64().unwrap();
    // Half of a plate of 48x48 cells, two fields of it.
    assert!(number(copy, "bytes") > 48 * 48 * 8, "{show}");
    assert!(number(copy, "changed_chunks") > 0);
    assert!(number(copy, "changed_chunks") <= number(copy, "chunks"));
    let areas = copy["areas"].as_array().unwrap();
    assert_eq!(areas.iter().map(|it| number(it, "bytes")).sum::<u64>(), number(copy, "bytes"));
    let extents = areas.iter().flat_map(|area| area["extents"].as_array().unwrap());
    let changed: u64 = extents.map(|run| number(run, "chunks")).sum();
    assert_eq!(changed, number(copy, "changed_chunks"));
    let one = world.json(&format!("show {before} --process 2"));
    assert_eq!(one["copies"].as_array().unwrap().len(), 2);
    let text = world.snapshots(&format!("show {last}")).ok();
    assert!(text.contains("process 1 in store a") && text.contains(" changed, "), "{text}");

    let verify = world.json("verify");
    let copies = verify["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 8);
    assert!(copies.iter().all(|copy| copy["outcome"] == "sound"), "{verify}");
    assert!(verify["bytes"].as_u64().unwrap() > 4 * 48 * 48 * 8);
    let text = world.snapshots(&format!("verify {last}")).ok();
    assert!(text.contains("4 copies, ") && text.contains(": sound"), "{text}");

    let diff = world.json(&format!("diff {before} {last}"));
    assert_eq!(diff["processes"].as_array().unwrap().len(), 2);
    assert!(number(&diff["processes"][0], "chunks") > 0, "{diff}");
    let same = world.json(&format!("diff {last} {last}"));
    assert_eq!(number(&same["processes"][1], "chunks"), 0);
    let text = world.snapshots(&format!("diff {before} {last}")).ok();
    assert!(text.contains("chunks differ"), "{text}");

    // Nothing is released without being told twice.
    let error = world.snapshots("prune --process 2").failed(2);
    assert!(error.contains("2 compartments") && error.contains("--yes"), "{error}");
    let would = world.json("prune --process 2 --dry-run");
    assert_eq!(would["released"].as_array().unwrap().len(), 2);
    assert_eq!(world.json("list")["processes"].as_array().unwrap().len(), 2);
    let text = world.snapshots("prune --process 2 --yes").ok();
    assert!(text.contains("released process 2 in store b"), "{text}");
    let list = world.json("list");
    assert_eq!(list["processes"].as_array().unwrap().len(), 1);
    assert_eq!(list["processes"][0]["process"], 1);
    let error = world.snapshots("prune --process 2 --yes").failed(1);
    assert!(error.contains("nothing of process 2"), "{error}");
}

/// Promise: one clear error each, which names what is wrong.
#[test]
fn bad_input_is_refused_by_one_sentence() {
    let mut world = World::new();
    world.heat(SHORT, "").ok();
    let place = &world.place;
    let said = |args: &str, status: i32| {
        let error = world.snapshots(args).failed(status);
        assert_eq!(error.trim().lines().count(), 1, "{error}");
        error
    };
    let error = said("show 999", 1);
    assert!(error.contains("the stores have no epoch 999: they have "), "{error}");
    assert!(said("show --process 9", 1).contains("has no process 9"));
    assert!(said("diff 1 999", 1).contains("no epoch"));
    assert!(said("verify 999", 1).contains("no epoch 999"));
    assert!(said("prune", 2).contains("--process"));
    assert!(said("prune --process 9 --yes", 1).contains("nothing of process 9"));
    assert!(said("list --store nowhere", 2).contains("nowhere"));
    assert!(said("list --key-file /no/such/key", 1).contains("/no/such/key"));
    JobKey::generate().unwrap().write(&place.path("other")).unwrap();
    let error = said(&format!("list --key-file {}", place.path("other").display()), 1);
    assert!(error.contains(&world.at("a")) && error.contains("key"), "{error}");

    let bare = |args: &[&str]| {
        let mut command = place.sojourn(["snapshots"].iter().chain(args));
        command.env_remove("SOJOURN_STORES").env_remove("SOJOURN_STORE_KEY_FILE");
        finish(command)
    };
    assert!(bare(&["list"]).failed(2).contains("--store or SOJOURN_STORES"));
    assert!(bare(&["list", "--store", &world.at("a")]).failed(2).contains("--key-file"));
    let error = of_dir(place, "list", Path::new("/no/such/dir")).failed(1);
    assert!(error.contains("/no/such/dir"), "{error}");
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = of_dir(place, "verify", &empty).failed(1);
    assert!(error.contains("has no epochs of any job"), "{error}");
    let error = of_dir(place, "show --job heat", &empty).failed(1);
    assert!(error.contains("has no job"), "{error}");

    // A store that is gone is named, and what the other has is told first.
    drop(world.stores.pop());
    let done = world.snapshots("list");
    assert!(done.out.contains("store a at") && done.out.contains("does not answer"), "{done:?}");
    assert!(done.failed(1).contains(&world.at("b")));
    drop(world.stores.pop());
    assert!(world.snapshots("show").failed(1).contains(&world.at("a")));
}

/// Promise: after everything is gone but the directory, a new job with new stores goes on from the last epoch there,
/// and the field is the same, bit for bit.
#[test]
fn a_job_whose_stores_are_gone_goes_on_from_files() {
    let world = World::new();
    let dir = world.place.path("files");
    let flush = each_drained(&dir);
    let (steps, _) = world.heat_killed(&flush, || manifests(&dir).len() >= 3);
    let place = &world.place;

    let list = dir_json(place, "list", &dir);
    let epochs = list[0]["epochs"].as_array().unwrap();
    let last = epochs.last().unwrap()["epoch"].as_u64().unwrap();
    assert!(epochs.iter().all(|epoch| epoch["damaged"].is_null()), "{list}");
    assert_eq!(epochs[0]["processes"], 2);
    let first = epochs[0]["epoch"].as_u64().unwrap();
    assert!(of_dir(place, "list", &dir).ok().contains(&format!("epoch {last}")));
    let show = dir_json(place, "show", &dir);
    assert_eq!((&show["epoch"], show["members"].as_array().unwrap().len()), (&last.into(), 2));
    assert!(of_dir(place, &format!("show {first}"), &dir).ok().contains("process 2 (life 1)"));
    let verified = dir_json(place, "verify", &dir);
    assert!(verified.as_array().unwrap().iter().all(|it| it["problems"] == Value::Array(vec![])));
    let diff = dir_json(place, &format!("diff {first} {last}"), &dir);
    assert!(diff["processes"][0]["chunks"].as_u64().unwrap() > 0, "{diff}");
    assert!(of_dir(place, "show 999", &dir).failed(1).contains("has no epoch 999: it has "));
    assert!(of_dir(place, "diff 999 1", &dir).failed(1).contains("has no epoch 999"));
    let would = dir_json(place, "prune --keep 1 --dry-run", &dir);
    assert_eq!(would["kept"], Value::Array(vec![last.into()]));
    assert_eq!(manifests(&dir).len(), epochs.len());

    // Other sockets, another key, stores that have nothing.
    let other = World::new();
    let done = other.heat(&until(steps), &flush);
    let (epoch, step) = back(&done).expect("it went back");
    assert_eq!(epoch, last);
    assert!((1..steps).contains(&step), "{step} of {steps}");
    // What is written after it counts on.
    let later = manifests(&dir).iter().map(|path| count(path)).max().unwrap();
    assert!(later > last, "{later}");
    let term = dir_json(place, &format!("show {later}"), &dir)["term"].as_u64();
    assert_eq!(term, Some(2), "no number is dealt twice");
    assert_eq!(done.ok(), format!("[0] {}\n", alone(place, &until(steps))));

    let pruned = of_dir(place, "prune --keep 1", &dir).ok();
    assert!(pruned.contains(&format!("kept {later}")), "{pruned}");
    dir_json(place, "verify", &dir);
}

/// Promise: stores that have a later epoch are gone back to, and not the directory; where what was committed is lost,
/// the directory is, and a warning names both; and a damaged epoch there is passed over.
#[test]
fn files_are_gone_back_to_only_where_stores_have_nothing_later() {
    let world = World::new();
    let dir = world.place.path("files");
    let flush = each_drained(&dir);
    let more = format!("{flush} SOJOURN_FLUSH_KEEP=all SOJOURN_FLUSH_COMPRESS=none");
    world.heat_killed(&more, || manifests(&dir).len() >= 4);
    let committed = |world: &World| world.json("list")["committed"]["epoch"].as_u64().unwrap();
    // Of the directory the first two are left: what the stores have is later.
    for path in &manifests(&dir)[2..] {
        std::fs::remove_file(path).unwrap();
    }
    let counts: Vec<u64> = manifests(&dir).iter().map(|path| count(path)).collect();
    let held = committed(&world);
    assert!(held > counts[1]);
    // It is not drained meanwhile, so that the directory stays as it is.
    let never = format!("{more} SOJOURN_FLUSH_EVERY=1000000000");
    let (steps, killed) = world.heat_killed(&never, || committed(&world) > held + 1);
    // One that was complete and not committed may be later still.
    assert!(back(&killed).is_some_and(|(epoch, _)| epoch >= held), "{killed:#?}");
    // The list counts one that is complete everywhere, whether or not a store was told that it is committed.
    let held = committed(&world);

    // All of one process is lost, and the last epoch of the directory is damaged.
    world.snapshots("prune --process 2 --yes").ok();
    let data = files(&dir);
    let mut damaged = data
        .iter()
        .filter(|path| path.to_str().unwrap().contains(".process-") && count(path) == counts[1]);
    let path = damaged.next().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let done = of_dir(&world.place, "verify", &dir);
    assert!(done.out.contains("damaged"), "{done:?}");
    assert!(done.failed(1).contains("problem"));

    let done = world.heat(&until(steps), &never);
    let said = |epoch: u64| {
        format!("epoch {epoch} (term 2) was committed, and cannot be restored any more")
    };
    let noted = [held, held - 1].into_iter().find(|epoch| done.err.contains(&said(*epoch)));
    assert!(noted.is_some(), "{held}: {done:#?}");
    assert!(done.err.contains(&format!("going back to epoch {} (term 1)", counts[0])), "{done:#?}");
    assert_eq!(back(&done).unwrap().0, counts[0]);
    // Its count is dealt anew.
    assert_eq!(manifests(&dir).iter().map(|path| count(path)).collect::<Vec<_>>(), [counts[0]]);
    assert_eq!(done.ok(), format!("[0] {}\n", alone(&world.place, &until(steps))));
}

/// Promise: a job that runs is looked at without harm, what it overwrites meanwhile is no damage, and nothing of it can be
/// released.
#[test]
fn the_epochs_of_a_running_job_are_read_and_not_released() {
    let world = World::new();
    world.heat_killed("SOJOURN_EPOCH_SECONDS=0.02", || {
        if world.json("list")["committed"].is_null() {
            return false;
        }
        for _ in 0..4 {
            let verify = world.json("verify");
            let copies = verify["copies"].as_array().unwrap();
            assert!(copies.iter().all(|copy| copy["outcome"] != "damaged"), "{verify}");
        }
        let error = world.snapshots("prune --process 1 --yes").failed(1);
        assert!(error.contains("process 1 writes epochs to store"), "{error}");
        true
    });
    // Its writers are gone.
    world.snapshots("prune --process 1,2 --yes").ok();
    assert_eq!(world.json("list")["processes"], Value::Array(vec![]));
}

/// Promise: epochs that come faster than they are drained are given the time that this takes: some are in files.
#[test]
fn epochs_that_come_too_fast_for_files_come_more_slowly() {
    let world = World::new();
    let dir = world.place.path("files");
    let more = format!("{} SOJOURN_EPOCH_SECONDS=0.001", each_drained(&dir));
    world.heat_killed(&more, || manifests(&dir).len() >= 2);
    dir_json(&world.place, "verify", &dir);
}

/// Promise: where the rank that drains dies, the one that takes its place goes on with it.
#[test]
fn draining_goes_on_where_the_rank_that_drains_was_replaced() {
    let world = World::new();
    let dir = world.place.path("files");
    let more = format!("{} SOJOURN_EPOCH_SECONDS=0.02", each_drained(&dir));
    let script = format!(
        "{}[ $SOJOURN_RANK = 0 ] && mkdir killed 2>/dev/null && {{
            while [ $(ls files/*/epoch-*.json 2>/dev/null | wc -l) -lt 2 ]; do sleep 0.01; done
            kill -9 $$
         }} &
         exec {SOJOURN} heat {} --recover",
        world.told(&more),
        until(30_000)
    );
    let done = world.place.run("-n 2 --restarts 1 --timeout 100", &script);
    assert!(done.err.contains("starting it anew"), "{done:#?}");
    assert!(back(&done).is_some(), "{done:#?}");
    assert_eq!(done.ok(), format!("[0] {}\n", alone(&world.place, &until(30_000))));
    let list = dir_json(&world.place, "list", &dir);
    let last = list[0]["epochs"].as_array().unwrap().last().unwrap();
    assert!(last["damaged"].is_null() && last["term"].as_u64().unwrap() > 1, "{list}");
}

/// Promise: a job that cannot write its directory says so at the start, and so does one of another size.
#[test]
fn a_directory_that_is_of_no_use_is_refused_at_the_start() {
    let world = World::new();
    std::fs::write(world.place.path("file"), b"x").unwrap();
    let more = format!("SOJOURN_FLUSH_DIR={}/dir", world.place.path("file").display());
    let error = world.heat(SHORT, &more).failed(1);
    assert!(error.contains("rank 0: creating") && error.contains("/file/dir"), "{error}");
    let dir = world.place.path("files");
    let more = each_drained(&dir);
    world.heat(SHORT, &more).ok();
    assert!(!manifests(&dir).is_empty());
    let other = World::new();
    let script = format!("{}exec {SOJOURN} heat {SHORT}", other.told(&more));
    let error = other.place.run("-n 1 --timeout 100", &script).failed(1);
    assert!(error.contains("is of 2 processes, and this job has 1"), "{error}");
    // A job of another name begins from the beginning.
    let more = format!("{more} SOJOURN_JOB_NAME=other");
    let done = other.heat(SHORT, &more);
    assert!(back(&done).is_none());
    done.ok();
    let error = of_dir(&other.place, "show", &dir).failed(2);
    assert!(error.contains("several jobs"), "{error}");
    assert_eq!(dir_json(&other.place, "show --job other", &dir)["members"][1]["process"], 2);
}
