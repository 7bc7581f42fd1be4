//! Peers that die, stop, or replace themselves in the middle of anything: the others neither hang
//! nor are written to where they no longer allow it.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{self, QpAttr, SendWr, Wc, qp_mask as m, qp_type, wc_status, wr_opcode};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Plays the other process's part.
#[test]
fn helper() {
    match role().as_deref() {
        Some("writer") => writer(),
        Some("sender") => sender(),
        Some("sink") => sink(),
        Some("sleeper") => sleeper(),
        Some("replaced") => replaced(),
        Some("one-write") => one_write(),
        Some("one-send") => one_send(),
        Some("shared") => shared(),
        _ => {}
    }
}

/// A failed endpoint of a helper that goes on anew: a new QP is the other side's business.
fn loops(end: &End, mut one: impl FnMut(&End, u64) -> bool) {
    let mut i = 0;
    while one(end, i) {
        i += 1;
    }
}

/// WRITEs growing numbers until something fails; says with which status.
fn writer() {
    let end = End::new(&Setup::default());
    let to = meet(&end);
    let len: u32 = listen().parse().unwrap();
    say("go");
    loops(&end, |end, i| {
        end.memory.fill(0, 8, i as u8 | 1);
        end.write(i, 0, len, &to, 0);
        let wc = end.wait();
        if wc.status != wc_status::SUCCESS {
            say(wc_status::name(wc.status));
        }
        wc.status == wc_status::SUCCESS
    });
    listen();
}

/// SENDs until something fails; says how many succeeded.
fn sender() {
    let end = End::new(&Setup::default());
    meet(&end);
    let len: u32 = listen().parse().unwrap();
    say("go");
    loops(&end, |end, i| {
        end.memory.put(0, &i.to_le_bytes());
        end.send(i, 0, len);
        let wc = end.wait();
        if wc.status != wc_status::SUCCESS {
            say(&format!("{i} {}", wc_status::name(wc.status)));
        }
        wc.status == wc_status::SUCCESS
    });
    listen();
}

/// Receives for ever.
fn sink() {
    let end = End::new(&Setup::default());
    for i in 0..128 {
        end.recv(i, 0, 65536).unwrap();
    }
    meet(&end);
    loop {
        let mut wc = [Wc::default()];
        if end.cq.poll(&mut wc).unwrap() == 1 && wc[0].status == wc_status::SUCCESS {
            end.recv(wc[0].wr_id, 0, 65536).unwrap();
        }
    }
}

/// Connects, and does nothing at all.
fn sleeper() {
    let end = End::new(&Setup::default());
    meet(&end);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Connects, and replaces its program when told.
fn replaced() {
    use std::os::unix::process::CommandExt;
    let end = End::new(&Setup::default());
    meet(&end);
    listen();
    let error = std::process::Command::new("/bin/sleep").arg("60").exec();
    panic!("exec: {error}");
}

/// One WRITE; with a stop point set, it stops between check and copy.
fn one_write() {
    let end = End::new(&Setup::default());
    let to = meet(&end);
    end.memory.fill(0, 4096, 0xee);
    listen();
    end.write(1, 0, 4096, &to, 0);
    say(wc_status::name(end.wait().status));
    listen();
}

/// One SEND; with a stop point set, it stops between check and ring.
fn one_send() {
    let end = End::new(&Setup::default());
    meet(&end);
    listen();
    end.send(1, 0, 64);
    say(wc_status::name(end.wait().status));
    listen();
}

/// Receives on a shared receive queue; says what has come and its state, each time it is asked.
fn shared() {
    let attr = abi::SrqAttr { max_wr: 4, max_sge: 1, srq_limit: 0 };
    let end = End::new(&Setup { srq: Some(attr), ..Setup::default() });
    for i in 1..=2 {
        post_srq(&**end.srq.as_ref().unwrap(), i, &mut [end.sge(0, 65536)]).unwrap();
    }
    meet(&end);
    while listen() == "look" {
        // Each look reads what peers have asked.
        let mut wc = [Wc::default()];
        let came = (0..100).any(|_| end.cq.poll(&mut wc).unwrap() == 1);
        let came = if came { wc_status::name(wc[0].status) } else { "nothing" };
        say(&format!("{came} at {}", end.state()));
    }
}

fn status(wc: &Wc) -> &'static str {
    wc_status::name(wc.status)
}

/// SIGKILL in the middle of a stream: the survivor's sends fail, none hangs, the rest is flushed,
/// and whatever kind of request is under way.
#[test]
fn a_killed_peer_fails_what_is_sent_to_it() {
    for (role, opcode, len) in [
        ("sink", wr_opcode::SEND, 64u32),
        ("sink", wr_opcode::SEND, 60_000),
        ("sleeper", wr_opcode::SEND, 64),
        ("sleeper", wr_opcode::RDMA_WRITE, 60_000),
        ("sleeper", wr_opcode::RDMA_READ, 60_000),
        ("sleeper", wr_opcode::ATOMIC_FETCH_AND_ADD, 8),
    ] {
        let mut other = Other::start(role, &[]);
        let end = End::new(&Setup::default());
        let to = other.connect(&end);
        let mut posted = 0u64;
        let mut done = 0u64;
        let killed = Instant::now() + Duration::from_millis(50);
        let mut dead = false;
        let failure = loop {
            let mut wr: SendWr = rdma(opcode, posted, &to, 0);
            if opcode == wr_opcode::ATOMIC_FETCH_AND_ADD {
                wr.wr.atomic =
                    abi::AtomicWr { remote_addr: to.addr, compare_add: 1, swap: 0, rkey: to.rkey };
            }
            if posted - done < 64 {
                end.post(wr, 0, len).unwrap();
                posted += 1;
            }
            if !dead && Instant::now() > killed {
                other.signal(libc::SIGKILL);
                dead = true;
            }
            let mut wc = [Wc::default()];
            if end.cq.poll(&mut wc).unwrap() == 1 {
                assert_eq!(wc[0].wr_id, done);
                done += 1;
                if wc[0].status != wc_status::SUCCESS {
                    break wc[0];
                }
            }
            assert!(Instant::now() < killed + PATIENCE, "{role} {opcode} {len}: nothing fails");
        };
        assert!(dead);
        assert_eq!(status(&failure), "RETRY_EXC_ERR", "{role} {opcode} {len}");
        while done < posted {
            let wc = end.wait();
            assert_eq!((wc.wr_id, status(&wc)), (done, "WR_FLUSH_ERR"));
            done += 1;
        }
        assert_eq!(end.state(), "ERR");
    }
}

/// What a peer completed before it was killed arrives all the same.
#[test]
fn completed_messages_survive_their_sender() {
    let mut other = Other::start("sender", &[]);
    let end = End::new(&Setup { cqe: 4096, ..Setup::default() });
    for i in 0..100 {
        end.recv(i, i as usize * 64, 64).unwrap();
    }
    other.connect(&end);
    other.tell("64");
    assert_eq!(other.hear(), "go");
    // The hundred receives are taken, and the next SEND waits.
    let done = || end.qp.query(m::RQ_PSN).unwrap().rq_psn == 0x1234 + 100;
    until("a hundred messages", done);
    other.signal(libc::SIGKILL);
    other.child.wait().unwrap();
    for i in 0..100u64 {
        assert_eq!(end.success().wr_id, i);
        assert_eq!(end.memory.get(i as usize * 64, 8), i.to_le_bytes());
    }
}

/// A peer that was never there, or is not ready, is given up after its timeout, not sooner and
/// not never.
#[test]
fn an_absent_peer_is_given_up() {
    let end = End::new(&Setup::default());
    // Nobody owns the block of QPN 2.
    let nobody = Address { qpn: 2, ..end.address() };
    let attr = QpAttr { timeout: 13, retry_cnt: 1, ..attributes(&nobody) };
    bring_up(&*end.qp, &attr);
    let begun = Instant::now();
    end.send(1, 0, 8);
    assert_eq!(status(&end.wait()), "RETRY_EXC_ERR");
    // 4.096 µs × 2^13 × 2.
    assert!(begun.elapsed() >= Duration::from_millis(67), "{:?}", begun.elapsed());

    let (a, b) = (End::new(&Setup::default()), End::new(&Setup::default()));
    a.connect(&b.address());
    a.send(1, 0, 8);
    a.nothing();
    b.recv(2, 0, 8).unwrap();
    b.connect(&a.address());
    assert_eq!(a.success().wr_id, 1, "in time it is found");
    // One whose packet numbers do not fit does not answer.
    let (a, b) = (End::new(&Setup::default()), End::new(&Setup::default()));
    bring_up(&*a.qp, &QpAttr { sq_psn: 0x1235, ..attributes(&b.address()) });
    b.connect(&a.address());
    b.recv(2, 0, 8).unwrap();
    a.send(1, 0, 8);
    assert_eq!(status(&a.wait()), "RETRY_EXC_ERR");
    b.nothing();
}

/// A WRITE is out to a peer that was stopped before it was dialed.
fn dialing_a_stopped_one() -> (Other, End) {
    let mut other = Other::start("sleeper", &[]);
    let end = End::new(&Setup::default());
    let to = Address::parse(&other.hear());
    other.tell(&end.address().text());
    assert_eq!(other.hear(), "connected");
    other.signal(libc::SIGSTOP);
    other.stopped();
    // 4.096 µs × 2^12 × 2 = 34 ms. It is dialed in vain here, and once more for the request.
    bring_up(&*end.qp, &QpAttr { timeout: 12, retry_cnt: 1, ..attributes(&to) });
    end.write(1, 0, 64, &to, 0);
    (other, end)
}

/// A peer that is stopped while it is dialed, for longer than the timeout and all retries, fails no request: that it
/// does not answer says nothing of its NIC, which would.
#[test]
fn a_peer_that_is_stopped_while_it_is_dialed_is_waited_for() {
    let (other, end) = dialing_a_stopped_one();
    std::thread::sleep(Duration::from_secs(2));
    end.nothing();
    other.signal(libc::SIGCONT);
    assert_eq!(end.success().wr_id, 1);

    // One that dies while it is dialed is given up.
    let (other, end) = dialing_a_stopped_one();
    other.signal(libc::SIGKILL);
    assert_eq!(status(&end.wait()), "RETRY_EXC_ERR");
}

/// A message that has come to a shared receive queue is acknowledged, though its queue pair is destroyed before
/// anybody has looked: a NIC would have done so when it came.
#[test]
fn a_message_that_has_come_is_acknowledged_by_a_queue_pair_that_leaves() {
    let attr = abi::SrqAttr { max_wr: 4, max_sge: 1, srq_limit: 0 };
    for round in 0..50 {
        let setup = Setup { srq: Some(attr), memory: 65536, ..Setup::default() };
        let (a, b) = pair(&setup);
        post_srq(&**b.srq.as_ref().unwrap(), 2, &mut [b.sge(0, 64)]).unwrap();
        a.memory.put(0, &[round + 1]);
        a.send(1, 0, 64);
        drop(b.qp);
        assert_eq!((a.wait().status, round), (wc_status::SUCCESS, round));
        assert_eq!(b.memory.get(0, 1), [round + 1]);
    }
}

/// A stopped peer needs not run to be written to; what it must answer waits until it goes on.
#[test]
fn a_stopped_peer_is_waited_for() {
    let mut other = Other::start("sink", &[]);
    let end = End::new(&Setup::default());
    let to = other.connect(&end);
    other.signal(libc::SIGSTOP);
    other.stopped();
    end.write(1, 0, 100_000, &to, 0);
    assert_eq!(end.success().wr_id, 1);
    let mut wr = send(2);
    wr.opcode = wr_opcode::ATOMIC_FETCH_AND_ADD;
    wr.wr.atomic = abi::AtomicWr { remote_addr: to.addr, compare_add: 1, swap: 0, rkey: to.rkey };
    end.post(wr, 0, 8).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    end.nothing();
    other.signal(libc::SIGCONT);
    assert_eq!(end.success().wr_id, 2);
}

/// Deregistration under fire: after it has returned nothing lands any more, and the writer hears
/// that its access is not allowed.
#[test]
fn nothing_lands_after_deregistration() {
    for len in [8u32, 1 << 20] {
        let mut other = Other::start("writer", &[]);
        let end = End::new(&Setup::default());
        other.connect(&end);
        other.tell(&len.to_string());
        assert_eq!(other.hear(), "go");
        until("the first write", || end.memory.get(0, 1) != [0]);
        std::thread::sleep(Duration::from_millis(30));
        end.mr.dereg().unwrap();
        end.memory.fill(0, len as usize, 0);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            assert!(end.memory.get(0, len as usize).iter().all(|b| *b == 0), "something landed");
        }
        assert_eq!(other.hear(), "REM_ACCESS_ERR");
        until("the responder fails too", || end.state() == "ERR");
    }
}

/// ERR under fire: after the QP is at ERR nothing lands any more, and its PSN stands still.
#[test]
fn nothing_lands_after_error() {
    for len in [8u32, 1 << 20] {
        let mut other = Other::start("writer", &[]);
        let end = End::new(&Setup::default());
        other.connect(&end);
        other.tell(&len.to_string());
        assert_eq!(other.hear(), "go");
        until("the first write", || end.memory.get(0, 1) != [0]);
        end.to_error();
        let psn = end.qp.query(m::RQ_PSN).unwrap().rq_psn;
        end.memory.fill(0, len as usize, 0);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            assert!(end.memory.get(0, len as usize).iter().all(|b| *b == 0), "something landed");
        }
        assert_eq!(end.qp.query(m::RQ_PSN).unwrap().rq_psn, psn);
        assert_eq!(other.hear(), "RETRY_EXC_ERR");
    }
}

/// ERR in the middle of a stream of messages: those that their sender completed with success are
/// exactly those that were received with success (one at the edge may be received, and its
/// sender not know).
#[test]
fn both_sides_of_an_error_agree() {
    for (round, len) in [64u32, 64, 64, 30_000, 30_000].into_iter().enumerate() {
        let mut other = Other::start("sender", &[]);
        let end = End::new(&Setup { cqe: 100_000, ..Setup::default() });
        for i in 0..256 {
            end.recv(i, 0, 30_000).unwrap();
        }
        other.connect(&end);
        other.tell(&len.to_string());
        assert_eq!(other.hear(), "go");
        let mut received = 0u64;
        let until = Instant::now() + Duration::from_millis(3 + 7 * round as u64);
        while Instant::now() < until {
            let mut wc = [Wc::default()];
            if end.cq.poll(&mut wc).unwrap() == 1 {
                assert_eq!(status(&wc[0]), "SUCCESS");
                received += 1;
                end.recv(wc[0].wr_id, 0, 30_000).unwrap();
            }
        }
        end.to_error();
        let mut flushed = 0;
        while flushed < 256 {
            let mut wc = [Wc::default()];
            if end.cq.poll(&mut wc).unwrap() == 0 {
                break;
            }
            match status(&wc[0]) {
                "SUCCESS" => {
                    assert_eq!(flushed, 0, "a success behind a flush");
                    received += 1;
                }
                "WR_FLUSH_ERR" => flushed += 1,
                other => panic!("{other}"),
            }
        }
        let said = other.hear();
        let (sent, failure) = said.split_once(' ').unwrap();
        let sent: u64 = sent.parse().unwrap();
        assert!(failure == "RETRY_EXC_ERR", "{failure}");
        assert!(received == sent || received == sent + 1, "{sent} sent, {received} received");
    }
}

/// A peer that was stopped between its check and its copy writes nothing when it goes on, if the
/// memory was deregistered, or the QP taken to ERR, meanwhile; neither waits for it.
#[cfg(debug_assertions)]
#[test]
fn a_stopped_copy_is_revoked() {
    for way in ["dereg", "error", "nothing"] {
        let mut other = Other::start("one-write", &[("SOJOURN_SOFT_TEST_STOP", "before-copy")]);
        let end = End::new(&Setup::default());
        other.connect(&end);
        other.tell("go");
        other.stopped();
        let begun = Instant::now();
        match way {
            "dereg" => end.mr.dereg().unwrap(),
            "error" => end.to_error(),
            _ => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(end.memory.get(0, 4096), vec![0; 4096]);
        other.signal(libc::SIGCONT);
        let said = other.hear();
        match way {
            "dereg" => assert_eq!(said, "REM_ACCESS_ERR"),
            "error" => assert_eq!(said, "RETRY_EXC_ERR"),
            _ => assert_eq!(said, "SUCCESS"),
        }
        let landed = if way == "nothing" { 0xee } else { 0 };
        assert_eq!(end.memory.get(0, 4096), vec![landed; 4096], "{way}");
    }
}

/// A message that its sender could not publish before the other side's flush is not delivered, and
/// its sender does not believe so either.
#[cfg(debug_assertions)]
#[test]
fn a_message_behind_the_flush_fails() {
    let mut other = Other::start("one-send", &[("SOJOURN_SOFT_TEST_STOP", "before-publish")]);
    let end = End::new(&Setup::default());
    end.recv(5, 0, 64).unwrap();
    other.connect(&end);
    other.tell("go");
    other.stopped();
    end.to_error();
    let wc = end.wait();
    assert_eq!((wc.wr_id, status(&wc)), (5, "WR_FLUSH_ERR"));
    other.signal(libc::SIGCONT);
    assert_eq!(other.hear(), "RETRY_EXC_ERR");
    end.nothing();
}

/// A message that was received has succeeded, though its receiver leaves before the sender sees to
/// what became of it: by destroying its queue pair, by RESET, by ERR and RESET.
#[cfg(debug_assertions)]
#[test]
fn a_received_message_has_succeeded_whatever_its_receiver_does_next() {
    for leave in ["destroy", "reset", "error"] {
        let mut other = Other::start("one-send", &[("SOJOURN_SOFT_TEST_STOP", "before-verdict")]);
        let mut end = End::new(&Setup::default());
        end.recv(1, 0, 64).unwrap();
        end.recv(2, 0, 64).unwrap();
        other.connect(&end);
        other.tell("go");
        other.stopped();
        assert_eq!(end.success().wr_id, 1);
        if leave == "error" {
            end.to_error();
        }
        if leave == "destroy" {
            end.qp = End::new(&Setup::default()).qp;
        } else {
            modify(&*end.qp, abi::qp_state::RESET, &QpAttr::default(), 0);
        }
        other.signal(libc::SIGCONT);
        assert_eq!(other.hear(), "SUCCESS", "{leave}");
        other.tell("end");
    }
}

/// Killed between check and copy: the other side neither hangs nor is written to.
#[cfg(debug_assertions)]
#[test]
fn a_peer_killed_in_a_copy_is_not_waited_for() {
    let mut other = Other::start("one-write", &[("SOJOURN_SOFT_TEST_STOP", "before-copy")]);
    let end = End::new(&Setup::default());
    other.connect(&end);
    other.tell("go");
    other.stopped();
    other.signal(libc::SIGKILL);
    end.mr.dereg().unwrap();
    end.to_error();
    other.child.wait().unwrap();
    assert_eq!(end.memory.get(0, 4096), vec![0; 4096]);
}

/// A process that replaces its program keeps its pid, and is still not written to.
#[test]
fn a_replaced_program_is_not_written_to() {
    let mut other = Other::start("replaced", &[]);
    let end = End::new(&Setup::default());
    let to = other.connect(&end);
    end.write(1, 0, 8, &to, 0);
    end.success();
    other.tell("exec");
    let exe = format!("/proc/{}/exe", other.pid());
    until("exec", || {
        std::fs::read_link(&exe).is_ok_and(|path| !path.to_string_lossy().contains("soft_faults"))
    });
    // The same address may be mapped there: it must not even be tried.
    end.write(2, 0, 8, &to, 0);
    let wc = end.wait();
    assert_eq!((wc.wr_id, status(&wc)), (2, "RETRY_EXC_ERR"));
    assert!(other.child.try_wait().unwrap().is_none(), "the process lives on");
}

/// A process that comes to have the pid of a dead peer, with memory at the same address.
struct Stranger {
    pid: i32,
    ask: PipeWriter,
}

impl Stranger {
    /// Makes one; `Err` says why this machine does not let us.
    fn new(pid: i32, addr: u64) -> Result<Stranger, String> {
        let (question, ask) = std::io::pipe().unwrap();
        let (mut ready, tell) = std::io::pipe().unwrap();
        // SAFETY: plain data, all zeros.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.exit_signal = libc::SIGCHLD as u64;
        args.set_tid = (&raw const pid) as u64;
        args.set_tid_size = 1;
        // SAFETY: a fork; the child makes system calls only, and exits.
        let got = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
        if got == 0 {
            // SAFETY: raw calls on descriptors that are open here, and on a page that is mapped
            // here if it was not before.
            unsafe {
                let (page, mut byte) = (addr as *mut libc::c_void, 0u8);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                libc::mmap(page, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                page.cast::<u64>().write_volatile(0x5eed);
                libc::write(tell.as_raw_fd(), (&raw const byte).cast(), 1);
                // Until it is asked, or nobody is there to ask.
                libc::close(ask.as_raw_fd());
                libc::read(question.as_raw_fd(), (&raw mut byte).cast(), 1);
                let same = page.cast::<u64>().read_volatile() == 0x5eed;
                libc::_exit(if same { 0 } else { 1 });
            }
        }
        if got < 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        drop(tell);
        ready.read_exact(&mut [0]).expect("the stranger is there");
        Ok(Stranger { pid: got as i32, ask })
    }

    /// Whether its memory is as it was.
    fn untouched(mut self) -> bool {
        self.ask.write_all(&[0]).unwrap();
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

/// A process that is given the pid of a dead peer is not written to, though it has memory at the
/// same address.
#[test]
fn a_pid_that_is_dealt_anew_is_a_stranger() {
    let mut other = Other::start("sleeper", &[]);
    let end = End::new(&Setup::default());
    let to = other.connect(&end);
    end.memory.fill(0, 8, 0xee);
    end.write(1, 0, 8, &to, 0);
    end.success();
    let pid = other.pid();
    other.signal(libc::SIGKILL);
    other.child.wait().unwrap();
    let stranger = match Stranger::new(pid, to.addr) {
        Ok(stranger) => stranger,
        Err(why) => return eprintln!("skipped: no process can be given pid {pid}: {why}"),
    };
    end.write(2, 0, 8, &to, 0);
    let wc = end.wait();
    assert_eq!((wc.wr_id, status(&wc)), (2, "RETRY_EXC_ERR"));
    assert!(stranger.untouched());
}

/// Deregistering the *local* memory of a READ in flight waits for it: nothing lands afterwards.
#[test]
fn local_memory_is_fenced_too() {
    let (a, b) = pair(&Setup { memory: 16 << 20, ..Setup::default() });
    b.memory.fill(0, 4 << 20, 5);
    let to = b.address();
    let stop = AtomicBool::new(false);
    for _ in 0..20 {
        let (a, b) = pair(&Setup::default());
        let to = b.address();
        b.memory.fill(0, 1 << 20, 5);
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    a.read(1, 0, 1 << 20, &to, 0);
                    if a.wait().status != wc_status::SUCCESS {
                        break;
                    }
                }
            });
            until("the first read", || a.memory.get((1 << 20) - 1, 1) == [5]);
            a.mr.dereg().unwrap();
            a.memory.fill(0, 1 << 20, 0);
            std::thread::sleep(Duration::from_millis(2));
            assert!(a.memory.get(0, 1 << 20).iter().all(|b| *b == 0), "something landed");
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
    a.read(1, 0, 8, &to, 0);
    a.success();
}

/// A UC peer that is gone is not noticed.
#[test]
fn unreliable_connections_do_not_notice_death() {
    let uc = Setup { qp_type: qp_type::UC, ..Setup::default() };
    let a = End::new(&uc);
    {
        let b = End::new(&uc);
        a.connect(&b.address());
        b.connect(&a.address());
    }
    a.send(1, 0, 8);
    assert_eq!(a.success().wr_id, 1);
    assert_eq!(a.state(), "RTS");
}

/// A SEND to a shared receive queue whose sender leaves before it was copied is not received: its
/// receive stays, nothing completes, and the queue pair does not fail.
#[test]
fn a_sender_that_is_gone_takes_no_shared_receive() {
    let mut other = Other::start("shared", &[]);
    let mut end = End::new(&Setup::default());
    other.connect(&end);
    other.tell("look");
    assert_eq!(other.hear(), "nothing at RTS");
    other.signal(libc::SIGSTOP);
    other.stopped();
    end.send(1, 0, 60_000);
    end.nothing();
    end.qp = End::new(&Setup::default()).qp;
    other.signal(libc::SIGCONT);
    other.tell("look");
    assert_eq!(other.hear(), "nothing at RTS");
    other.tell("end");
}

/// A peer that closes its context while its process lives on is gone as well.
#[test]
fn a_closed_context_is_gone() {
    let a = End::new(&Setup::default());
    {
        let b = End::new(&Setup::default());
        a.connect(&b.address());
        b.connect(&a.address());
        a.write(1, 0, 8, &b.address(), 0);
        a.success();
    }
    a.send(2, 0, 8);
    assert_eq!(status(&a.wait()), "RETRY_EXC_ERR");
}
