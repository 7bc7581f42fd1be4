//! The grammar of `modify`: which transition takes which attributes (IBTA 11.2.5.2, tables of
//! the QP state machine; the kernel applies the same ones for every driver).

use super::prelude::*;
use crate::attrs::{self, Towards};
use sojourn_fabric::abi::QpAttr;
use sojourn_fabric::virt::{ConnectOptions, QueuePair};

macro_rules! per_type {
    ($($name:literal, $guards:literal, $body:ident;)*) => {
        pub(super) const CASES: &[Case] = &[
            $(
                one(concat!("rc.modify_", $name), $guards, |side| $body(side, qp_type::RC)),
                one(concat!("uc.modify_", $name), $guards, |side| $body(side, qp_type::UC)),
                one(concat!("ud.modify_", $name), $guards, |side| $body(side, qp_type::UD)),
            )*
        ];
    };
}

per_type! {
    "accepts",
        "Every transition of the state machine is accepted with the attributes that it requires \
         and no others (IBTA 10.3.1)",
        accepts;
    "refuses",
        "Every transition that the state machine does not have is refused with EINVAL, and \
         changes nothing (IBTA 10.3.1)",
        refuses;
    "missing",
        "A transition without one of its required attributes is refused (ibv_modify_qp(3))",
        missing;
    "stray",
        "A transition with an attribute that it does not have is refused (ibv_modify_qp(3))",
        stray;
}

/// Required and optional attributes of a transition, besides the state itself.
struct Rule {
    required: u32,
    optional: u32,
}

/// States that a QP can be brought to without an error of the network.
const STATES: [u32; 6] =
    [qp_state::RESET, qp_state::INIT, qp_state::RTR, qp_state::RTS, qp_state::SQD, qp_state::ERR];

/// Attributes that are asked for one by one.
const ATTRIBUTES: [u32; 15] = [
    qp_mask::ACCESS_FLAGS,
    qp_mask::PKEY_INDEX,
    qp_mask::PORT,
    qp_mask::QKEY,
    qp_mask::AV,
    qp_mask::PATH_MTU,
    qp_mask::TIMEOUT,
    qp_mask::RETRY_CNT,
    qp_mask::RNR_RETRY,
    qp_mask::RQ_PSN,
    qp_mask::MAX_QP_RD_ATOMIC,
    qp_mask::MIN_RNR_TIMER,
    qp_mask::SQ_PSN,
    qp_mask::MAX_DEST_RD_ATOMIC,
    qp_mask::DEST_QPN,
];

/// The rule of a transition; `None` where there is no such transition.
fn rule(kind: u32, from: u32, to: u32) -> Option<Rule> {
    use qp_mask as m;
    use qp_state::{ERR, INIT, RESET, RTR, RTS, SQD};
    let by_type = |rc: u32, uc: u32, ud: u32| match kind {
        qp_type::RC => rc,
        qp_type::UC => uc,
        _ => ud,
    };
    let connect = m::AV | m::PATH_MTU | m::DEST_QPN | m::RQ_PSN;
    let respond = m::MAX_DEST_RD_ATOMIC | m::MIN_RNR_TIMER;
    let request = m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::MAX_QP_RD_ATOMIC;
    let first = by_type(m::ACCESS_FLAGS, m::ACCESS_FLAGS, m::QKEY);
    let path = m::ALT_PATH | m::PATH_MIG_STATE;
    let running =
        by_type(m::ACCESS_FLAGS | m::MIN_RNR_TIMER | path, m::ACCESS_FLAGS | path, m::QKEY)
            | m::CUR_STATE;
    let (required, optional) = match (from, to) {
        (_, RESET) | (INIT | RTR | RTS | SQD | ERR, ERR) => (0, 0),
        (RESET, INIT) => (m::PKEY_INDEX | m::PORT | first, 0),
        (INIT, INIT) => (0, m::PKEY_INDEX | m::PORT | first),
        (INIT, RTR) => (
            by_type(connect | respond, connect, 0),
            m::PKEY_INDEX | first | by_type(m::ALT_PATH, m::ALT_PATH, 0),
        ),
        (RTR, RTS) => (m::SQ_PSN | by_type(request, 0, 0), running),
        (RTS | SQD, RTS) => (0, running),
        (RTS, SQD) => (0, m::EN_SQD_ASYNC_NOTIFY),
        _ => return None,
    };
    Some(Rule { required, optional })
}

/// A QP in a given state, connected to itself.
struct Subject {
    qp: QueuePair,
    kind: u32,
    /// Values for every attribute.
    attr: QpAttr,
}

impl Subject {
    fn new(side: &Side, parts: &Parts, kind: u32) -> Verdict<Self> {
        let plan = Plan { qp_type: kind, ..Plan::rc() };
        let qp = side.qp(parts, &plan, None)?;
        let caps = side.caps();
        let options = ConnectOptions::default();
        let towards = Towards {
            address: caps.address_vector(caps.port.lid, caps.gid, caps.global()),
            qpn: qp.qp_num(),
            psn: 77,
            mtu: caps.port.active_mtu,
        };
        // The attributes of all three steps at once: the mask says which of them count.
        let attr = QpAttr {
            port_num: 1,
            qkey: options.qkey,
            qp_access_flags: attrs::allowed(kind, options.access),
            ah_attr: towards.address,
            path_mtu: towards.mtu,
            dest_qp_num: towards.qpn,
            rq_psn: towards.psn,
            sq_psn: 77,
            max_dest_rd_atomic: options.max_rd_atomic,
            max_rd_atomic: options.max_rd_atomic,
            min_rnr_timer: options.min_rnr_timer,
            timeout: options.timeout,
            retry_cnt: options.retry_cnt,
            rnr_retry: options.rnr_retry,
            ..QpAttr::default()
        };
        Ok(Subject { qp, kind, attr })
    }

    fn step(&self, to: u32, mask: u32) -> sojourn_fabric::Result<()> {
        let attr = QpAttr { qp_state: to, ..self.attr };
        self.qp.device().modify(&attr, mask | qp_mask::STATE)
    }

    /// Brings a fresh QP to `state` by required attributes alone.
    fn reach(side: &mut Side, parts: &Parts, kind: u32, state: u32) -> Verdict<Self> {
        let subject = Subject::new(side, parts, kind)?;
        let way: &[u32] = match state {
            qp_state::RESET => &[],
            qp_state::INIT => &[qp_state::INIT],
            qp_state::RTR => &[qp_state::INIT, qp_state::RTR],
            qp_state::RTS => &[qp_state::INIT, qp_state::RTR, qp_state::RTS],
            qp_state::ERR => &[qp_state::INIT, qp_state::ERR],
            _ => &[qp_state::INIT, qp_state::RTR, qp_state::RTS, qp_state::SQD],
        };
        let mut from = qp_state::RESET;
        for &to in way {
            subject.legal(from, to)?;
            from = to;
        }
        same("the state", abi::qp_state::name(subject.qp.state()?), abi::qp_state::name(state))?;
        // While it drains it may go to few states (IBTA 10.3.1); with nothing to do, not for long.
        if state == qp_state::SQD && side.needs(Feature::SqDrained).is_ok() {
            side.wait("the end of draining", || {
                Ok((subject.qp.query()?.sq_draining == 0).then_some(()))
            })?;
        }
        Ok(subject)
    }

    fn legal(&self, from: u32, to: u32) -> Verdict {
        let required = rule(self.kind, from, to).map_or(0, |rule| rule.required);
        self.step(to, required)
            .map_err(|error| Stop::failed(format!("{}: {error}", self.named(from, to))))
    }

    fn named(&self, from: u32, to: u32) -> String {
        let (from, to) = (abi::qp_state::name(from), abi::qp_state::name(to));
        format!("{} from {from} to {to}", attrs::kind_name(self.kind))
    }
}

fn accepts(side: &mut Side, kind: u32) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    for from in STATES {
        for to in STATES.into_iter().filter(|to| rule(kind, from, *to).is_some()) {
            let subject = Subject::reach(side, &parts, kind, from)?;
            subject.legal(from, to)?;
            let what = format!("the state after {}", subject.named(from, to));
            same(&what, subject.qp.state()?, to)?;
        }
    }
    Ok(())
}

fn refuses(side: &mut Side, kind: u32) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    for from in STATES {
        let subject = Subject::reach(side, &parts, kind, from)?;
        for to in STATES.into_iter().chain([qp_state::SQE]) {
            // RESET to ERR: IBTA allows it, the kernel does not. SQD to itself: with no
            // attribute it says nothing.
            let open = [(qp_state::RESET, qp_state::ERR), (qp_state::SQD, qp_state::SQD)];
            if rule(kind, from, to).is_some() || open.contains(&(from, to)) {
                continue;
            }
            // With what the usual way into that state requires, so that the transition itself
            // is all that is wrong.
            let usual = match to {
                qp_state::INIT => rule(kind, qp_state::RESET, to),
                qp_state::RTR => rule(kind, qp_state::INIT, to),
                qp_state::RTS => rule(kind, qp_state::RTR, to),
                _ => None,
            };
            for mask in [0, usual.map_or(0, |rule| rule.required)] {
                let what = subject.named(from, to);
                refused(&what, subject.step(to, mask), &[libc::EINVAL])?;
            }
        }
        same("the state after refusals", subject.qp.state()?, from)?;
    }
    Ok(())
}

/// The transitions with attributes, in order.
const WAY: [(u32, u32); 3] = [
    (qp_state::RESET, qp_state::INIT),
    (qp_state::INIT, qp_state::RTR),
    (qp_state::RTR, qp_state::RTS),
];

fn missing(side: &mut Side, kind: u32) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    let subject = Subject::new(side, &parts, kind)?;
    for (from, to) in WAY {
        let required = rule(kind, from, to).map_or(0, |rule| rule.required);
        for bit in bits(required) {
            let what = format!("{} without {}", subject.named(from, to), qp_mask::name(bit));
            refused(&what, subject.step(to, required & !bit), &[libc::EINVAL])?;
        }
        subject.legal(from, to)?;
    }
    Ok(())
}

fn stray(side: &mut Side, kind: u32) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    let subject = Subject::new(side, &parts, kind)?;
    let way = [(qp_state::RTS, qp_state::RTS), (qp_state::RTS, qp_state::ERR)];
    for (from, to) in WAY.into_iter().chain(way) {
        let Some(Rule { required, optional }) = rule(kind, from, to) else { continue };
        for bit in ATTRIBUTES.into_iter().filter(|bit| (required | optional) & bit == 0) {
            let what = format!("{} with {}", subject.named(from, to), qp_mask::name(bit));
            refused(&what, subject.step(to, required | bit), &[libc::EINVAL])?;
        }
        subject.legal(from, to)?;
    }
    same("the state at the end", subject.qp.state()?, qp_state::ERR)?;
    Ok(())
}

fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|bit| 1 << bit).filter(move |bit| mask & bit != 0)
}
