//! Verbs from several threads at once.

use super::prelude::*;
use sojourn_fabric::virt::CompletionQueue;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub(super) const CASES: &[Case] = &[
    two(
        "threads.two_queues",
        "Two threads post to a QP each while a third polls the CQ of both: nothing is lost, \
         repeated or out of order (verbs are thread-safe: ibverbs(7))",
        two_queues_a,
        receiver_b,
    ),
    two(
        "threads.one_queue",
        "Two threads post to the same QP: each one's requests complete in its own order \
         (verbs are thread-safe: ibverbs(7))",
        one_queue_a,
        receiver_b,
    ),
];

/// Requests of each thread.
const EACH: u64 = 400;
/// Outstanding requests of each thread.
const WINDOW: u64 = 16;
/// Posting threads.
const THREADS: usize = 2;

/// A request's name: its thread and its number.
fn name(thread: usize, i: u64) -> u64 {
    (thread as u64) << 32 | i
}

/// What the threads of side A share.
#[derive(Default)]
struct Shared {
    /// Requests of each thread that have completed.
    done: [AtomicU64; THREADS],
    stop: AtomicBool,
}

/// Posts all requests of one thread, never more than the window ahead of their completions.
fn poster(thread: usize, rig: &Rig, shared: &Shared, until: Instant) -> Verdict {
    let at = thread * 64;
    let sge = [rig.sge(at..at + 64)];
    for i in 0..EACH {
        while i - shared.done[thread].load(Ordering::Acquire) >= WINDOW {
            if shared.stop.load(Ordering::Relaxed) || Instant::now() >= until {
                return Err(Stop::failed(format!("thread {thread} waits at request {i}")));
            }
            std::thread::yield_now();
        }
        let imm = (thread as u32) << 16 | i as u32;
        rig.post(&SendRequest::new(name(thread, i), Op::SendImm(imm), &sge))?;
    }
    Ok(())
}

/// Side A: a thread per rig, and this one, which polls.
fn post_and_poll(side: &mut Side, rigs: [&Rig; THREADS], cq: &CompletionQueue) -> Verdict {
    let shared = Shared::default();
    let until = side.until();
    std::thread::scope(|scope| {
        let posters: Vec<_> = rigs
            .into_iter()
            .enumerate()
            .map(|(thread, rig)| {
                let shared = &shared;
                scope.spawn(move || poster(thread, rig, shared, until))
            })
            .collect();
        let polled = poll_all(side, cq, &shared);
        shared.stop.store(true, Ordering::Relaxed);
        for poster in posters {
            poster.join().map_err(|_| Stop::failed("a poster panicked"))??;
        }
        polled
    })
}

fn poll_all(side: &mut Side, cq: &CompletionQueue, shared: &Shared) -> Verdict {
    for _ in 0..EACH * THREADS as u64 {
        let wc = side.completion(cq)?;
        let thread = (wc.wr_id >> 32) as usize;
        ensure(thread < THREADS, &format!("a completion of request {:#x}", wc.wr_id))?;
        let done = shared.done[thread].load(Ordering::Relaxed);
        success(&wc, name(thread, done), wc_opcode::SEND)?;
        shared.done[thread].store(done + 1, Ordering::Release);
    }
    side.nothing(cq, Duration::ZERO)
}

fn two_queues_a(side: &mut Side) -> Verdict {
    let rigs = two_rigs(side)?;
    side.meet()?;
    post_and_poll(side, [&rigs[0], &rigs[1]], &rigs[0].sends)
}

fn one_queue_a(side: &mut Side) -> Verdict {
    let rigs = two_rigs(side)?;
    side.meet()?;
    post_and_poll(side, [&rigs[0], &rigs[0]], &rigs[0].sends)
}

fn two_rigs(side: &mut Side) -> Verdict<Arc<[Rig; 2]>> {
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let rigs = [side.join(&parts, &plan, None)?, side.join(&parts, &plan, None)?];
    Ok(side.keep(rigs))
}

/// Side B: takes all messages, whichever QP they come by; those of a thread in order.
fn receiver_b(side: &mut Side) -> Verdict {
    let rigs = two_rigs(side)?;
    let post = |rig: &Rig| rig.post_recv(1, 0..64);
    for _ in 0..48 {
        post(&rigs[0])?;
        post(&rigs[1])?;
    }
    side.meet()?;
    let mut next = [0; THREADS];
    for _ in 0..EACH * THREADS as u64 {
        let wc = side.completion(&rigs[0].recvs)?;
        success(&wc, 1, wc_opcode::RECV)?;
        let imm = u32::from_be(wc.imm_data);
        let thread = (imm >> 16) as usize;
        ensure(thread < THREADS, &format!("immediate data {imm:#x}"))?;
        same("the number of a message", imm & 0xffff, next[thread])?;
        next[thread] += 1;
        let rig = rigs.iter().find(|rig| rig.qp.qp_num() == wc.qp_num);
        post(rig.ok_or_else(|| Stop::failed("a completion of no QP of ours"))?)?;
    }
    Ok(())
}
