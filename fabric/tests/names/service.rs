//! What a service promises to the process that it is in.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use sojourn_fabric::names::directory::{DirectoryServer, LocalDirectory, ServerConfig};
use sojourn_fabric::names::{
    DeviceId, Endpoint, Error, Fetch, Fetched, Incarnation, JobKey, KeyRecord, MAX_NOTE,
    PrivateDir, ProcessId, Ready, Record, Service, ServiceConfig, Whereabouts,
};

use crate::support::{Altered, Job, LONG, Tables, end, note, qpn, runs_into_deadline, soon, text};

fn fetch_everything(one: &Service, two: &Service, two_tables: &Tables) {
    let (me, you) = (*one.grant(), *two.grant());
    // A queue pair; and its owner has been told who asks, under names that it can rely on.
    let what = Fetch::Qpn { qpn: 17, own_qpn: 5, own_end: Some(end(40)) };
    let Ok(Record::Qpn(record)) = one.fetch_wait(you.process, what, soon()) else { panic!() };
    assert_eq!((record.end, record.qp_type), (end(17), 2));
    let asker = two_tables.asked.lock().unwrap()[0];
    assert_eq!((asker.process, asker.lid, asker.gid), (me.process, me.lid, me.gid));
    assert_eq!((asker.qpn, asker.physical), (5, Some(end(40))));
    // A key, on the device that the owner has for this asker.
    let key = KeyRecord { on: vec![(DeviceId(me.process.0), 1003)] };
    assert_eq!(one.fetch_wait(you.process, Fetch::Key(3), soon()), Ok(Record::Key(key)));
    // What is not there.
    let error = one.fetch_wait(you.process, qpn(100), soon()).unwrap_err();
    assert_eq!(error, Error::Unknown { process: you.process, what: "queue pair 0x64".into() });
    assert!(one.fetch_wait(you.process, Fetch::Key(10), soon()).is_err());
    // Notes: one that is there, one that is waited for, the largest, and one of one's own.
    two.publish_note("early", b"there").unwrap();
    assert_eq!(text(one.fetch_wait(you.process, note("early"), soon()).unwrap()), "there");
    let (tx, rx) = bounded(2);
    for asking in [one, two] {
        let tx = tx.clone();
        let done = Box::new(move |fetched| tx.send(fetched).unwrap());
        asking.fetch(you.process, note("late"), soon(), done);
    }
    // An answer that came later shows that the question before it waits.
    one.fetch_wait(you.process, Fetch::Key(1), soon()).unwrap();
    assert!(rx.is_empty());
    two.publish_note("late", &vec![7; MAX_NOTE]).unwrap();
    for _ in 0..2 {
        let fetched = rx.recv_timeout(LONG).unwrap();
        assert_eq!(fetched, Ok(Record::Note(vec![7; MAX_NOTE])));
    }
    two.publish_note("late", b"again").unwrap();
    assert_eq!(text(one.fetch_wait(you.process, note("late"), soon()).unwrap()), "again");
}

#[test]
fn processes_fetch_from_each_other_over_unix_sockets() {
    let job = Job::unix();
    let tables = Arc::new(Tables::default());
    let one = job.join(1);
    let two = job.join_as(2, tables.clone()).unwrap();
    fetch_everything(&one, &two, &tables);
}

#[test]
fn processes_fetch_from_each_other_over_tcp() {
    let job = Job::tcp();
    let tables = Arc::new(Tables::default());
    let one = job.join(1);
    let two = job.join_as(2, tables.clone()).unwrap();
    fetch_everything(&one, &two, &tables);
}

#[test]
fn a_program_of_one_process_needs_no_launcher() {
    let key = JobKey::generate().unwrap();
    let directory = LocalDirectory::new(key.job_id()).unwrap();
    let another = directory.another().unwrap();
    let tables = Arc::new(Tables::default());
    let start = |directory, tables| {
        Service::start(ServiceConfig::new(Box::new(directory), key.clone()), tables).unwrap()
    };
    let one = start(directory, Arc::new(Tables::default()));
    // Asked before the other has joined: waits for it across the two threads.
    let (tx, rx) = bounded(1);
    one.fetch(ProcessId(2), Fetch::Key(1), soon(), Box::new(move |f| tx.send(f).unwrap()));
    let two = start(another, tables.clone());
    assert!(rx.recv_timeout(LONG).unwrap().is_ok());
    assert_eq!((one.grant().process.0, two.grant().process.0), (1, 2));
    assert_eq!(one.grant().gid.owner(), Some((key.job_id(), ProcessId(1))));
    fetch_everything(&one, &two, &tables);
    drop(two);
    let gone = one.fetch_wait(ProcessId(2), Fetch::Key(1), soon());
    assert_eq!(gone, Err(Error::Gone { process: ProcessId(2) }));
}

#[test]
fn a_process_that_has_not_joined_is_waited_for_until_the_deadline() {
    let job = Job::unix();
    let one = job.join(1);
    let (tx, rx) = bounded(1);
    one.fetch(ProcessId(2), Fetch::Key(1), soon(), Box::new(move |f| tx.send(f).unwrap()));
    let not_yet = Error::NotYet { process: ProcessId(2) };
    let error = runs_into_deadline(&one, ProcessId(2), &Fetch::Key(2), |error| *error == not_yet);
    assert_eq!(error.to_string(), "process 2 has not joined the job");
    assert!(rx.is_empty());
    let _two = job.join(2);
    assert!(rx.recv_timeout(LONG).unwrap().is_ok());
    let error = one.fetch_wait(ProcessId(0), Fetch::Key(2), soon()).unwrap_err();
    assert_eq!(error, Error::NotYet { process: ProcessId(0) });
}

#[test]
fn a_note_that_is_never_published_ends_at_the_deadline_of_its_asker() {
    let job = Job::unix();
    let (one, two) = (job.join(1), job.join(2));
    for asking in [&one, &two] {
        let text =
            "note \"x\" of process 2: no answer before the deadline (it has not published it)";
        runs_into_deadline(asking, ProcessId(2), &note("x"), |error| error.to_string() == text);
    }
    // The owner has forgotten the question; the next one is answered all the same.
    two.publish_note("x", b"1").unwrap();
    assert!(one.fetch_wait(ProcessId(2), note("x"), soon()).is_ok());
}

#[test]
fn a_dead_process_fails_fetches_at_once_and_its_next_life_is_found() {
    let job = Job::unix();
    let (one, two) = (job.join(1), job.join(2));
    two.publish_note("x", b"first life").unwrap();
    assert!(one.fetch_wait(ProcessId(2), note("x"), soon()).is_ok());
    // One that waits at the moment of death, and one that comes after it.
    let (tx, rx) = bounded(1);
    one.fetch(ProcessId(2), note("y"), soon(), Box::new(move |f| tx.send(f).unwrap()));
    one.fetch_wait(ProcessId(2), note("x"), soon()).unwrap();
    drop(two);
    let begun = Instant::now();
    let gone = Error::Gone { process: ProcessId(2) };
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Err(gone.clone()));
    assert_eq!(one.fetch_wait(ProcessId(2), note("x"), soon()), Err(gone.clone()));
    assert_eq!(gone.to_string(), "process 2 has left the job");
    assert!(begun.elapsed() < LONG / 2, "at once, and not at the deadline");
    let two = job.join(2);
    assert_eq!(two.grant().incarnation, Incarnation(2));
    assert_eq!(two.grant().lid.0, 2);
    two.publish_note("x", b"second life").unwrap();
    let fetched = one.fetch_wait(ProcessId(2), note("x"), soon()).unwrap();
    assert_eq!(text(fetched), "second life");
    // Again, this time with nobody asking in between: the address that one knows is out of date.
    drop(two);
    let two = job.join(2);
    two.publish_note("x", b"third life").unwrap();
    let fetched = one.fetch_wait(ProcessId(2), note("x"), soon()).unwrap();
    assert_eq!(text(fetched), "third life");
}

#[test]
fn a_number_that_is_taken_is_refused_by_name() {
    let job = Job::unix();
    let _one = job.join(1);
    let error = job.join_as(1, Arc::new(Tables::default())).err().unwrap().to_string();
    assert!(
        error.contains("process 1 is already") && error.contains(&job.at.to_string()),
        "{error}"
    );
    // Numbers that are not asked for start above those reserved for the ranks.
    let other = Service::start(job.config(&job.key), Arc::new(Tables::default())).unwrap();
    assert_eq!(other.grant().process, ProcessId(9));
}

#[test]
fn processes_that_know_each_other_outlive_the_directory() {
    let mut job = Job::unix();
    let (one, two, _three) = (job.join(1), job.join(2), job.join(3));
    two.publish_note("x", b"1").unwrap();
    one.fetch_wait(ProcessId(2), note("x"), soon()).unwrap();
    drop(job.server.take());
    assert!(one.fetch_wait(ProcessId(2), note("x"), soon()).is_ok(), "known: still reachable");
    let error = one.fetch_wait(ProcessId(3), note("x"), soon()).unwrap_err();
    assert!(matches!(&error, Error::Directory { place, .. } if *place == job.at.to_string()));
    // A known process that dies now can't be told from one that can't be reached.
    drop(two);
    let error = one.fetch_wait(ProcessId(2), note("x"), soon()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn an_address_with_a_new_tenant_is_found_out() {
    let job = Job::unix();
    let (two, three) = (job.join(2), job.join(3));
    two.publish_note("who", b"two").unwrap();
    three.publish_note("who", b"three").unwrap();
    // The first time that it is asked, the directory sends whoever looks for 2 to the socket of 3.
    let tenant = other_socket(&job);
    let (tx, asked) = unbounded();
    let mut config = job.config(&job.key);
    config.directory = Box::new(Altered {
        honest: config.directory,
        alter: move |process: ProcessId, place: &mut Whereabouts| {
            if process == ProcessId(2) {
                tx.send(()).unwrap();
                if tx.len() == 1 {
                    place.address.unix = Some(tenant(place.address.unix.as_deref().unwrap()));
                }
            }
        },
    });
    let one = Service::start(config, Arc::new(Tables::default())).unwrap();
    let fetched = one.fetch_wait(ProcessId(2), note("who"), soon()).unwrap();
    assert_eq!(text(fetched), "two");
    assert_eq!(asked.len(), 2);
}

/// For the socket of either of the two processes of a job, that of the other.
fn other_socket(job: &Job) -> impl Fn(&Path) -> PathBuf + Send + use<> {
    let entries = std::fs::read_dir(job.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let of_process = |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes()[0] == b'p';
    let sockets: Vec<PathBuf> = entries.filter(of_process).collect();
    assert_eq!(sockets.len(), 2);
    move |of: &Path| sockets.iter().find(|path| *path != of).unwrap().clone()
}

#[test]
fn where_the_unix_socket_cannot_be_seen_tcp_serves() {
    let job = Job::tcp();
    let two = job.join(2);
    two.publish_note("who", b"two").unwrap();
    let mut config = job.config(&job.key);
    config.directory = Box::new(Altered {
        honest: config.directory,
        alter: |_, place: &mut Whereabouts| {
            assert!(place.address.unix.is_some() && place.address.tcp.len() == 1);
            place.address.unix = Some("/nowhere/socket".into());
        },
    });
    let one = Service::start(config, Arc::new(Tables::default())).unwrap();
    assert_eq!(text(one.fetch_wait(ProcessId(2), note("who"), soon()).unwrap()), "two");
}

#[test]
fn a_directory_whose_place_is_taken_names_it() {
    for job in [Job::unix(), Job::tcp()] {
        let config = ServerConfig::new(job.at.clone(), job.key.clone(), 0);
        let error = DirectoryServer::start(config).err().unwrap();
        assert!(matches!(error, Error::Taken { .. }));
        assert!(error.to_string().contains(&job.at.to_string()), "{error}");
        job.join(1);
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = PrivateDir::create().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = Endpoint::Tcp(taken.local_addr().unwrap());
    drop(taken);
    for at in [Endpoint::Unix(dir.path().join("none")), closed] {
        let mut job = Job::unix();
        job.at = at;
        let error = job.join_as(1, Arc::new(Tables::default())).err().unwrap().to_string();
        assert!(error.contains(&job.at.to_string()) && error.contains("nobody listens"), "{error}");
    }
}

#[test]
fn closures_timers_and_descriptors_are_served_on_the_service_thread() {
    let job = Job::unix();
    let one = job.join(1);
    let (tx, rx) = bounded(8);
    let (now, handle) = (Instant::now(), (*one).clone());
    for (at, word) in [(60, "second"), (30, "first")] {
        let (tx, handle) = (tx.clone(), handle.clone());
        one.run_later(
            now + Duration::from_millis(at),
            Box::new(move || tx.send((word, handle.on_service_thread())).unwrap()),
        );
    }
    let sent = tx.clone();
    one.run(Box::new(move || sent.send(("now", handle.on_service_thread())).unwrap()));
    for word in ["now", "first", "second"] {
        assert_eq!(rx.recv_timeout(LONG).unwrap(), (word, true));
    }
    assert!(now.elapsed() >= Duration::from_millis(60));
    assert!(!one.on_service_thread());

    let (mut here, there) = UnixStream::pair().unwrap();
    there.set_nonblocking(true).unwrap();
    let there = Arc::new(there);
    let read = there.clone();
    let watch = one
        .watch(
            there.clone(),
            Ready::READ,
            Box::new(move |_| {
                let mut byte = [0];
                if matches!(std::io::Read::read(&mut &*read, &mut byte), Ok(1)) {
                    tx.send(("byte", byte[0] == 7)).unwrap();
                }
            }),
        )
        .unwrap();
    here.write_all(&[7]).unwrap();
    assert_eq!(rx.recv_timeout(LONG).unwrap(), ("byte", true));
    watch.set(Ready::default()).unwrap();
    here.write_all(&[7]).unwrap();
    one.fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap();
    assert!(rx.is_empty(), "a paused watch does not call");
    watch.set(Ready::READ).unwrap();
    assert_eq!(rx.recv_timeout(LONG).unwrap(), ("byte", true));
    drop(watch);
    here.write_all(&[7]).unwrap();
    one.fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap();
    assert!(rx.is_empty(), "nor does one that is gone");
    drop(there);
}

#[test]
fn waiting_on_the_service_thread_is_refused_and_not_a_deadlock() {
    let job = Job::unix();
    let one = job.join(1);
    let (tx, rx) = bounded(1);
    let handle = (*one).clone();
    one.run(Box::new(move || {
        tx.send(handle.fetch_wait(ProcessId(1), Fetch::Key(1), soon())).unwrap();
    }));
    let error = rx.recv_timeout(LONG).unwrap().unwrap_err();
    assert!(matches!(error, Error::OnServiceThread { .. }));
}

#[test]
fn a_service_that_stops_answers_everything_and_may_stop_on_its_own_thread() {
    let job = Job::unix();
    let one = job.join(1);
    let handle = (*one).clone();
    let (tx, rx) = bounded(2);
    let sent = tx.clone();
    one.fetch(ProcessId(2), note("x"), soon(), Box::new(move |f| sent.send(f).unwrap()));
    let inside = handle.clone();
    inside.run(Box::new(move || drop(one)));
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Err(Error::Stopped));
    handle.fetch(ProcessId(2), note("x"), soon(), Box::new(move |f| tx.send(f).unwrap()));
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Err(Error::Stopped));
    assert_eq!(handle.fetch_wait(ProcessId(1), note("x"), soon()), Err(Error::Stopped));
}

#[test]
fn one_peer_can_have_only_so_many_questions_wait() {
    let job = Job::unix();
    let (one, two) = (job.join(1), job.join(2));
    let (tx, rx) = unbounded();
    for n in 0..300 {
        let tx = tx.clone();
        let done = Box::new(move |fetched: Fetched| drop(tx.send((n, fetched))));
        one.fetch(ProcessId(2), note(&format!("{n}")), soon(), done);
    }
    for n in 256..300 {
        let (number, fetched) = rx.recv_timeout(LONG).unwrap();
        assert_eq!(number, n);
        assert!(matches!(fetched, Err(Error::Busy { .. })), "{fetched:?}");
    }
    // Every other question is still served, and those that wait get their answers.
    one.fetch_wait(ProcessId(2), Fetch::Key(1), soon()).unwrap();
    assert!(rx.is_empty());
    (0..256).for_each(|n| two.publish_note(&format!("{n}"), b"").unwrap());
    for n in 0..256 {
        assert_eq!(rx.recv_timeout(LONG).unwrap(), (n, Ok(Record::Note(vec![]))));
    }
    one.fetch_wait(ProcessId(2), note("0"), soon()).unwrap();
}

#[test]
fn deadlines_may_be_as_far_as_the_clock_goes() {
    let job = Job::unix();
    let one = job.join(1);
    let far = (0..63).rev().fold(Instant::now(), |at, bit| {
        at.checked_add(Duration::from_secs(1 << bit)).unwrap_or(at)
    });
    one.fetch_wait(ProcessId(1), Fetch::Key(1), far).unwrap();
    let (tx, rx) = bounded(1);
    one.fetch(ProcessId(2), Fetch::Key(1), far, Box::new(move |f| tx.send(f).unwrap()));
    one.fetch_wait(ProcessId(1), Fetch::Key(1), far).unwrap();
    let _two = job.join(2);
    assert!(rx.recv_timeout(LONG).unwrap().is_ok());
}

#[test]
fn an_address_that_peers_cannot_use_is_not_published() {
    let job = Job::unix();
    let mut config = job.config(&job.key);
    config.listen_tcp = Some([0, 0, 0, 0].into());
    let error = Service::start(config, Arc::new(Tables::default())).err().unwrap().to_string();
    assert!(error.contains("0.0.0.0"), "{error}");
}

#[test]
fn limits_of_ones_own_notes_are_told_at_once() {
    let job = Job::unix();
    let one = job.join(1);
    let error = one.publish_note("x", &vec![0; MAX_NOTE + 1]).unwrap_err().to_string();
    assert!(error.contains("32769") && error.contains("32768"), "{error}");
    assert!(one.publish_note(&"x".repeat(256), b"").is_err());
    let error = one.fetch_wait(ProcessId(1), note(&"x".repeat(256)), soon()).unwrap_err();
    assert!(matches!(error, Error::Limit { value: 256, limit: 255, .. }), "{error}");
}

#[test]
fn a_socket_directory_is_left_as_it_was_found() {
    let job = Job::unix();
    let count = || std::fs::read_dir(job.dir.path()).unwrap().count();
    let before = count();
    let one = job.join(1);
    assert_eq!(count(), before + 1);
    drop(one);
    assert_eq!(count(), before);
}
