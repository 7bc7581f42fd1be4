//! FETCH_ADD and CMP_SWAP.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    two(
        "atomic.fetch_add",
        "FETCH_ADD adds modulo 2^64 and returns what was there (IBTA 9.4.5)",
        fetch_add_a,
        word_b,
    ),
    two(
        "atomic.compare_swap",
        "CMP_SWAP stores where it finds the expected value, nowhere else, and returns what was \
         there (IBTA 9.4.5)",
        compare_swap_a,
        word_b,
    ),
    two(
        "atomic.together",
        "Additions from two QPs are not lost (IBTA 9.4.5, atomic_cap)",
        together_a,
        together_b,
    ),
    two(
        "atomic.misaligned",
        "An atomic on an address that is no multiple of 8 is refused, at once or with \
         REM_INV_REQ_ERR (IBTA 9.4.5)",
        misaligned_a,
        word_b,
    ),
];

/// What the words of side B hold at first.
const FIRST: u64 = 0xffff_ffff_ffff_fff0;

/// Side B: words, and what they hold in the end.
fn word_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let rig = side.wire(&Plan::rc())?;
    let words = rig.mem.len() / 8;
    rig.mem.write(0, &FIRST.to_ne_bytes().repeat(words));
    side.meet()?;
    let [wanted] = side.hear()?;
    let mut word = [0; 8];
    rig.mem.read(0, &mut word);
    same("the word", u64::from_ne_bytes(word), wanted)?;
    // Its neighbour is untouched.
    holds(&rig.mem, 8, &FIRST.to_ne_bytes())
}

fn found(rig: &Rig) -> u64 {
    let mut word = [0; 8];
    rig.mem.read(64, &mut word);
    u64::from_ne_bytes(word)
}

fn fetch_add_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    let mut word = FIRST;
    for i in 1..=40u64 {
        let result = [rig.sge(64..72)];
        rig.post(&SendRequest::new(i, Op::FetchAdd(rig.remote(0), i), &result))?;
        let wc = rig.sent(side, i, wc_opcode::FETCH_ADD)?;
        same("byte_len", wc.byte_len, 8)?;
        same("what was there", found(&rig), word)?;
        word = word.wrapping_add(i);
    }
    side.tell(&[word])
}

fn compare_swap_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    let mut word = FIRST;
    for (i, (compare, swap)) in
        [(FIRST, 5), (FIRST, 6), (5, u64::MAX), (0, 1), (u64::MAX, 0), (0, 9)].iter().enumerate()
    {
        let result = [rig.sge(64..72)];
        let op = Op::CompareSwap(rig.remote(0), *compare, *swap);
        rig.post(&SendRequest::new(i as u64, op, &result))?;
        rig.sent(side, i as u64, wc_opcode::COMP_SWAP)?;
        same("what was there", found(&rig), word)?;
        if word == *compare {
            word = *swap;
        }
    }
    side.tell(&[word])
}

/// Additions of each QP in `atomic.together`.
const EACH: u64 = 200;

fn together_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let rigs = [side.join(&parts, &plan, None)?, side.join(&parts, &plan, None)?];
    let rigs = side.keep(rigs);
    side.meet()?;
    let result = [parts.sge(64..72)];
    let (mut posted, mut done) = (0, 0);
    while done < 2 * EACH {
        while posted < 2 * EACH && posted - done < 32 {
            let rig = &rigs[posted as usize % 2];
            rig.post(&SendRequest::new(posted, Op::FetchAdd(rig.remote(0), 1), &result))?;
            posted += 1;
        }
        let wc = side.completion(&parts.sends)?;
        same("the status", wc_status::name(wc.status), "SUCCESS")?;
        done += 1;
    }
    side.tell(&[FIRST.wrapping_add(2 * EACH)])
}

fn together_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let rigs = [side.join(&parts, &plan, None)?, side.join(&parts, &plan, None)?];
    side.keep(rigs);
    parts.mem.write(0, &FIRST.to_ne_bytes());
    side.meet()?;
    let [wanted] = side.hear()?;
    holds(&parts.mem, 0, &wanted.to_ne_bytes())
}

fn misaligned_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Atomics)?;
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    let request = [rig.sge(64..72)];
    match rig.qp.post_send(&SendRequest::new(1, Op::FetchAdd(rig.remote(4), 1), &request)) {
        Ok(()) => rig.send_ends(side, 1, &[wc_status::REM_INV_REQ_ERR])?,
        Err(error) => same("the errno", error.errno(), libc::EINVAL)?,
    }
    side.tell(&[FIRST])
}
