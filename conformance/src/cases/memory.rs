//! Regions, their keys, and the domain that they belong to.

use super::prelude::*;
use std::collections::HashSet;

pub(super) const CASES: &[Case] = &[
    one(
        "memory.flags",
        "Remote write and remote atomic need local write (ibv_reg_mr(3), IBTA 10.6.3.1)",
        flags,
    ),
    one("memory.keys", "Keys of regions that live at the same time differ (IBTA 10.6.3.3)", keys),
    two(
        "memory.local_pd",
        "A local key of another domain than the QP's is refused when it is used (IBTA 10.6.3.5)",
        local_pd_a,
        local_pd_b,
    ),
    two(
        "memory.remote_pd",
        "A remote key of another domain than the responder QP's is refused (IBTA 10.6.3.5)",
        remote_pd_a,
        remote_pd_b,
    ),
    two(
        "memory.dereg_remote",
        "After deregistration a peer's access with the old key is refused (ibv_dereg_mr(3))",
        dereg_remote_a,
        dereg_remote_b,
    ),
    two(
        "memory.dereg_local",
        "After deregistration the old local key is refused when it is used (ibv_dereg_mr(3))",
        dereg_local_a,
        dereg_local_b,
    ),
    two(
        "memory.second_life",
        "Memory registered again after deregistration works under its new keys (ibv_reg_mr(3))",
        second_life_a,
        second_life_b,
    ),
];

fn flags(side: &mut Side) -> Verdict {
    let pd = side.context().alloc_pd()?;
    for bad in [
        access::REMOTE_WRITE,
        access::REMOTE_ATOMIC,
        access::REMOTE_WRITE | access::REMOTE_READ,
        access::REMOTE_WRITE | access::REMOTE_ATOMIC,
    ] {
        refused(&format!("access {bad:#x}"), pd.register(4096, bad), &[libc::EINVAL])?;
    }
    for good in [0, access::LOCAL_WRITE, access::REMOTE_READ, crate::rig::ALL_ACCESS] {
        pd.register(4096, good)?;
    }
    Ok(())
}

fn keys(side: &mut Side) -> Verdict {
    let pd = side.context().alloc_pd()?;
    let (mut lkeys, mut rkeys) = (HashSet::new(), HashSet::new());
    let mut regions = Vec::new();
    for _ in 0..64 {
        let region = pd.register(4096, crate::rig::ALL_ACCESS)?;
        ensure(lkeys.insert(region.lkey()), "two regions have the same lkey")?;
        ensure(rkeys.insert(region.rkey()), "two regions have the same rkey")?;
        regions.push(region);
    }
    Ok(())
}

fn local_pd_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let elsewhere = side.context().alloc_pd()?;
    let foreign = elsewhere.register(4096, access::LOCAL_WRITE)?;
    rig.post(&SendRequest::new(1, Op::Write(rig.remote(0)), &[foreign.slice(0..64)]))?;
    rig.send_ends(side, 1, side.protection())?;
    rig.comes_to(side, qp_state::ERR)
}

fn local_pd_b(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

fn remote_pd_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let [addr, rkey] = side.hear()?;
    let foreign = Remote { addr, rkey: rkey as u32 };
    rig.post(&SendRequest::new(1, Op::Write(foreign), &[rig.sge(0..64)]))?;
    rig.send_ends(side, 1, &[wc_status::REM_ACCESS_ERR])?;
    side.tell(&[])
}

fn remote_pd_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let elsewhere = side.context().alloc_pd()?;
    let foreign = elsewhere.register(4096, crate::rig::ALL_ACCESS)?;
    let canary = pattern(7, 64);
    foreign.write(0, &canary);
    side.tell(&[foreign.addr(), u64::from(foreign.rkey())])?;
    let [] = side.hear()?;
    rig.comes_to(side, qp_state::ERR)?;
    holds(&foreign, 0, &canary)
}

fn dereg_remote_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let [addr, rkey] = side.hear()?;
    let target = Remote { addr, rkey: rkey as u32 };
    rig.post(&SendRequest::new(1, Op::Write(target), &[rig.sge(0..64)]))?;
    rig.sent(side, 1, wc_opcode::RDMA_WRITE)?;
    side.meet()?;
    side.meet()?;
    rig.post(&SendRequest::new(2, Op::Write(target), &[rig.sge(0..64)]))?;
    rig.send_ends(side, 2, &[wc_status::REM_ACCESS_ERR])?;
    rig.comes_to(side, qp_state::ERR)
}

fn dereg_remote_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let region = rig.pd.register(4096, crate::rig::ALL_ACCESS)?;
    side.tell(&[region.addr(), u64::from(region.rkey())])?;
    side.meet()?;
    region.deregister()?;
    side.meet()
}

fn dereg_local_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let region = rig.pd.register(4096, access::LOCAL_WRITE)?;
    let old = region.slice(0..64);
    region.deregister()?;
    rig.post(&SendRequest::new(1, Op::Write(rig.remote(0)), &[old]))?;
    rig.send_ends(side, 1, side.protection())
}

fn dereg_local_b(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

/// Lives of a region in `memory.second_life`.
const LIVES: u64 = 10;

fn second_life_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for life in 0..LIVES {
        let [addr, rkey] = side.hear()?;
        rig.mem.write(0, &pattern(life, 100));
        let target = Remote { addr, rkey: rkey as u32 };
        rig.post(&SendRequest::new(life, Op::Write(target), &[rig.sge(0..100)]))?;
        rig.sent(side, life, wc_opcode::RDMA_WRITE)?;
        side.meet()?;
    }
    Ok(())
}

fn second_life_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for life in 0..LIVES {
        let region = rig.pd.register(4096, crate::rig::ALL_ACCESS)?;
        side.tell(&[region.addr(), u64::from(region.rkey())])?;
        side.meet()?;
        holds(&region, 0, &pattern(life, 100))?;
    }
    Ok(())
}
