//! Datagrams.

use super::prelude::*;
use crate::caps::Layer;
use sojourn_fabric::abi::{AhAttr, GRH_BYTES, Gid};
use sojourn_fabric::virt::Datagram;

pub(super) const CASES: &[Case] = &[
    two(
        "ud.send",
        "A datagram of up to the MTU arrives behind 40 bytes, with its sender's QPN and its \
         immediate data (ibv_poll_cq(3), IBTA 11.4.1.2)",
        send_a,
        send_b,
    ),
    two(
        "ud.slid",
        "The completion of a datagram names its sender's LID (IBTA 11.4.2.1)",
        slid_a,
        slid_b,
    ),
    two(
        "ud.without_grh",
        "A datagram addressed by LID has no GRH flag, and its payload still stands behind 40 \
         bytes (ibv_poll_cq(3), IBTA 11.4.1.2)",
        without_grh_a,
        without_grh_b,
    ),
    two(
        "ud.with_grh",
        "A datagram addressed by GID has the GRH flag, and in front of its payload a header \
         that names both GIDs (IBTA 11.4.1.2, 8.3)",
        with_grh_a,
        with_grh_b,
    ),
    two(
        "ud.qkey",
        "A datagram with another queue key than the receiver's is dropped (IBTA 9.6.1.5)",
        qkey_a,
        qkey_b,
    ),
    two(
        "ud.own_qkey",
        "A datagram whose queue key has its top bit set carries its sender's own (IBTA 10.2.5)",
        own_qkey_a,
        own_qkey_b,
    ),
    two(
        "ud.reply",
        "An address handle made from a completion reaches the sender (ibv_create_ah(3))",
        reply_a,
        reply_b,
    ),
    two(
        "ud.many_peers",
        "One QP sends to several, each request to its own destination (IBTA 9.8.3)",
        many_peers_a,
        many_peers_b,
    ),
    two(
        "ud.too_long",
        "A datagram beyond the MTU is refused, fails, or is not sent, and what follows arrives \
         (IBTA C10-93.1.1)",
        too_long_a,
        too_long_b,
    ),
    two(
        "ud.no_receive",
        "A datagram that finds no receive succeeds for its sender and is dropped (IBTA 9.8.3)",
        no_receive_a,
        no_receive_b,
    ),
    two(
        "ud.unsignaled",
        "Unsignalled datagrams complete with nothing, and free their slots with a signalled one \
         behind them (ibv_post_send(3))",
        unsignaled_a,
        unsignaled_b,
    ),
    one(
        "ud.bad_ah",
        "An address handle of a port that there is not is refused (ibv_create_ah(3))",
        bad_ah,
    ),
];

/// Bytes of the header area and the payload together.
fn room(payload: usize) -> usize {
    GRH_BYTES + payload
}

/// What every completed datagram must say.
#[track_caller]
fn arrived(rig: &Rig, side: &mut Side, wr_id: u64, size: usize) -> Verdict<abi::Wc> {
    let wc = rig.received(side, wr_id, wc_opcode::RECV, room(size))?;
    same("src_qp", wc.src_qp, rig.peer.qpn)?;
    Ok(wc)
}

fn sizes(mtu: usize) -> [usize; 5] {
    [0, 1, 255, mtu - 1, mtu]
}

fn sges(sge: &[Sge; 1]) -> &[Sge] {
    if sge[0].length == 0 { &[] } else { sge }
}

/// Sends one datagram, and waits for its completion.
fn datagram(side: &mut Side, rig: &Rig, to: Datagram<'_>, wr_id: u64, bytes: &[u8]) -> Verdict {
    rig.mem.write(0, bytes);
    let sge = [rig.sge(0..bytes.len())];
    rig.post(&SendRequest::new(wr_id, Op::Send, sges(&sge)).to(to))?;
    rig.sent(side, wr_id, wc_opcode::SEND)?;
    Ok(())
}

fn send_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        side.meet()?;
        rig.mem.write(0, &pattern(i as u64, size));
        let op = if i % 2 == 0 { Op::Send } else { Op::SendImm(i as u32) };
        let sge = [rig.sge(0..size)];
        rig.post(&SendRequest::new(i as u64, op, sges(&sge)).to(rig.to()?))?;
        rig.sent(side, i as u64, wc_opcode::SEND)?;
    }
    side.meet()
}

fn send_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    let global = rig.peer.address.is_global != 0;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        rig.mem.write(0, &vec![0xee; room(size) + 8]);
        rig.post_recv(i as u64, 0..room(size) + 8)?;
        side.meet()?;
        let wc = arrived(&rig, side, i as u64, size)?;
        same("the flag GRH", wc.wc_flags & wc_flags::GRH != 0, global)?;
        let with_imm = wc.wc_flags & wc_flags::WITH_IMM != 0;
        same("the flag WITH_IMM", with_imm, i % 2 == 1)?;
        if with_imm {
            same("the immediate data", u32::from_be(wc.imm_data), i as u32)?;
        }
        holds(&rig.mem, GRH_BYTES, &pattern(i as u64, size))?;
        holds(&rig.mem, room(size), &[0xee; 8])?;
    }
    side.meet()
}

/// Side A of a single datagram, addressed in this way.
fn single_a(side: &mut Side, address: impl Fn(&Rig, &Side) -> AhAttr) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    side.meet()?;
    let ah = rig.pd.create_ah_raw(&address(&rig, side))?;
    let to = Datagram { ah: &ah, ..rig.to()? };
    datagram(side, &rig, to, 1, &pattern(2, 500))?;
    side.meet()
}

/// Side B of a single datagram.
fn single_b(side: &mut Side, look: impl Fn(&Rig, &Side, &abi::Wc) -> Verdict) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    // In pieces that cut through the header area.
    let pieces = [rig.sge(0..17), rig.sge(17..100), rig.sge(100..room(500))];
    rig.qp.post_recv(1, &pieces)?;
    side.meet()?;
    let wc = arrived(&rig, side, 1, 500)?;
    holds(&rig.mem, GRH_BYTES, &pattern(2, 500))?;
    look(&rig, side, &wc)?;
    side.meet()
}

fn slid_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Lid)?;
    single_a(side, |rig, _| rig.peer.address)
}

fn slid_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Lid)?;
    single_b(side, |rig, _, wc| same("slid", wc.slid, rig.peer.lid))
}

fn without_grh_a(side: &mut Side) -> Verdict {
    side.needs(Feature::WithoutGrh)?;
    single_a(side, |rig, side| side.caps().address_vector(rig.peer.lid, Gid::default(), false))
}

fn without_grh_b(side: &mut Side) -> Verdict {
    side.needs(Feature::WithoutGrh)?;
    single_b(side, |_, _, wc| same("the flag GRH", wc.wc_flags & wc_flags::GRH, 0))
}

fn with_grh_a(side: &mut Side) -> Verdict {
    single_a(side, |rig, side| {
        side.caps().address_vector(rig.peer.lid, rig.peer.address.grh.dgid, true)
    })
}

fn with_grh_b(side: &mut Side) -> Verdict {
    single_b(side, |rig, side, wc| {
        same("the flag GRH", wc.wc_flags & wc_flags::GRH, wc_flags::GRH)?;
        let (peer, own) = (rig.peer.address.grh.dgid, side.caps().gid);
        if side.layer() == Layer::Raw && ipv4(&own).is_some() {
            // RoCE v2 over IPv4: the last 20 bytes are the IPv4 header (RoCE annex A17.4.5).
            let sent = ipv4(&peer).ok_or_else(|| Stop::failed("a peer without an IPv4 GID"))?;
            holds(&rig.mem, 32, &sent)?;
            return holds(&rig.mem, 36, &ipv4(&own).unwrap_or_default());
        }
        let mut first = [0; 1];
        rig.mem.read(0, &mut first);
        same("the IP version of the GRH", first[0] >> 4, 6)?;
        holds(&rig.mem, 8, &peer.0)?;
        holds(&rig.mem, 24, &own.0)
    })
}

/// The IPv4 address that a GID stands for, if any.
fn ipv4(gid: &Gid) -> Option<[u8; 4]> {
    let (prefix, address) = gid.0.split_at(12);
    let mapped = prefix == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    mapped.then(|| [address[0], address[1], address[2], address[3]])
}

fn qkey_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    side.meet()?;
    let good = rig.to()?;
    let to = |qkey| Datagram { qkey, ..good };
    datagram(side, &rig, to(good.qkey ^ 1), 1, &pattern(1, 64))?;
    datagram(side, &rig, to(0), 2, &pattern(2, 64))?;
    datagram(side, &rig, good, 3, &pattern(3, 64))?;
    side.meet()
}

fn qkey_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    for wr_id in 1..=3 {
        rig.post_recv(wr_id, 0..room(64))?;
    }
    side.meet()?;
    arrived(&rig, side, 1, 64)?;
    side.meet()?;
    holds(&rig.mem, GRH_BYTES, &pattern(3, 64))?;
    side.nothing(&rig.recvs, QUIET)?;
    same("the state", qp_state::name(rig.qp.state()?), "RTS")
}

fn own_qkey_a(side: &mut Side) -> Verdict {
    side.needs(Feature::OwnQkey)?;
    let rig = side.wire(&Plan::ud())?;
    side.meet()?;
    let to = Datagram { qkey: 0x8000_0000, ..rig.to()? };
    datagram(side, &rig, to, 1, &pattern(1, 64))?;
    side.meet()
}

fn own_qkey_b(side: &mut Side) -> Verdict {
    side.needs(Feature::OwnQkey)?;
    let rig = side.wire(&Plan::ud())?;
    rig.post_recv(1, 0..room(64))?;
    side.meet()?;
    arrived(&rig, side, 1, 64)?;
    holds(&rig.mem, GRH_BYTES, &pattern(1, 64))?;
    side.meet()
}

fn reply_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    rig.post_recv(1, 1024..1024 + room(64))?;
    side.meet()?;
    datagram(side, &rig, rig.to()?, 2, &pattern(1, 64))?;
    arrived(&rig, side, 1, 64)?;
    holds(&rig.mem, 1024 + GRH_BYTES, &pattern(5, 64))?;
    side.meet()
}

fn reply_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    rig.post_recv(1, 1024..1024 + room(64))?;
    side.meet()?;
    let wc = arrived(&rig, side, 1, 64)?;
    let global = wc.wc_flags & wc_flags::GRH != 0;
    let mut gid = Gid::default();
    if global {
        rig.mem.read(1024 + 8, &mut gid.0);
        if side.layer() == Layer::Raw && ipv4(&side.caps().gid).is_some() {
            gid = Gid([0; 16]);
            gid.0[10..12].fill(0xff);
            rig.mem.read(1024 + 32, &mut gid.0[12..]);
        }
    }
    let ah = rig.pd.create_ah_raw(&side.caps().address_vector(wc.slid, gid, global))?;
    let to = Datagram { ah: &ah, qpn: wc.src_qp, qkey: rig.to()?.qkey };
    datagram(side, &rig, to, 2, &pattern(5, 64))?;
    side.meet()
}

/// Peers of `ud.many_peers`.
const PEERS: u64 = 3;

fn many_peers_a(side: &mut Side) -> Verdict {
    let plan = Plan::ud();
    let parts = Arc::new(side.parts(&plan)?);
    let mut rigs = Vec::new();
    for _ in 0..PEERS {
        rigs.push(side.join(&parts, &plan, None)?);
    }
    let rigs = side.keep(rigs);
    side.meet()?;
    // All from the first QP.
    for i in 0..8 * PEERS {
        let to = rigs[(i % PEERS) as usize].to()?;
        datagram(side, &rigs[0], to, i, &pattern(i, 64))?;
    }
    side.meet()
}

fn many_peers_b(side: &mut Side) -> Verdict {
    let plan = Plan::ud();
    let parts = Arc::new(side.parts(&plan)?);
    let mut rigs = Vec::new();
    for _ in 0..PEERS {
        rigs.push(side.join(&parts, &plan, None)?);
    }
    let rigs = side.keep(rigs);
    let at = |i: u64| i as usize * 256;
    for i in 0..8 * PEERS {
        rigs[(i % PEERS) as usize].post_recv(i, at(i)..at(i) + room(64))?;
    }
    side.meet()?;
    for i in 0..8 * PEERS {
        let wc = side.completion(&parts.recvs)?;
        success(&wc, wc.wr_id, wc_opcode::RECV)?;
        same("qp_num", wc.qp_num, rigs[(wc.wr_id % PEERS) as usize].qp.qp_num())?;
        same("src_qp", wc.src_qp, rigs[0].peer.qpn)?;
        ensure(wc.wr_id < 8 * PEERS, &format!("completion {i} of receive {}", wc.wr_id))?;
        holds(&parts.mem, at(wc.wr_id) + GRH_BYTES, &pattern(wc.wr_id, 64))?;
    }
    side.meet()
}

fn too_long_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    side.meet()?;
    let long = [rig.sge(0..rig.mtu() + 1)];
    let posted = rig.qp.post_send(&SendRequest::new(1, Op::Send, &long).to(rig.to()?));
    match posted {
        Err(error) => same("the errno", error.errno(), libc::EINVAL)?,
        Ok(()) => {
            let wc = side.completion(&rig.sends)?;
            let statuses = [wc_status::SUCCESS, wc_status::LOC_LEN_ERR, wc_status::LOC_QP_OP_ERR];
            ended(&wc, 1, &statuses)?;
            if wc.status != wc_status::SUCCESS && rig.qp.state()? == qp_state::SQE {
                rig.qp.set_state(qp_state::RTS)?;
            }
        }
    }
    datagram(side, &rig, rig.to()?, 2, &pattern(2, 64))?;
    side.meet()
}

fn too_long_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    rig.post_recv(1, 0..room(rig.mtu() + 1))?;
    side.meet()?;
    arrived(&rig, side, 1, 64)?;
    holds(&rig.mem, GRH_BYTES, &pattern(2, 64))?;
    side.meet()
}

fn no_receive_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    side.meet()?;
    for i in 0..4 {
        datagram(side, &rig, rig.to()?, i, &pattern(i, 64))?;
    }
    side.meet()?;
    side.meet()?;
    datagram(side, &rig, rig.to()?, 4, &pattern(4, 64))?;
    side.meet()
}

fn no_receive_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    rig.post_recv(1, 0..room(64))?;
    side.meet()?;
    arrived(&rig, side, 1, 64)?;
    holds(&rig.mem, GRH_BYTES, &pattern(0, 64))?;
    side.meet()?;
    // The others may still be on their way, so the next is any one that came later.
    rig.post_recv(2, 0..room(64))?;
    side.meet()?;
    arrived(&rig, side, 2, 64)?;
    let later = (1..=4).any(|i| holds(&rig.mem, GRH_BYTES, &pattern(i, 64)).is_ok());
    ensure(later, "what arrived is none of the later datagrams")?;
    side.meet()
}

fn unsignaled_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    let sge = [rig.sge(0..8)];
    for round in 0..6 {
        side.meet()?;
        for i in 0..20 {
            let request = SendRequest::new(round * 20 + i, Op::Send, &sge).to(rig.to()?);
            rig.post(&if i == 19 { request } else { request.unsignaled() })?;
        }
        rig.sent(side, round * 20 + 19, wc_opcode::SEND)?;
    }
    side.nothing(&rig.sends, QUIET)?;
    side.meet()
}

fn unsignaled_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::ud())?;
    for _ in 0..6 {
        for i in 0..20 {
            let at = i as usize * room(8);
            rig.post_recv(i, at..at + room(8))?;
        }
        side.meet()?;
        for i in 0..20 {
            arrived(&rig, side, i, 8)?;
        }
    }
    side.meet()
}

fn bad_ah(side: &mut Side) -> Verdict {
    let pd = side.context().alloc_pd()?;
    let caps = side.caps();
    let good = caps.address_vector(caps.port.lid, caps.gid, caps.global());
    pd.create_ah_raw(&good)?;
    for port_num in [0, 200] {
        let bad = pd.create_ah_raw(&AhAttr { port_num, ..good });
        refused(&format!("port {port_num}"), bad, &[libc::EINVAL])?;
    }
    Ok(())
}
