//! RC between two processes over the soft device: what is sent arrives once, whole and in order,
//! and completes as the verbs say.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{Wc, access, wc_flags, wc_opcode, wr_opcode};
use sojourn_fabric::virt::{ConnectOptions, Context, Op, QpOptions, SendRequest};
use std::time::Duration;

/// Plays the other process's part.
#[test]
fn helper() {
    match role().as_deref() {
        Some("echo") => echo(),
        Some("quiet") => quiet(),
        _ => {}
    }
}

/// Sends back whatever it receives, until there is nobody.
fn echo() {
    let end = End::new(&Setup::default());
    for i in 0..16 {
        end.recv(i, i as usize * 65536, 65536).unwrap();
    }
    meet(&end);
    loop {
        let wc = end.success();
        if wc.opcode & wc_opcode::RECV == 0 {
            continue;
        }
        let slot = wc.wr_id as usize * 65536;
        let mut wr = send(99);
        if wc.wc_flags & wc_flags::WITH_IMM != 0 {
            wr.opcode = wr_opcode::SEND_WITH_IMM;
            wr.imm.imm_data = wc.imm_data;
        }
        end.post(wr, slot, wc.byte_len).unwrap();
        end.recv(wc.wr_id, slot, 65536).unwrap();
    }
}

/// Offers its memory and waits.
fn quiet() {
    let end = End::new(&Setup::default());
    end.memory.fill(0, 4096, 7);
    meet(&end);
    loop {
        let line = listen();
        let (from, len) = line.split_once(' ').unwrap();
        let bytes = end.memory.get(from.parse().unwrap(), len.parse().unwrap());
        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
        say(&sum.to_string());
    }
}

/// SENDs of every size class (ring, copied, empty) come back as they went, with immediate data.
#[test]
fn messages_cross_processes() {
    let mut other = Other::start("echo", &[]);
    let end = End::new(&Setup::default());
    for i in 0..8 {
        end.recv(100 + i, (1 << 20) + i as usize * 65536, 65536).unwrap();
    }
    other.connect(&end);
    for (round, len) in [0u32, 1, 8, 64, 255, 1024, 1025, 4096, 65536, 3, 60000].iter().enumerate()
    {
        let bytes: Vec<u8> = (0..*len).map(|i| (i as usize * 7 + round) as u8).collect();
        end.memory.put(0, &bytes);
        let mut wr = send(round as u64);
        wr.opcode = wr_opcode::SEND_WITH_IMM;
        wr.imm.imm_data = 0xabcd + round as u32;
        end.post(wr, 0, *len).unwrap();
        let (mut sent, mut received): (Option<Wc>, Option<Wc>) = (None, None);
        while sent.is_none() || received.is_none() {
            let wc = end.success();
            if wc.opcode == wc_opcode::SEND { sent = Some(wc) } else { received = Some(wc) }
        }
        let wc = received.unwrap();
        assert_eq!(sent.unwrap().wr_id, round as u64);
        assert_eq!((wc.opcode, wc.byte_len), (wc_opcode::RECV, *len));
        assert_eq!((wc.imm_data, wc.wc_flags), (0xabcd + round as u32, wc_flags::WITH_IMM));
        assert_eq!(wc.qp_num, end.qp.qp_num());
        let slot = (1 << 20) + (wc.wr_id - 100) as usize * 65536;
        assert_eq!(end.memory.get(slot, *len as usize), bytes);
        end.recv(wc.wr_id, slot, 65536).unwrap();
    }
}

/// WRITE lands without the target's doing anything, and READ fetches what is there.
#[test]
fn one_sided_access_crosses_processes() {
    let mut other = Other::start("quiet", &[]);
    let end = End::new(&Setup::default());
    let theirs = other.connect(&end);
    end.read(1, 0, 4096, &theirs, 0);
    let wc = end.success();
    assert_eq!((wc.wr_id, wc.opcode, wc.byte_len), (1, wc_opcode::RDMA_READ, 4096));
    assert_eq!(end.memory.get(0, 4096), vec![7; 4096]);
    end.memory.fill(0, 1 << 20, 3);
    for (i, len) in [1u32, 8, 100, 4096, 1 << 20].into_iter().enumerate() {
        end.write(i as u64, 0, len, &theirs, 1 << 20);
        let wc = end.success();
        assert_eq!((wc.wr_id, wc.opcode), (i as u64, wc_opcode::RDMA_WRITE));
        other.tell(&format!("{} {len}", 1 << 20));
        assert_eq!(other.hear(), (3 * u64::from(len)).to_string());
    }
}

/// Ten thousand messages in flight both ways arrive in order, though rings fill up.
#[test]
fn a_stream_stays_in_order() {
    let (a, b) = pair(&Setup::default());
    const COUNT: u64 = 10_000;
    let receiver = std::thread::spawn(move || {
        for i in 0..256 {
            b.recv(i, i as usize * 4096, 4096).unwrap();
        }
        for i in 0..COUNT {
            let wc = b.success();
            assert_eq!(wc.wr_id, i % 256);
            let slot = (i % 256) as usize * 4096;
            assert_eq!(b.memory.get(slot, 8), i.to_le_bytes());
            assert_eq!(wc.byte_len, 8 + (i * 13 % 2000) as u32);
            b.recv(wc.wr_id, slot, 4096).unwrap();
        }
    });
    let mut done = 0;
    for i in 0..COUNT {
        while i - done >= 128 {
            assert_eq!(a.success().wr_id, done);
            done += 1;
        }
        let slot = (i % 128) as usize * 4096;
        a.memory.put(slot, &i.to_le_bytes());
        a.send(i, slot, 8 + (i * 13 % 2000) as u32);
    }
    while done < COUNT {
        assert_eq!(a.success().wr_id, done);
        done += 1;
    }
    receiver.join().unwrap();
}

/// Promise: two that begin to talk to each other at the same moment hear each other. Each then has two links, which it
/// learns of on two threads.
#[test]
fn two_that_begin_at_once_hear_each_other() {
    const TIMES: usize = 200;
    /// Microseconds: about what a link takes to be made.
    const STAGGER: usize = 10;
    let end = || {
        let context = Context::open_raw("soft0").unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(8).unwrap();
        let qp = pd.create_qp(&QpOptions::rc(&cq)).unwrap();
        qp.init(&ConnectOptions::default()).unwrap();
        let memory = pd.register(64, access::LOCAL_WRITE).unwrap();
        qp.post_recv(1, &[memory.slice(32..64)]).unwrap();
        (qp, cq, memory)
    };
    for time in 0..TIMES {
        let ends = [end(), end()];
        let names = ends.each_ref().map(|(qp, ..)| qp.endpoint().unwrap());
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for (this, (qp, cq, memory)) in ends.iter().enumerate() {
                let (both, names) = (&both, &names);
                scope.spawn(move || {
                    // Or nearly so.
                    std::thread::sleep(Duration::from_micros(
                        (this * (time % 50) * STAGGER) as u64,
                    ));
                    qp.connect(&names[1 - this], &ConnectOptions::default()).unwrap();
                    both.wait();
                    qp.post_send(&SendRequest::new(2, Op::Send, &[memory.slice(0..8)])).unwrap();
                    for _ in 0..2 {
                        let wc = cq.expect(Duration::from_secs(20));
                        assert!(wc.is_ok(), "time {time}, end {this}: {wc:?}");
                    }
                });
            }
        });
    }
}
