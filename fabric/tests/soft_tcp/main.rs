//! The soft device between machines: over this machine's own network between nodes of different
//! LIDs, and between two network namespaces. (What the verbs promise whichever way data travels
//! is tested in `soft_verbs`.)

mod netns;
#[path = "../soft_util/mod.rs"]
mod soft_util;

use netns::Cable;
use soft_util::*;
use sojourn_fabric::abi::{
    self, QpAttr, SendWr, Wc, qp_mask as m, qp_type, send_flags, wc_flags, wc_opcode, wc_status,
    wr_opcode,
};
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Plays the other node's part: connects, then does what it is told.
#[test]
fn helper() {
    let Some(role) = role() else { return };
    let qp_type = if role == "datagrams" { qp_type::UD } else { qp_type::RC };
    let context = open_with("soft0", Options::from_env().unwrap()).unwrap();
    let end = End::in_context(context, &Setup { qp_type, ..Setup::default() });
    meet(&end);
    loop {
        let line = listen();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "fill" => end.memory.put(number(1), &pattern(number(2), number(3) as u8)),
            "recv" => end.recv(number(1) as u64, number(2), number(3) as u32).unwrap(),
            "wait" => {
                let wc = end.wait();
                let status = wc_status::name(wc.status);
                say(&format!("{} {status} {} {}", wc.wr_id, wc.byte_len, wc.imm_data));
                continue;
            }
            "send" => end.send(number(1) as u64, number(2), number(3) as u32),
            "check" => {
                let right =
                    end.memory.get(number(1), number(2)) == pattern(number(2), number(3) as u8);
                say(&right.to_string());
                continue;
            }
            other => panic!("{other}?"),
        }
        say("done");
    }
}

/// Bytes that differ by place and by message.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + usize::from(seed)) as u8).collect()
}

impl Other {
    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }
}

/// Another process on a node of its own, with its own runtime directory and LID.
fn node(role: &str, addr: &str, more: &[(&str, &str)]) -> (Other, tempfile::TempDir) {
    job_key();
    let dir = tempfile::Builder::new().prefix("soft").tempdir().unwrap();
    let lid = far().lid.to_string();
    let run = dir.path().join("run");
    let mut env = vec![
        ("SOJOURN_SOFT_DIR", run.to_str().unwrap()),
        ("SOJOURN_SOFT_LID", &lid),
        ("SOJOURN_SOFT_ADDR", addr),
    ];
    env.extend(more);
    (Other::start(role, &env), dir)
}

const SIZES: [u32; 10] = [0, 1, 63, 1023, 1024, 1025, 4097, 32 << 10, (32 << 10) + 1, 1 << 20];

/// Every kind of request with every size class, checked on both sides.
fn everything_arrives(other: &mut Other, end: &End) {
    let to = other.connect(end);
    const THERE: u64 = 2 << 20;
    for (i, len) in SIZES.into_iter().enumerate() {
        let (seed, size) = (i as u8, len as usize);
        end.memory.put(0, &pattern(size, seed));
        end.write(1, 0, len, &to, THERE);
        assert_eq!(end.success().opcode, wc_opcode::RDMA_WRITE);
        assert_eq!(other.ask(&format!("check {THERE} {len} {seed}")), "true", "WRITE of {len}");
        end.memory.fill(1 << 20, size, 0);
        end.read(2, 1 << 20, len, &to, THERE);
        assert_eq!(end.success().byte_len, len);
        assert!(end.memory.get(1 << 20, size) == pattern(size, seed), "READ of {len}");
        other.ask(&format!("recv {i} 0 {}", 1 << 20));
        let mut wr = SendWr { opcode: wr_opcode::SEND_WITH_IMM, ..send(3) };
        wr.imm.imm_data = 77;
        end.post(wr, 0, len).unwrap();
        end.success();
        assert_eq!(other.ask("wait"), format!("{i} SUCCESS {len} 77"));
        assert_eq!(other.ask(&format!("check 0 {len} {seed}")), "true", "SEND of {len}");
        other.ask(&format!("recv {i} 0 0"));
        let mut wr = rdma(wr_opcode::RDMA_WRITE_WITH_IMM, 4, &to, 3 << 20);
        wr.imm.imm_data = 78;
        end.post(wr, 0, len).unwrap();
        end.success();
        assert_eq!(other.ask("wait"), format!("{i} SUCCESS {len} 78"));
        assert_eq!(other.ask(&format!("check {} {len} {seed}", 3 << 20)), "true");
        end.recv(5, 1 << 20, 1 << 20).unwrap();
        other.ask(&format!("send 6 0 {len}"));
        assert_eq!(end.success().byte_len, len);
        assert!(end.memory.get(1 << 20, size) == pattern(size, seed), "SEND back of {len}");
        assert_eq!(other.ask("wait").split(' ').nth(1), Some("SUCCESS"));
    }
    other.ask("fill 0 8 0");
    let before = u64::from_ne_bytes(pattern(8, 0).try_into().unwrap());
    for i in 0..3 {
        let mut wr = SendWr { opcode: wr_opcode::ATOMIC_FETCH_AND_ADD, ..send(7) };
        wr.wr.atomic =
            abi::AtomicWr { remote_addr: to.addr, compare_add: 5, swap: 0, rkey: to.rkey };
        end.post(wr, 64, 8).unwrap();
        end.success();
        let got = u64::from_ne_bytes(end.memory.get(64, 8).try_into().unwrap());
        assert_eq!(got, before + 5 * i);
    }
}

/// A bad key fails on both sides, and an unready receiver is waited for.
fn errors_arrive(other: &mut Other, end: &End) {
    let to = other.connect(end);
    end.send(1, 0, 100_000);
    end.nothing();
    other.ask("recv 2 0 100000");
    assert_eq!(other.ask("wait"), "2 SUCCESS 100000 0");
    assert_eq!(end.success().wr_id, 1);
    other.ask("recv 3 0 8");
    let bad = Address { rkey: to.rkey ^ 1, ..to };
    end.write(4, 0, 100_000, &bad, 0);
    assert_eq!(wc_status::name(end.wait().status), "REM_ACCESS_ERR");
    assert_eq!(end.state(), "ERR");
    assert_eq!(other.ask("wait").split(' ').nth(1), Some("WR_FLUSH_ERR"));
}

fn here() -> End {
    End::new(&Setup { options: far(), ..Setup::default() })
}

/// All requests of all sizes arrive whole between two processes on nodes of their own.
#[test]
fn requests_cross_nodes() {
    let (mut other, _dir) = node("any", "127.0.0.1", &[]);
    everything_arrives(&mut other, &here());
}

/// Errors are both sides' between nodes too.
#[test]
fn errors_cross_nodes() {
    let (mut other, _dir) = node("any", "127.0.0.1", &[]);
    errors_arrive(&mut other, &here());
}

/// The asynchronous mode sends packet by packet, and all of it arrives.
#[test]
fn the_paced_mode_crosses_nodes() {
    let (mut other, _dir) = node("any", "127.0.0.1", &[]);
    let pace = Pace { latency: Duration::from_micros(5), ..Pace::default() };
    let options = Options { mode: Mode::Async(pace), ..far() };
    everything_arrives(&mut other, &End::new(&Setup { options, ..Setup::default() }));
}

/// A peer that is killed ends what waits for it with RETRY_EXC_ERR, and what comes later too.
#[test]
fn a_killed_peer_is_noticed() {
    let (mut other, _dir) = node("any", "127.0.0.1", &[]);
    let end = here();
    let to = other.connect(&end);
    end.write(1, 0, 8, &to, 0);
    end.success();
    // They wait for receives, with retries without end.
    end.send(2, 0, 8);
    end.send(3, 0, 100_000);
    end.nothing();
    other.signal(libc::SIGKILL);
    let wc = end.wait();
    assert_eq!((wc.wr_id, wc_status::name(wc.status)), (2, "RETRY_EXC_ERR"));
    let wc = end.wait();
    assert_eq!((wc.wr_id, wc_status::name(wc.status)), (3, "WR_FLUSH_ERR"));
    assert_eq!(end.state(), "ERR");
}

/// A peer that is stopped is waited for, and misses nothing.
#[test]
fn a_stopped_peer_goes_on() {
    let (mut other, _dir) = node("any", "127.0.0.1", &[]);
    let end = here();
    let to = other.connect(&end);
    end.memory.put(0, &pattern(100_000, 1));
    end.write(1, 0, 8, &to, 0);
    end.success();
    other.signal(libc::SIGSTOP);
    other.stopped();
    for i in 0..5 {
        end.write(i, 0, 100_000, &to, i * 100_000);
    }
    std::thread::sleep(Duration::from_millis(200));
    end.nothing();
    other.signal(libc::SIGCONT);
    for i in 0..5 {
        assert_eq!(end.success().wr_id, i);
    }
    assert_eq!(other.ask("check 400000 100000 1"), "true");
}

/// Two that flood each other with more than all buffers hold do not lock each other up.
#[test]
fn a_flood_both_ways_drains() {
    let setup = Setup { options: far(), ..Setup::default() };
    let (a, b) = pair(&setup);
    let (ta, tb) = (a.address(), b.address());
    const LEN: u32 = 1 << 20;
    a.memory.put(0, &pattern(LEN as usize, 1));
    b.memory.put(0, &pattern(LEN as usize, 2));
    for i in 0..24 {
        a.write(i, 0, LEN, &tb, 1 << 20);
        b.write(i, 0, LEN, &ta, 1 << 20);
        a.read(i, 2 << 20, LEN, &tb, 0);
        b.read(i, 2 << 20, LEN, &ta, 0);
    }
    for i in 0..24 {
        for end in [&a, &b] {
            assert_eq!((end.success().wr_id, end.success().wr_id), (i, i));
        }
    }
    assert!(a.memory.get(1 << 20, LEN as usize) == pattern(LEN as usize, 2));
    assert!(b.memory.get(1 << 20, LEN as usize) == pattern(LEN as usize, 1));
    assert!(a.memory.get(2 << 20, LEN as usize) == pattern(LEN as usize, 2));
    assert!(b.memory.get(2 << 20, LEN as usize) == pattern(LEN as usize, 1));
}

/// Once a region is deregistered nothing lands in it, however much is on its way.
#[test]
fn deregistration_fences_the_network() {
    let setup = Setup { options: far(), ..Setup::default() };
    let (a, b) = pair(&setup);
    let to = b.address();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            a.memory.fill(0, 1 << 20, 1);
            let mut posted = 0u64;
            while !stop.load(Ordering::Relaxed) {
                if a.post(rdma(wr_opcode::RDMA_WRITE, posted, &to, 0), 0, 1 << 20).is_ok() {
                    posted += 1;
                }
                let mut wc = [Wc::default()];
                if a.cq.poll(&mut wc).unwrap() == 1 && wc[0].status != wc_status::SUCCESS {
                    return wc[0].status;
                }
            }
            wc_status::SUCCESS
        }
    });
    until("data arrives", || b.memory.get((1 << 20) - 1, 1) == [1]);
    b.mr.dereg().unwrap();
    b.memory.fill(0, 1 << 20, 2);
    let status = {
        let deadline = Instant::now() + PATIENCE;
        while !writer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    };
    assert_eq!(wc_status::name(status), "REM_ACCESS_ERR");
    assert!(b.memory.get(0, 1 << 20).iter().all(|byte| *byte == 2), "written after deregistration");
}

/// Once a queue pair is at ERR, nothing that a peer still sends lands, and the message that it cut
/// has not consumed its receive.
#[test]
fn an_error_fences_the_network() {
    let setup = Setup { options: far(), ..Setup::default() };
    let (a, b) = pair(&setup);
    b.recv(9, 0, 4 << 20).unwrap();
    a.memory.fill(0, 4 << 20, 1);
    a.send(1, 0, 4 << 20);
    until("data arrives", || b.memory.get(0, 1) == [1]);
    b.to_error();
    let complete = b.wait();
    b.memory.fill(0, 4 << 20, 2);
    let sent = a.wait();
    // Whether the message was whole by then, both sides say the same.
    assert_eq!(complete.status == wc_status::SUCCESS, sent.status == wc_status::SUCCESS);
    if complete.status != wc_status::SUCCESS {
        assert_eq!(wc_status::name(complete.status), "WR_FLUSH_ERR");
        assert_eq!(wc_status::name(sent.status), "RETRY_EXC_ERR");
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(b.memory.get(0, 4 << 20).iter().all(|byte| *byte == 2), "written after ERR");
}

/// UC needs no answers: what finds no receive, or no permission, is dropped, the rest arrives.
#[test]
fn unreliable_connections_cross_nodes() {
    let setup = Setup { qp_type: qp_type::UC, options: far(), ..Setup::default() };
    let (a, b) = pair(&setup);
    let to = b.address();
    a.memory.put(0, &pattern(100_000, 3));
    let mut bad = rdma(wr_opcode::RDMA_WRITE, 1, &to, 0);
    bad.wr.rdma.rkey = 0;
    a.post(bad, 0, 100_000).unwrap();
    a.send(2, 0, 100_000);
    a.write(3, 0, 100_000, &to, 1 << 20);
    for i in 1..4 {
        assert_eq!(a.success().wr_id, i);
    }
    // The last one has arrived, so the others were there before.
    let all = pattern(100_000, 3);
    until("the WRITE lands", || b.memory.get(1 << 20, 100_000) == all);
    b.nothing();
    assert_eq!((a.state(), b.state()), ("RTS", "RTS"));
    b.recv(4, 0, 100_000).unwrap();
    a.send(5, 0, 100_000);
    a.success();
    assert_eq!((b.success().wr_id, b.memory.get(0, 100_000) == all), (4, true));
}

fn datagram(ah: &dyn sojourn_fabric::device::DeviceAh, to: u32, qkey: u32) -> SendWr {
    let mut wr = SendWr { opcode: wr_opcode::SEND_WITH_IMM, ..send(1) };
    wr.imm.imm_data = 12;
    wr.wr.ud = abi::UdWr { ah: ah.as_raw(), remote_qpn: to, remote_qkey: qkey };
    wr
}

/// Datagrams say where they come from, so that they can be answered; those with a wrong key are
/// dropped.
#[test]
fn datagrams_cross_nodes() {
    let setup = Setup { qp_type: qp_type::UD, options: far(), ..Setup::default() };
    let (a, b) = (End::new(&setup), End::new(&setup));
    a.connect(&b.address());
    b.connect(&a.address());
    let (there, home) = (b.address(), a.address());
    let ah = Arc::clone(&a.pd).create_ah(&there.vector()).unwrap();
    b.recv(7, 0, 40 + 4096).unwrap();
    a.memory.put(0, &pattern(4096, 9));
    a.post(datagram(&*ah, there.qpn, 0x2222), 0, 8).unwrap();
    a.success();
    a.post(datagram(&*ah, 0xff_ffff, 0x1111), 0, 8).unwrap();
    a.success();
    a.post(datagram(&*ah, there.qpn, 0x1111), 0, 4096).unwrap();
    a.success();
    let wc = b.success();
    assert_eq!((wc.wr_id, wc.byte_len, wc.imm_data), (7, 40 + 4096, 12));
    assert_eq!((wc.src_qp, wc.slid), (home.qpn, home.lid));
    assert_eq!(wc.wc_flags, wc_flags::WITH_IMM | wc_flags::GRH);
    assert_eq!(b.memory.get(40, 4096), pattern(4096, 9));
    let head = b.memory.get(0, 40);
    assert_eq!(head[8..24], home.gid.0);
    assert_eq!(head[24..], there.gid.0);
    // The answer goes where the question's header says.
    let mut back = abi::AhAttr { dlid: wc.slid, port_num: 1, is_global: 1, ..Default::default() };
    back.grh.dgid.0.copy_from_slice(&head[8..24]);
    let ah = Arc::clone(&b.pd).create_ah(&back).unwrap();
    a.recv(8, 1 << 20, 100).unwrap();
    b.post(datagram(&*ah, wc.src_qp, 0x1111), 0, 10).unwrap();
    b.success();
    assert_eq!((a.success().wr_id, a.memory.get((1 << 20) + 40, 10)), (8, head[..10].to_vec()));
}

/// A peer with another job key is refused at RTR, by name, and never parsed.
#[test]
fn another_job_key_is_refused() {
    let key = key_file(&"a5".repeat(32));
    let (other, _dir) = node("any", "127.0.0.1", &[("SOJOURN_KEY_FILE", &key)]);
    let theirs = Address::parse(&other.hear());
    let end = here();
    let attr = QpAttr { qp_state: abi::qp_state::RTR, ..attributes(&theirs) };
    let mask = m::STATE
        | m::AV
        | m::PATH_MTU
        | m::DEST_QPN
        | m::RQ_PSN
        | m::MAX_DEST_RD_ATOMIC
        | m::MIN_RNR_TIMER;
    let error = end.qp.modify(&attr, mask).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES);
    assert!(error.to_string().contains("does not hold the same job key"), "{error}");
    assert_eq!(end.state(), "INIT");
}

/// What is missing to reach another node is said at RTR.
#[test]
fn what_is_missing_is_named() {
    let refused = |end: &End, to: &Address, words: &str| {
        let attr = QpAttr { qp_state: abi::qp_state::RTR, ..attributes(to) };
        let mask = m::STATE | m::AV | m::PATH_MTU | m::DEST_QPN | m::RQ_PSN;
        let mask = mask | m::MAX_DEST_RD_ATOMIC | m::MIN_RNR_TIMER;
        let error = end.qp.modify(&attr, mask).unwrap_err();
        assert_eq!(error.errno(), libc::EHOSTUNREACH);
        assert!(error.to_string().contains(words), "{error}");
        assert!(Arc::clone(&end.pd).create_ah(&attr.ah_attr).is_err());
    };
    let (a, b) = (here(), here());
    let unnamed = Address { gid: abi::Gid::default(), ..b.address() };
    refused(&a, &unnamed, "must name the GID");
    refused(&End::new(&Setup::default()), &b.address(), "SOJOURN_SOFT_ADDR");
    let mut taken = far();
    let [.., p1, p2, _, _, _, _, _, _] = b.address().gid.0;
    taken.addr.as_mut().unwrap().set_port(u16::from_be_bytes([p1, p2]));
    let error = open_with("soft0", taken).map(drop).unwrap_err();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(error.to_string().contains("SOJOURN_SOFT_ADDR"), "{error}");
    let nowhere = Options { addr: Some("192.0.2.1:0".parse().unwrap()), ..far() };
    let error = open_with("soft0", nowhere).map(drop).unwrap_err();
    assert!(error.to_string().contains("does not have that address"), "{error}");
}

/// Nobody there: connecting succeeds, sending fails when the retries are used up.
#[test]
fn an_absent_peer_is_retried_and_given_up() {
    let (a, b) = (here(), here());
    let to = b.address();
    drop(b);
    a.connect(&to);
    a.send(1, 0, 8);
    assert_eq!(wc_status::name(a.wait().status), "RETRY_EXC_ERR");
}

/// Strangers that connect and say nothing, or anything, get nowhere and disturb nobody.
#[test]
fn strangers_are_turned_away() {
    let setup = Setup { options: far(), ..Setup::default() };
    let b = End::new(&setup);
    let port = u16::from_be_bytes([b.address().gid.0[8], b.address().gid.0[9]]);
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
    for noise in [&[0u8; 4096][..], &[0xff; 4096], b"GET / HTTP/1.1\r\n\r\n", &[0, 49, 1]] {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(noise).unwrap();
        if noise.len() > 3 {
            // A word of refusal at most, then the end.
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            assert!(said.len() <= 3, "{said:?}");
        }
    }
    let a = End::new(&setup);
    a.connect(&b.address());
    b.connect(&a.address());
    a.write(1, 0, 8, &b.address(), 0);
    a.success();
    drop(silent);
}

/// A context that closes has told its peers all that it executed.
#[test]
fn closing_loses_nothing() {
    for _ in 0..5 {
        let setup = Setup { options: far(), ..Setup::default() };
        let (a, b) = pair(&setup);
        for i in 0..32 {
            b.recv(i, 0, 4096).unwrap();
        }
        for i in 0..32 {
            a.post(SendWr { send_flags: send_flags::SIGNALED, ..send(i) }, 0, 4096).unwrap();
        }
        for i in 0..32 {
            assert_eq!(b.success().wr_id, i);
        }
        drop(b);
        for i in 0..32 {
            assert_eq!(a.success().wr_id, i);
        }
    }
}

/// A node in a namespace of its own, and an endpoint in the other one.
fn cabled(cable: &Cable, role: &str) -> (Other, tempfile::TempDir, End) {
    cable.enter(1);
    let (other, dir) = node(role, "10.99.0.2", &[]);
    cable.enter(0);
    let options = Options { addr: Some("10.99.0.1:0".parse().unwrap()), ..far() };
    (other, dir, End::new(&Setup { options, ..Setup::default() }))
}

/// All requests of all sizes arrive whole between two network namespaces.
#[test]
fn requests_cross_namespaces() {
    let Some(cable) = Cable::new() else { return };
    let (mut other, _dir, end) = cabled(&cable, "any");
    everything_arrives(&mut other, &end);
}

/// Errors cross namespaces, too.
#[test]
fn errors_cross_namespaces() {
    let Some(cable) = Cable::new() else { return };
    let (mut other, _dir, end) = cabled(&cable, "any");
    errors_arrive(&mut other, &end);
}

/// A cable that is cut ends what is on its way, and what waits for an answer, within bounds.
#[test]
fn a_cut_cable_is_noticed() {
    let Some(cable) = Cable::new() else { return };
    let (mut other, _dir, end) = cabled(&cable, "any");
    let to = other.connect(&end);
    end.write(1, 0, 8, &to, 0);
    end.success();
    // One waits for a receive, the others are on their way when nobody answers any more.
    cable.cut();
    let since = Instant::now();
    end.write(2, 0, 1 << 20, &to, 0);
    end.send(3, 0, 8);
    let wc = end.wait();
    assert_eq!((wc.wr_id, wc_status::name(wc.status)), (2, "RETRY_EXC_ERR"));
    let wc = end.wait();
    assert_eq!((wc.wr_id, wc_status::name(wc.status)), (3, "WR_FLUSH_ERR"));
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}
