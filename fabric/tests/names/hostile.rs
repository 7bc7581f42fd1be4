//! Strangers, holders of the wrong key, and those who say nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sojourn_fabric::names::directory::LocalDirectory;
use sojourn_fabric::names::{
    Endpoint, Error, Fetch, JobKey, PrivateDir, ProcessId, Service, ServiceConfig,
};

use crate::support::{Job, LONG, Tables, qpn, soon};

#[test]
fn another_key_is_refused_with_its_file_and_the_directory_named() {
    for job in [Job::unix(), Job::tcp()] {
        let other = job.dir.path().join("other-key");
        JobKey::generate().unwrap().write(&other).unwrap();
        let config = job.config(&JobKey::read(&other).unwrap());
        let error = Service::start(config, Arc::new(Tables::default())).err().unwrap();
        assert!(matches!(error, Error::KeyMismatch { .. }));
        let text = error.to_string();
        assert!(text.contains("does not match"), "{text}");
        assert!(text.contains(other.to_str().unwrap()), "{text}");
        assert!(text.contains(&job.at.to_string()), "{text}");
        // The key from the file of the job is let in.
        let config = job.config(&JobKey::read(&job.key_file()).unwrap());
        Service::start(config, Arc::new(Tables::default())).unwrap();
    }
}

#[test]
fn processes_of_different_keys_get_nothing_from_each_other() {
    // A directory that lists both: what keeps them apart is the key alone.
    let keys = [JobKey::generate().unwrap(), JobKey::generate().unwrap()];
    let directory = LocalDirectory::new(keys[0].job_id()).unwrap();
    let another = directory.another().unwrap();
    let start = |directory, key: &JobKey| {
        let tables = Arc::new(Tables::default());
        let config = ServiceConfig::new(Box::new(directory), key.clone());
        (Service::start(config, tables.clone()).unwrap(), tables)
    };
    let (_one, tables) = start(directory, &keys[0]);
    let (two, _) = start(another, &keys[1]);
    let error = two.fetch_wait(ProcessId(1), qpn(1), soon()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }));
    assert!(error.to_string().contains("same job key"), "{error}");
    assert!(tables.asked.lock().unwrap().is_empty());
}

/// Reads until the other side hangs up. Fails if it has not by then.
fn hung_up(stream: &mut (impl Read + ?Sized)) {
    let mut rest = vec![];
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
}

#[test]
fn one_who_connects_and_says_nothing_is_dropped_and_holds_up_nobody() {
    let dir = PrivateDir::create().unwrap();
    let at = Endpoint::Unix(dir.path().join("directory"));
    let job = Job::start(dir, at, |config| config.handshake_time = Duration::from_secs(2));
    let Endpoint::Unix(path) = &job.at else { unreachable!() };
    let begun = Instant::now();
    let mut silent = UnixStream::connect(path).unwrap();
    silent.set_read_timeout(Some(LONG)).unwrap();
    // One that stops half-way through its first message is no better.
    let mut half = UnixStream::connect(path).unwrap();
    half.set_read_timeout(Some(LONG)).unwrap();
    half.write_all(&[0, 49, 1, 2, 3]).unwrap();
    let one = job.join(1);
    one.fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap();
    hung_up(&mut silent);
    hung_up(&mut half);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it had its time");
    job.join(2);
}

#[test]
fn noise_of_any_kind_ends_its_own_connection_and_nothing_else() {
    let job = Job::tcp();
    let Endpoint::Tcp(address) = job.at else { unreachable!() };
    let noise: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 200],
        &[0xff; 200],
        // A frame of the right length that holds no handshake.
        &[&[0, 49][..], &[0x55; 49]].concat(),
        &[0, 1, 1],
    ];
    for bytes in noise {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // It may hang up in the middle of this.
        let _ = stream.write_all(bytes);
        hung_up(&mut stream);
    }
    job.join(1).fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap();
}

#[test]
fn a_crowd_of_silent_strangers_keeps_no_member_out() {
    let job = Job::unix();
    let Endpoint::Unix(path) = &job.at else { unreachable!() };
    let crowd: Vec<_> = (0..400).map(|_| UnixStream::connect(path).unwrap()).collect();
    let (one, two) = (job.join(1), job.join(2));
    one.fetch_wait(ProcessId(2), Fetch::Key(1), soon()).unwrap();
    drop((two, crowd));
}

#[test]
fn another_user_is_hung_up_on_even_where_the_file_system_lets_him_in() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can act as another user");
        return;
    }
    let dir = PrivateDir::create().unwrap();
    let at = Endpoint::Unix(dir.path().join("directory"));
    let job = Job::start(dir, at, |config| config.handshake_time = 2 * LONG);
    let path = job.dir.path().join("directory");
    let connect = move |time| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(time)).unwrap();
        stream.read(&mut [0])
    };
    let timeout = connect(Duration::from_millis(100)).unwrap_err();
    assert_eq!(timeout.kind(), std::io::ErrorKind::WouldBlock, "one of ours has its time");
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(job.dir.path(), 0o755);
    open(&job.dir.path().join("directory"), 0o777);
    let stranger = std::thread::spawn(move || {
        // The bare system call changes the calling thread alone, which the C library's would not.
        let unchanged = -1i64 as libc::uid_t;
        // SAFETY: takes three numbers and touches no memory.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, unchanged, 12345, unchanged) };
        assert_eq!(changed, 0);
        connect(LONG)
    });
    match stranger.join().unwrap() {
        Ok(bytes) => assert_eq!(bytes, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}
