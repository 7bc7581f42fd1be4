//! A device in memory: all its contexts are ports of one fabric, in one process.
//!
//! It executes at once, or one request at a time when the test says so, and keeps the rules that
//! the core relies on: keys, order, flushes, and a CQ that overruns when it is too small.

use crate::abi::{
    self, Gid, QpAttr, QpCap, RecvWr, SendWr, Sge, SrqAttr, Wc, link_layer, qp_mask, qp_state,
    qp_type, send_flags, wc_flags, wc_opcode, wc_status, wr_opcode,
};
use crate::device::*;
use crate::error::{Error, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// Address of a port.
#[derive(Clone, Copy)]
pub(in super::super) struct Port {
    pub(in super::super) lid: u16,
    pub(in super::super) gid: [u8; 16],
    pub(in super::super) link_layer: u8,
}

impl Port {
    pub(in super::super) fn infiniband(lid: u16) -> Self {
        let mut gid = [0; 16];
        (gid[0], gid[1], gid[15]) = (0xfe, 0x80, lid as u8);
        Port { lid, gid, link_layer: link_layer::INFINIBAND }
    }

    /// RoCE v2 over IPv4.
    pub(in super::super) fn ethernet(host: u8) -> Self {
        let mut gid = [0; 16];
        gid[10..].copy_from_slice(&[0xff, 0xff, 10, 77, 0, host]);
        Port { lid: 0, gid, link_layer: link_layer::ETHERNET }
    }
}

struct Request {
    wr: SendWr,
    sges: Vec<Sge>,
    inline: Option<Vec<u8>>,
}

// SAFETY: of its pointers none is followed but the address handle, which is a number here.
unsafe impl Send for Request {}

struct Recv {
    wr_id: u64,
    sges: Vec<Sge>,
}

struct Qp {
    qp_type: u32,
    port: Port,
    cap: QpCap,
    attr: QpAttr,
    sends: VecDeque<Request>,
    /// Posted so far, and completed: the physical queue is as deep as it was made.
    out: usize,
    recvs: VecDeque<Recv>,
    srq: Option<u32>,
    send_cq: u32,
    recv_cq: u32,
}

#[derive(Default)]
struct Cq {
    cqe: u32,
    wcs: VecDeque<Wc>,
    overrun: bool,
    channel: Option<Arc<TestChannel>>,
    armed: bool,
    user: u64,
}

struct Mr {
    addr: u64,
    length: u64,
    access: u32,
}

struct Ah {
    attr: abi::AhAttr,
}

#[derive(Default)]
struct State {
    next: u32,
    qps: HashMap<u32, Qp>,
    cqs: HashMap<u32, Cq>,
    srqs: HashMap<u32, VecDeque<Recv>>,
    mrs: HashMap<u32, Mr>,
    ahs: HashMap<u64, Ah>,
    on_command: bool,
    deaf_in_err: bool,
    post_fails: bool,
    max_inline: Option<u32>,
    lies_in_err: bool,
    left: Option<usize>,
    /// Ports from which nothing arrives.
    cut_off: HashSet<[u8; 16]>,
    /// The same, of queue pairs from that number on.
    cut_off_next: Option<([u8; 16], u32)>,
}

/// All ports, and what is between them.
#[derive(Clone, Default)]
pub(in super::super) struct Fabric(Arc<Mutex<State>>);

impl Fabric {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Opens a port.
    pub(in super::super) fn open(&self, port: Port) -> Arc<dyn DeviceContext> {
        self.open_with(port, |_| {})
    }

    /// Opens a port of a device with other limits.
    pub(in super::super) fn open_with(
        &self,
        port: Port,
        limits: fn(&mut abi::DeviceAttr),
    ) -> Arc<dyn DeviceContext> {
        self.open_with_port(port, limits, |_| {})
    }

    /// The same, of a port with other limits, too.
    pub(in super::super) fn open_with_port(
        &self,
        port: Port,
        limits: fn(&mut abi::DeviceAttr),
        port_limits: fn(&mut abi::PortAttr),
    ) -> Arc<dyn DeviceContext> {
        let events = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(TestContext { fabric: self.clone(), port, events, limits, port_limits })
    }

    /// Queue pairs that are created from now on have no more inline data than this.
    pub(in super::super) fn limit_inline(&self, bytes: u32) {
        self.lock().max_inline = Some(bytes);
    }

    /// After `n` more objects have been created, of whatever kind, there is no memory for one; `None`:
    /// there is.
    pub(in super::super) fn run_out_after(&self, n: Option<usize>) {
        self.lock().left = n;
    }

    /// Domains, regions, CQs, queue pairs, receive queues and handles that are there.
    pub(in super::super) fn objects(&self) -> [usize; 4] {
        let state = self.lock();
        [state.mrs.len(), state.cqs.len(), state.qps.len(), state.srqs.len()]
    }

    /// From now on nothing is executed but by [`Fabric::run`] and [`Fabric::step`].
    pub(in super::super) fn on_command(&self) {
        self.lock().on_command = true;
    }

    /// Executes at once again.
    pub(in super::super) fn at_once(&self) {
        let mut state = self.lock();
        state.on_command = false;
        state.run(false);
    }

    /// Executes as many requests.
    pub(in super::super) fn step(&self, n: usize) {
        let mut state = self.lock();
        for _ in 0..n {
            let numbers: Vec<u32> = state.qps.keys().copied().collect();
            numbers.into_iter().any(|number| state.execute(number));
        }
    }

    /// Lets the responders execute as many packets of the oldest request of each queue pair, which is a
    /// WRITE, or a SEND that finds a receive, and no more.
    pub(in super::super) fn cut(&self, packets: u32) {
        self.lock().cut(packets);
    }

    /// Queue pairs that share their receives take one each, as for a SEND that has come in part.
    pub(in super::super) fn take_in_hand(&self) {
        let mut state = self.lock();
        let sharing = state.qps.iter().filter(|(_, qp)| qp.srq.is_some());
        let numbers: Vec<u32> = sharing.map(|(number, _)| *number).collect();
        for number in numbers {
            let taken = state.take_recv(number);
            state.qps.get_mut(&number).unwrap().recvs.extend(taken);
        }
    }

    /// Queue pairs of this port are at ERR, and what they flush is yet to come: by [`Fabric::flush`].
    pub(in super::super) fn err_at(&self, lid: u16) {
        let mut state = self.lock();
        let there = state.qps.values_mut().filter(|qp| qp.port.lid == lid);
        there.for_each(|qp| qp.attr.qp_state = qp_state::ERR);
    }

    /// Now it comes.
    pub(in super::super) fn flush(&self) {
        let mut state = self.lock();
        let at_err = state.qps.iter().filter(|(_, qp)| qp.attr.qp_state == qp_state::ERR);
        let numbers: Vec<u32> = at_err.map(|(number, _)| *number).collect();
        numbers.into_iter().for_each(|number| state.enter_err(number));
    }

    /// Executes what can be executed.
    pub(in super::super) fn run(&self) {
        self.lock().run(true);
    }

    /// As rxe of Linux 6.1: a receive posted after ERR is never flushed.
    pub(in super::super) fn deaf_in_err(&self) {
        self.lock().deaf_in_err = true;
    }

    /// As rxe of Linux 6.12 before .111: receives that are there at ERR come back as filled.
    pub(in super::super) fn lie_in_err(&self) {
        self.lock().lies_in_err = true;
    }

    /// A queue pair goes to ERR by itself.
    pub(in super::super) fn break_path(&self, qpn: u32) {
        self.lock().enter_err(qpn);
    }

    /// Nothing arrives from this port any more: what its queue pairs have out fails, and what is posted to
    /// them, on command or not.
    pub(in super::super) fn cut_off(&self, port: Port) {
        let mut state = self.lock();
        state.cut_off.insert(port.gid);
        state.fail_cut_off();
    }

    /// The same, of queue pairs that are created from now on.
    pub(in super::super) fn cut_off_next(&self, port: Port) {
        let mut state = self.lock();
        let first = state.number();
        state.cut_off_next = Some((port.gid, first));
    }

    /// Every post is refused.
    pub(in super::super) fn refuse_posts(&self, refuse: bool) {
        self.lock().post_fails = refuse;
    }

    /// No CQ was ever too small.
    pub(in super::super) fn assert_no_overrun(&self) {
        assert!(self.lock().cqs.values().all(|cq| !cq.overrun), "a physical CQ was overrun");
    }

    /// Requests posted to any physical queue pair, and not executed.
    pub(in super::super) fn outstanding(&self) -> usize {
        self.lock().qps.values().map(|qp| qp.sends.len()).sum()
    }
}

impl State {
    fn number(&mut self) -> u32 {
        // Strides that no virtual name has, so that a name that was not translated shows.
        self.next += 0x11;
        0x80_0000 + self.next
    }

    /// There is memory for one more object.
    fn create(&mut self) -> Result<()> {
        match &mut self.left {
            Some(0) => Err(Error::new(libc::ENOMEM, "test0: no memory left")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn complete(&mut self, cq: u32, wc: Wc, solicited: bool) {
        let _ = solicited;
        let Some(cq) = self.cqs.get_mut(&cq) else { return };
        if cq.wcs.len() >= cq.cqe as usize {
            cq.overrun = true;
            return;
        }
        cq.wcs.push_back(wc);
        if std::mem::take(&mut cq.armed)
            && let Some(channel) = &cq.channel
        {
            channel.raise(cq.user);
        }
    }

    fn enter_err(&mut self, number: u32) {
        let Some(qp) = self.qps.get_mut(&number) else { return };
        let deaf = self.deaf_in_err && qp.attr.qp_state == qp_state::ERR;
        qp.attr.qp_state = qp_state::ERR;
        let sends = std::mem::take(&mut qp.sends);
        let recvs = if deaf { VecDeque::new() } else { std::mem::take(&mut qp.recvs) };
        let (send_cq, recv_cq) = (qp.send_cq, qp.recv_cq);
        let flushed = |wr_id, opcode| Wc {
            wr_id,
            status: wc_status::WR_FLUSH_ERR,
            opcode,
            qp_num: number,
            ..Wc::default()
        };
        for send in sends {
            self.complete(send_cq, flushed(send.wr.wr_id, wc_opcode::SEND), true);
        }
        for recv in recvs {
            let mut wc = flushed(recv.wr_id, wc_opcode::RECV);
            if self.lies_in_err {
                wc.status = wc_status::SUCCESS;
            }
            self.complete(recv_cq, wc, true);
        }
    }

    fn fail_cut_off(&mut self) {
        let cut_off = |qp: &Qp| qp.attr.qp_state == qp_state::RTS && !qp.sends.is_empty();
        let numbers: Vec<u32> =
            self.qps.iter().filter(|(_, qp)| cut_off(qp)).map(|it| *it.0).collect();
        for number in numbers {
            let Some(qp) = self.qps.get_mut(&number) else { continue };
            let next =
                self.cut_off_next.is_some_and(|(gid, first)| gid == qp.port.gid && number > first);
            if !(next || self.cut_off.contains(&qp.port.gid)) || qp.qp_type != qp_type::RC {
                continue;
            }
            let Some(send) = qp.sends.pop_front() else { continue };
            let wc = Wc {
                wr_id: send.wr.wr_id,
                status: wc_status::RETRY_EXC_ERR,
                qp_num: number,
                ..Wc::default()
            };
            let send_cq = qp.send_cq;
            self.complete(send_cq, wc, true);
            self.enter_err(number);
        }
    }

    fn covers(&self, key: u32, addr: u64, length: u64, access: u32) -> bool {
        self.mrs.get(&key).is_some_and(|mr| {
            mr.access & access == access && addr >= mr.addr && addr + length <= mr.addr + mr.length
        })
    }

    /// Copies out of the program's memory; `None` where a key is wrong.
    fn gather(&self, send: &Request) -> Option<Vec<u8>> {
        if let Some(bytes) = &send.inline {
            return Some(bytes.clone());
        }
        let mut bytes = Vec::new();
        for sge in &send.sges {
            if !self.covers(sge.lkey, sge.addr, sge.length.into(), 0) {
                return None;
            }
            for i in 0..u64::from(sge.length) {
                // SAFETY: registered, and so mapped.
                bytes.push(unsafe { ((sge.addr + i) as *const u8).read_volatile() });
            }
        }
        Some(bytes)
    }

    fn scatter(&self, sges: &[Sge], bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for sge in sges {
            let take = rest.len().min(sge.length as usize);
            if !self.covers(sge.lkey, sge.addr, take as u64, abi::access::LOCAL_WRITE) {
                return false;
            }
            put(sge.addr, &rest[..take]);
            rest = &rest[take..];
        }
        rest.is_empty()
    }

    fn run(&mut self, commanded: bool) {
        self.fail_cut_off();
        if self.on_command && !commanded {
            return;
        }
        loop {
            let numbers: Vec<u32> = self.qps.keys().copied().collect();
            let moved: Vec<bool> = numbers.into_iter().map(|number| self.execute(number)).collect();
            if !moved.contains(&true) {
                return;
            }
        }
    }

    fn cut(&mut self, packets: u32) {
        let numbers: Vec<u32> = self.qps.keys().copied().collect();
        for number in numbers {
            let qp = &self.qps[&number];
            let (dest, bytes) =
                (qp.attr.dest_qp_num, packets * abi::mtu_bytes(qp.attr.path_mtu).unwrap_or(0));
            let Some(send) = qp.sends.front() else { continue };
            let Some(data) = self.gather(send) else { continue };
            if send.wr.opcode == wr_opcode::SEND {
                let receive = &self.qps[&dest].recvs[0];
                assert!(self.scatter(&receive.sges, &data[..bytes as usize]));
            } else {
                // SAFETY: it is a WRITE.
                put(unsafe { send.wr.wr.rdma.remote_addr }, &data[..bytes as usize]);
            }
            if let Some(dest) = self.qps.get_mut(&dest) {
                dest.attr.rq_psn = (dest.attr.rq_psn + packets) & abi::MASK_24;
            }
        }
    }

    fn take_recv(&mut self, number: u32) -> Option<Recv> {
        match self.qps[&number].srq {
            Some(srq) => self.srqs.get_mut(&srq)?.pop_front(),
            None => self.qps.get_mut(&number)?.recvs.pop_front(),
        }
    }

    /// Executes the oldest request of a queue pair; false where it cannot.
    fn execute(&mut self, number: u32) -> bool {
        let qp = self.qps.get_mut(&number).unwrap();
        if qp.attr.qp_state != qp_state::RTS {
            return false;
        }
        let Some(send) = qp.sends.pop_front() else { return false };
        let (kind, port, send_cq) = (qp.qp_type, qp.port, qp.send_cq);
        let dest = qp.attr.dest_qp_num;
        let opcode = send.wr.opcode;
        let status = if kind == qp_type::UD {
            self.datagram(number, port, &send)
        } else {
            match self.connected(number, dest, &send) {
                Some(status) => status,
                None => {
                    self.qps.get_mut(&number).unwrap().sends.push_front(send);
                    return false;
                }
            }
        };
        if status != wc_status::SUCCESS || send.wr.send_flags & send_flags::SIGNALED != 0 {
            let opcode = match opcode {
                wr_opcode::RDMA_WRITE | wr_opcode::RDMA_WRITE_WITH_IMM => wc_opcode::RDMA_WRITE,
                wr_opcode::RDMA_READ => wc_opcode::RDMA_READ,
                wr_opcode::ATOMIC_FETCH_AND_ADD => wc_opcode::FETCH_ADD,
                _ => wc_opcode::SEND,
            };
            let wc = Wc { wr_id: send.wr.wr_id, status, opcode, qp_num: number, ..Wc::default() };
            self.complete(send_cq, wc, true);
        }
        if status != wc_status::SUCCESS {
            self.enter_err(number);
        }
        true
    }

    /// `None`: not now (receiver not ready).
    fn connected(&mut self, number: u32, dest: u32, send: &Request) -> Option<u32> {
        let up = |qp: &Qp| matches!(qp.attr.qp_state, qp_state::RTR | qp_state::RTS);
        if !self.qps.get(&dest).is_some_and(up) {
            return Some(wc_status::RETRY_EXC_ERR);
        }
        let reading =
            matches!(send.wr.opcode, wr_opcode::RDMA_READ | wr_opcode::ATOMIC_FETCH_AND_ADD);
        let bytes = match reading {
            true => vec![0; send.sges.iter().map(|sge| sge.length as usize).sum()],
            false => match self.gather(send) {
                Some(bytes) => bytes,
                None => return Some(wc_status::LOC_PROT_ERR),
            },
        };
        let len = bytes.len() as u64;
        let with_recv = matches!(
            send.wr.opcode,
            wr_opcode::SEND | wr_opcode::SEND_WITH_IMM | wr_opcode::RDMA_WRITE_WITH_IMM
        );
        let two_sided = matches!(send.wr.opcode, wr_opcode::SEND | wr_opcode::SEND_WITH_IMM);
        if !two_sided {
            // SAFETY: both members have them at the same place or are as their opcode says.
            let (addr, rkey, wanted) = unsafe {
                match send.wr.opcode {
                    wr_opcode::ATOMIC_FETCH_AND_ADD => {
                        let it = send.wr.wr.atomic;
                        (it.remote_addr, it.rkey, abi::access::REMOTE_ATOMIC)
                    }
                    wr_opcode::RDMA_READ => {
                        let it = send.wr.wr.rdma;
                        (it.remote_addr, it.rkey, abi::access::REMOTE_READ)
                    }
                    _ => {
                        let it = send.wr.wr.rdma;
                        (it.remote_addr, it.rkey, abi::access::REMOTE_WRITE)
                    }
                }
            };
            if send.sges.iter().any(|sge| sge.length > 0)
                && len > 0
                && !self.covers(rkey, addr, len, wanted)
            {
                self.enter_err(dest);
                return Some(wc_status::REM_ACCESS_ERR);
            }
            if with_recv && !self.has_recv(dest) {
                return None;
            }
            match send.wr.opcode {
                wr_opcode::RDMA_READ => {
                    // SAFETY: registered, and so mapped.
                    let read = |i| unsafe { ((addr + i) as *const u8).read_volatile() };
                    let bytes: Vec<u8> = (0..len).map(read).collect();
                    if !self.scatter(&send.sges, &bytes) {
                        return Some(wc_status::LOC_PROT_ERR);
                    }
                }
                wr_opcode::ATOMIC_FETCH_AND_ADD => {
                    // SAFETY: registered, and so mapped; the operand is what the opcode says.
                    let old = unsafe {
                        let word = addr as *mut u64;
                        let old = word.read_volatile();
                        word.write_volatile(old.wrapping_add(send.wr.wr.atomic.compare_add));
                        old
                    };
                    if !self.scatter(&send.sges, &old.to_ne_bytes()) {
                        return Some(wc_status::LOC_PROT_ERR);
                    }
                }
                _ => put(addr, &bytes),
            }
        }
        if with_recv {
            let recv = self.take_recv(dest)?;
            let imm = send.wr.opcode != wr_opcode::SEND;
            let stored = !two_sided || self.scatter(&recv.sges, &bytes);
            let wc = Wc {
                wr_id: recv.wr_id,
                status: if stored { wc_status::SUCCESS } else { wc_status::LOC_PROT_ERR },
                opcode: if two_sided { wc_opcode::RECV } else { wc_opcode::RECV_RDMA_WITH_IMM },
                byte_len: len as u32,
                // SAFETY: every byte of the union is initialised.
                imm_data: unsafe { send.wr.imm.imm_data },
                wc_flags: if imm { wc_flags::WITH_IMM } else { 0 },
                qp_num: dest,
                src_qp: number,
                ..Wc::default()
            };
            self.complete(self.qps[&dest].recv_cq, wc, true);
            if !stored {
                self.enter_err(dest);
                return Some(wc_status::REM_OP_ERR);
            }
        }
        if let Some(dest) = self.qps.get_mut(&dest) {
            let mtu = u64::from(abi::mtu_bytes(dest.attr.path_mtu).unwrap_or(1024));
            let atomic = send.wr.opcode == wr_opcode::ATOMIC_FETCH_AND_ADD;
            let packets = if atomic { 1 } else { len.div_ceil(mtu).max(1) };
            dest.attr.rq_psn = (dest.attr.rq_psn + packets as u32) & abi::MASK_24;
        }
        Some(wc_status::SUCCESS)
    }

    fn has_recv(&self, number: u32) -> bool {
        match self.qps[&number].srq {
            Some(srq) => self.srqs.get(&srq).is_some_and(|recvs| !recvs.is_empty()),
            None => !self.qps[&number].recvs.is_empty(),
        }
    }

    fn datagram(&mut self, number: u32, port: Port, send: &Request) -> u32 {
        // SAFETY: what a datagram's target is.
        let ud = unsafe { send.wr.wr.ud };
        let Some(ah) = self.ahs.get(&(ud.ah as u64)) else { return wc_status::LOC_QP_OP_ERR };
        let (attr, dest) = (ah.attr, ud.remote_qpn);
        let Some(bytes) = self.gather(send) else { return wc_status::LOC_PROT_ERR };
        let there = self.qps.get(&dest).is_some_and(|qp| {
            let by_lid = attr.dlid == qp.port.lid && attr.dlid != 0;
            let by_gid = attr.is_global != 0 && attr.grh.dgid.0 == qp.port.gid;
            (by_lid || by_gid) && qp.qp_type == qp_type::UD && qp.attr.qkey == ud.remote_qkey
        });
        if !there || !self.has_recv(dest) {
            return wc_status::SUCCESS;
        }
        let recv = self.take_recv(dest).unwrap();
        let global = attr.is_global != 0;
        let mut packet = vec![0; abi::GRH_BYTES];
        if port.link_layer == link_layer::ETHERNET {
            packet[20] = 0x45;
            packet[22..24].copy_from_slice(&(bytes.len() as u16 + 20).to_be_bytes());
            packet[32..36].copy_from_slice(&port.gid[12..]);
            packet[36..40].copy_from_slice(&attr.grh.dgid.0[12..]);
        } else if global {
            packet[0] = 0x60;
            packet[8..24].copy_from_slice(&port.gid);
            packet[24..40].copy_from_slice(&attr.grh.dgid.0);
        }
        packet.extend(bytes);
        if !self.scatter(&recv.sges, &packet) {
            return wc_status::SUCCESS;
        }
        let wc = Wc {
            wr_id: recv.wr_id,
            opcode: wc_opcode::RECV,
            byte_len: packet.len() as u32,
            wc_flags: if global { wc_flags::GRH } else { 0 },
            qp_num: dest,
            src_qp: number,
            slid: port.lid,
            ..Wc::default()
        };
        self.complete(self.qps[&dest].recv_cq, wc, true);
        wc_status::SUCCESS
    }
}

fn put(addr: u64, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        // SAFETY: the caller has seen that it is registered, and so mapped.
        unsafe { ((addr + i as u64) as *mut u8).write_volatile(*byte) };
    }
}

struct TestContext {
    fabric: Fabric,
    port: Port,
    events: EventFd,
    limits: fn(&mut abi::DeviceAttr),
    port_limits: fn(&mut abi::PortAttr),
}

impl DeviceContext for TestContext {
    fn name(&self) -> &str {
        "test0"
    }

    fn kind(&self) -> Kind {
        Kind::Hca
    }

    fn query_device(&self) -> Result<abi::DeviceAttr> {
        // SAFETY: integers alone, for which zero is a value.
        let mut attr: abi::DeviceAttr = unsafe { std::mem::zeroed() };
        (attr.max_qp, attr.max_qp_wr, attr.max_sge) = (1000, 1000, 8);
        (attr.max_cqe, attr.max_mr, attr.phys_port_cnt) = (2048, 1000, 1);
        (attr.max_qp_rd_atom, attr.max_qp_init_rd_atom, attr.atomic_cap) = (16, 16, 1);
        (self.limits)(&mut attr);
        Ok(attr)
    }

    fn query_port(&self, port: u8) -> Result<abi::PortAttr> {
        if port != 1 {
            return Err(Error::invalid(format!("port {port}")));
        }
        let mut attr = abi::PortAttr {
            state: abi::port_state::ACTIVE,
            max_mtu: abi::mtu::MTU_4096,
            active_mtu: abi::mtu::MTU_1024,
            max_msg_sz: 1 << 30,
            gid_tbl_len: 4,
            lid: self.port.lid,
            link_layer: self.port.link_layer,
            ..abi::PortAttr::default()
        };
        (self.port_limits)(&mut attr);
        Ok(attr)
    }

    fn query_gid(&self, _port: u8, index: u32) -> Result<Gid> {
        assert_eq!(index, self.best_gid_index(1)?);
        Ok(Gid(self.port.gid))
    }

    fn best_gid_index(&self, _port: u8) -> Result<u32> {
        Ok(3)
    }

    fn query_pkey(&self, _port: u8, _index: u32) -> Result<u16> {
        Ok(0xffff)
    }

    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
        assert!(init.single_threaded, "the virtual layer's lock is the only one");
        self.fabric.lock().create()?;
        Ok(Arc::new(TestPd(self)))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        self.fabric.lock().create()?;
        let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Ok(Arc::new(Channel(Arc::new(TestChannel { fd, events: Mutex::default() }))))
    }

    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        assert!(init.single_threaded, "the virtual layer's lock is the only one");
        let channel = init.channel.map(|channel| {
            let any: Arc<dyn Any + Send + Sync> = channel;
            Arc::clone(&any.downcast::<Channel>().unwrap_or_else(|_| panic!("a channel")).0)
        });
        let mut state = self.fabric.lock();
        state.create()?;
        let number = state.number();
        let (cqe, user) = (init.cqe, init.user);
        state.cqs.insert(number, Cq { cqe, channel, user, ..Cq::default() });
        drop(state);
        Ok(Arc::new(TestCq { fabric: self.fabric.clone(), number }))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        Ok(None)
    }
}

struct TestChannel {
    fd: EventFd,
    events: Mutex<VecDeque<u64>>,
}

impl TestChannel {
    fn raise(&self, user: u64) {
        self.events.lock().unwrap().push_back(user);
        self.fd.write(1).unwrap();
    }
}

struct Channel(Arc<TestChannel>);

impl DeviceChannel for Channel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    fn get_event(&self) -> Result<Option<u64>> {
        let mut events = self.0.events.lock().unwrap();
        let event = events.pop_front();
        if events.is_empty() {
            let _ = self.0.fd.read();
        }
        Ok(event)
    }
}

struct TestPd(Arc<TestContext>);

impl DevicePd for TestPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        let mut state = self.0.fabric.lock();
        state.create()?;
        let key = state.number();
        state.mrs.insert(key, Mr { addr: addr as u64, length: length as u64, access: flags });
        drop(state);
        Ok(Arc::new(TestMr { fabric: self.0.fabric.clone(), key }))
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        assert!(!init.sq_sig_all, "the virtual layer signals by request");
        let number_of = |cq: &Arc<dyn DeviceCq>| {
            let any: Arc<dyn Any + Send + Sync> = Arc::clone(cq) as _;
            any.downcast::<TestCq>().unwrap_or_else(|_| panic!("a physical CQ")).number
        };
        let (send_cq, recv_cq) = (number_of(&init.send_cq), number_of(&init.recv_cq));
        let srq = init.srq.as_ref().map(|srq| {
            let any: Arc<dyn Any + Send + Sync> = Arc::clone(srq) as _;
            any.downcast::<TestSrq>().unwrap_or_else(|_| panic!("a physical SRQ")).number
        });
        let mut state = self.0.fabric.lock();
        state.create()?;
        let number = state.number();
        let mut cap = init.cap;
        cap.max_inline_data = cap.max_inline_data.min(state.max_inline.unwrap_or(u32::MAX));
        let qp = Qp {
            qp_type: init.qp_type,
            port: self.0.port,
            cap,
            attr: QpAttr::default(),
            sends: VecDeque::new(),
            out: 0,
            recvs: VecDeque::new(),
            srq,
            send_cq,
            recv_cq,
        };
        state.qps.insert(number, qp);
        drop(state);
        let (fabric, qp_type) = (self.0.fabric.clone(), init.qp_type);
        Ok(Arc::new(TestQp { fabric, number, qp_type, cap }))
    }

    fn create_srq(self: Arc<Self>, _init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        let mut state = self.0.fabric.lock();
        state.create()?;
        let number = state.number();
        state.srqs.insert(number, VecDeque::new());
        drop(state);
        Ok(Arc::new(TestSrq { fabric: self.0.fabric.clone(), number }))
    }

    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        let mut state = self.0.fabric.lock();
        state.create()?;
        let handle = u64::from(state.number());
        state.ahs.insert(handle, Ah { attr: *attr });
        drop(state);
        Ok(Arc::new(TestAh { fabric: self.0.fabric.clone(), handle }))
    }
}

struct TestMr {
    fabric: Fabric,
    key: u32,
}

impl DeviceMr for TestMr {
    fn lkey(&self) -> u32 {
        self.key
    }

    fn rkey(&self) -> u32 {
        self.key
    }

    fn dereg(&self) -> Result<()> {
        self.fabric.lock().mrs.remove(&self.key);
        Ok(())
    }
}

struct TestAh {
    fabric: Fabric,
    handle: u64,
}

impl DeviceAh for TestAh {
    fn as_raw(&self) -> *mut c_void {
        self.handle as *mut c_void
    }
}

impl Drop for TestAh {
    fn drop(&mut self) {
        self.fabric.lock().ahs.remove(&self.handle);
    }
}

struct TestSrq {
    fabric: Fabric,
    number: u32,
}

impl DeviceSrq for TestSrq {
    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        let recv = unsafe { recv(&*wr) };
        let mut state = self.fabric.lock();
        state.srqs.get_mut(&self.number).unwrap().push_back(recv);
        state.run(false);
        Ok(())
    }

    fn modify(&self, _attr: &SrqAttr, _mask: u32) -> Result<()> {
        Ok(())
    }

    fn query(&self) -> Result<SrqAttr> {
        Ok(SrqAttr::default())
    }
}

impl Drop for TestSrq {
    fn drop(&mut self) {
        self.fabric.lock().srqs.remove(&self.number);
    }
}

struct TestCq {
    fabric: Fabric,
    number: u32,
}

impl DeviceCq for TestCq {
    fn cqe(&self) -> u32 {
        self.fabric.lock().cqs[&self.number].cqe
    }

    fn poll(&self, wcs: &mut [Wc]) -> Polled {
        let mut state = self.fabric.lock();
        let cq = state.cqs.get_mut(&self.number).unwrap();
        if cq.overrun {
            return Err(libc::EIO);
        }
        let n = wcs.len().min(cq.wcs.len());
        for wc in &mut wcs[..n] {
            *wc = cq.wcs.pop_front().unwrap();
        }
        for wc in &wcs[..n] {
            // As a device does: a completion frees everything up to it.
            if wc.wr_id & 1 << 31 == 0
                && let Some(qp) = state.qps.get_mut(&wc.qp_num)
            {
                qp.out = qp.sends.len();
            }
        }
        Ok(n as u32)
    }

    fn req_notify(&self, _solicited_only: bool) -> Result<()> {
        self.fabric.lock().cqs.get_mut(&self.number).unwrap().armed = true;
        Ok(())
    }

    fn resize(&self, cqe: u32) -> Result<()> {
        self.fabric.lock().cqs.get_mut(&self.number).unwrap().cqe = cqe;
        Ok(())
    }
}

impl Drop for TestCq {
    fn drop(&mut self) {
        self.fabric.lock().cqs.remove(&self.number);
    }
}

struct TestQp {
    fabric: Fabric,
    number: u32,
    qp_type: u32,
    cap: QpCap,
}

/// # Safety
/// The request is valid.
unsafe fn recv(wr: &RecvWr) -> Recv {
    assert!(wr.next.is_null() || wr.num_sge >= 0);
    // SAFETY: the caller's promise.
    let sges = unsafe { super::super::qp::sges(wr.sg_list, wr.num_sge) }.to_vec();
    Recv { wr_id: wr.wr_id, sges }
}

impl DeviceQp for TestQp {
    fn qp_num(&self) -> u32 {
        self.number
    }

    fn qp_type(&self) -> u32 {
        self.qp_type
    }

    fn init_cap(&self) -> QpCap {
        self.cap
    }

    unsafe fn post_send(&self, wr: *mut SendWr) -> PostSend {
        let mut state = self.fabric.lock();
        let mut next = wr;
        let mut posted = Ok(());
        // SAFETY: the caller's list.
        while let Some(wr) = unsafe { next.as_ref() } {
            let fails = state.post_fails;
            let qp = state.qps.get_mut(&self.number).unwrap();
            let ready = qp.attr.qp_state >= qp_state::RTS && !fails;
            if !ready || qp.out >= qp.cap.max_send_wr as usize {
                let errno = if ready { libc::ENOMEM } else { libc::EINVAL };
                posted = Err(PostError::new(errno, next));
                break;
            }
            // SAFETY: the caller's list.
            let sges = unsafe { super::super::qp::sges(wr.sg_list, wr.num_sge) }.to_vec();
            let inline = (wr.send_flags & send_flags::INLINE != 0).then(|| {
                let piece = |sge: &Sge| {
                    // SAFETY: inline data is readable during the call.
                    unsafe {
                        std::slice::from_raw_parts(sge.addr as *const u8, sge.length as usize)
                    }
                };
                sges.iter().flat_map(piece).copied().collect()
            });
            qp.sends.push_back(Request { wr: *wr, sges, inline });
            qp.out += 1;
            if qp.attr.qp_state == qp_state::ERR {
                state.enter_err(self.number);
            }
            next = wr.next;
        }
        state.run(false);
        posted
    }

    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        let mut state = self.fabric.lock();
        let mut next = wr;
        // SAFETY: the caller's list.
        while let Some(wr) = unsafe { next.as_ref() } {
            let deaf = state.deaf_in_err;
            let qp = state.qps.get_mut(&self.number).unwrap();
            if qp.attr.qp_state == qp_state::RESET {
                return Err(PostError::new(libc::EINVAL, next));
            }
            // SAFETY: the caller's list.
            qp.recvs.push_back(unsafe { recv(wr) });
            if qp.attr.qp_state == qp_state::ERR && !deaf {
                state.enter_err(self.number);
            }
            next = wr.next;
        }
        state.run(false);
        Ok(())
    }

    fn modify(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        let mut state = self.fabric.lock();
        let qp = state.qps.get_mut(&self.number).unwrap();
        if mask & qp_mask::DEST_QPN != 0 {
            qp.attr.dest_qp_num = attr.dest_qp_num;
        }
        if mask & qp_mask::AV != 0 {
            qp.attr.ah_attr = attr.ah_attr;
        }
        if mask & qp_mask::QKEY != 0 {
            qp.attr.qkey = attr.qkey;
        }
        if mask & qp_mask::RQ_PSN != 0 {
            qp.attr.rq_psn = attr.rq_psn;
        }
        if mask & qp_mask::PATH_MTU != 0 {
            qp.attr.path_mtu = attr.path_mtu;
        }
        if mask & qp_mask::STATE != 0 {
            match attr.qp_state {
                qp_state::ERR => state.enter_err(self.number),
                qp_state::RESET => {
                    qp.attr = QpAttr::default();
                    (qp.sends, qp.recvs, qp.out) = Default::default();
                }
                to => qp.attr.qp_state = to,
            }
        }
        state.run(false);
        Ok(())
    }

    fn query(&self, _mask: u32) -> Result<QpAttr> {
        Ok(self.fabric.lock().qps[&self.number].attr)
    }
}

impl Drop for TestQp {
    fn drop(&mut self) {
        self.fabric.lock().qps.remove(&self.number);
    }
}
