//! The objects that programs hold, in a process that is the one rank of a job: what C code reads of
//! them, who waits for whom, and what is refused.

mod common;

use common::Place;
use common::library::{Verbs, errno};
use sojourn_fabric::abi::{
    ABI_EXTENDED, Ah, AhAttr, AsyncEvent, Context, Cq, Device, GidEntry, Grh, Mr, Pd, PortAttr, Qp,
    QpAttr, QpCap, QpInitAttr, RdmaWr, RecvWr, SendWr, Sge, Srq, SrqAttr, SrqInitAttr, UdWr,
    VerbsContext, Wc, access, event_type, mtu, qp_mask as m, qp_state, qp_type, send_flags,
    wc_flags, wc_opcode, wc_status, wr_opcode,
};
use std::ffi::{CStr, c_int, c_void};
use std::mem::{offset_of, zeroed};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Nothing here takes this long, on a loaded machine either.
const PATIENCE: Duration = Duration::from_secs(60);
/// Set in the process that is the rank.
const INSIDE: &str = "SOJOURN_TEST_INSIDE";

/// Runs `body` in a process of this test that is the one rank of a job.
fn in_a_job(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let exe = std::env::current_exe().unwrap();
    let script =
        format!("exec env {INSIDE}=1 '{}' --exact {test} --nocapture", exe.to_str().unwrap());
    let done = Place::new().job(1, &script);
    assert!(done.status.success() && done.out.contains("1 passed"), "{done:#?}");
}

/// A context with one of most things.
struct Rig {
    verbs: Verbs,
    context: *mut Context,
    pd: *mut Pd,
    memory: *mut [u8; 4096],
    mr: *mut Mr,
}

impl Rig {
    fn new() -> Rig {
        let verbs = Verbs::ours();
        // SAFETY: throughout, called as the man pages say.
        unsafe {
            let mut count = 0;
            let list = (verbs.ibv_get_device_list)(&raw mut count);
            assert!(!list.is_null() && count == 1 && (*list.add(1)).is_null());
            let device: *mut Device = *list;
            let name = CStr::from_ptr((verbs.ibv_get_device_name)(device));
            assert_eq!(name, c"soft0");
            assert_eq!((verbs.ibv_get_device_index)(device), -1);
            let context = (verbs.ibv_open_device)(device);
            (verbs.ibv_free_device_list)(list);
            assert!(!context.is_null());
            assert_eq!((*context).device, device);
            let pd = (verbs.ibv_alloc_pd)(context);
            assert!(!pd.is_null() && (*pd).context == context);
            let memory = Box::into_raw(Box::new([0u8; 4096]));
            let all = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
            let mr = (verbs.ibv_reg_mr)(pd, memory.cast(), 4096, all as c_int);
            assert!(!mr.is_null() && (*mr).pd == pd && (*mr).length == 4096);
            assert!((*mr).addr == memory.cast() && (*mr).lkey != 0);
            Rig { verbs, context, pd, memory, mr }
        }
    }

    fn create_qp(&self, cq: *mut Cq, srq: *mut Srq) -> *mut Qp {
        self.create_qp_of(qp_type::RC, cq, srq)
    }

    fn create_qp_of(&self, qp_type: u32, cq: *mut Cq, srq: *mut Srq) -> *mut Qp {
        let cap = QpCap {
            max_send_wr: 4,
            max_recv_wr: 4,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let mut init = QpInitAttr {
            qp_context: without_provenance_mut(0x77),
            send_cq: cq,
            recv_cq: cq,
            srq,
            cap,
            qp_type,
            sq_sig_all: 1,
        };
        // SAFETY: called as the man page says.
        let qp = unsafe { (self.verbs.ibv_create_qp)(self.pd, &raw mut init) };
        assert!(!qp.is_null(), "errno {}", errno());
        assert!(init.cap.max_send_wr >= 4, "what was granted is written back");
        qp
    }

    fn modify(&self, qp: *mut Qp, attr: &mut QpAttr, state: u32, mask: u32) {
        attr.qp_state = state;
        // SAFETY: called as the man page says.
        let status = unsafe { (self.verbs.ibv_modify_qp)(qp, attr, (mask | m::STATE) as c_int) };
        assert_eq!(status, 0, "to {}", qp_state::name(state));
        // SAFETY: it is alive.
        assert_eq!(unsafe { (*qp).state }, state);
    }

    /// Connects two queue pairs of this process, as any program would.
    fn connect(&self, from: *mut Qp, to: *mut Qp) {
        let mut attr = QpAttr::default();
        // SAFETY: it is alive.
        let number = unsafe { (*to).qp_num };
        let modify = |attr: &mut QpAttr, state, mask| self.modify(from, attr, state, mask);
        attr.port_num = 1;
        attr.qp_access_flags = access::REMOTE_WRITE;
        modify(&mut attr, qp_state::INIT, m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS);
        attr.path_mtu = mtu::MTU_1024;
        attr.dest_qp_num = number;
        attr.ah_attr = AhAttr { dlid: self.port().lid, port_num: 1, ..AhAttr::default() };
        attr.min_rnr_timer = 12;
        attr.max_dest_rd_atomic = 1;
        let rtr = m::AV | m::PATH_MTU | m::DEST_QPN | m::RQ_PSN | m::MAX_DEST_RD_ATOMIC;
        modify(&mut attr, qp_state::RTR, rtr | m::MIN_RNR_TIMER);
        attr.timeout = 14;
        attr.retry_cnt = 7;
        attr.rnr_retry = 7;
        attr.max_rd_atomic = 1;
        let rts = m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::SQ_PSN | m::MAX_QP_RD_ATOMIC;
        modify(&mut attr, qp_state::RTS, rts);
    }

    fn port(&self) -> PortAttr {
        let mut attr = PortAttr::default();
        // SAFETY: an extended context of ours has this function.
        unsafe {
            let query = VerbsContext::op(self.context, VerbsContext::QUERY_PORT).unwrap();
            assert_eq!(query(self.context, 1, &raw mut attr, size_of::<PortAttr>()), 0);
        }
        attr
    }

    fn sge(&self, from: usize, length: u32) -> Sge {
        // SAFETY: the region is alive.
        let lkey = unsafe { (*self.mr).lkey };
        Sge { addr: self.memory.addr() as u64 + from as u64, length, lkey }
    }

    /// The next completion, by the inlined way.
    fn poll(&self, cq: *mut Cq) -> Wc {
        let begun = Instant::now();
        loop {
            let mut wc = Wc::default();
            // SAFETY: an open context has this function.
            match unsafe { (*self.context).ops.poll_cq.unwrap()(cq, 1, &raw mut wc) } {
                0 => assert!(begun.elapsed() < PATIENCE, "no completion"),
                1 => return wc,
                failed => panic!("polling answers {failed}"),
            }
        }
    }

    /// Nothing is left, so everything can be destroyed.
    fn end(self) {
        // SAFETY: throughout, each is destroyed once, and not used again.
        unsafe {
            assert_eq!((self.verbs.ibv_dealloc_pd)(self.pd), libc::EBUSY, "it has a region");
            assert_eq!((self.verbs.ibv_dereg_mr)(self.mr), 0);
            assert_eq!((self.verbs.ibv_dealloc_pd)(self.pd), 0);
            assert_eq!((self.verbs.ibv_close_device)(self.context), 0);
            drop(Box::from_raw(self.memory));
        }
    }
}

/// Promise: the inlined half of the headers finds what it looks for, and no more than there is.
#[test]
fn contexts_are_laid_out_as_headers_expect() {
    in_a_job("contexts_are_laid_out_as_headers_expect", || {
        let rig = Rig::new();
        // SAFETY: throughout, fields of an open context, and functions called as the man pages say.
        unsafe {
            assert_eq!((*rig.context).abi_compat as usize, ABI_EXTENDED);
            assert_eq!((*rig.context).cmd_fd, -1);
            assert!((*rig.context).ops.alloc_mw.is_null(), "EOPNOTSUPP, says the header");
            assert!(VerbsContext::op(rig.context, VerbsContext::ALLOC_TD).is_none());
            assert!(VerbsContext::op(rig.context, VerbsContext::CREATE_CQ_EX).is_none());

            // Each header's own length is honoured, shorter or longer than ours.
            let query = VerbsContext::op(rig.context, VerbsContext::QUERY_PORT).unwrap();
            let mut long = [0xaau8; 80];
            assert_eq!(query(rig.context, 1, long.as_mut_ptr().cast(), 72), 0);
            assert!(long[size_of::<PortAttr>()..72].iter().all(|byte| *byte == 0));
            assert!(long[72..].iter().all(|byte| *byte == 0xaa));
            let mut short = [0xaau8; 80];
            assert_eq!((rig.verbs.ibv_query_port)(rig.context, 1, short.as_mut_ptr().cast()), 0);
            let old = offset_of!(PortAttr, port_cap_flags2);
            assert_eq!(short[..old], long[..old]);
            assert!(short[old..].iter().all(|byte| *byte == 0xaa));
            let port = rig.port();
            assert!(port.lid != 0 && port.gid_tbl_len == 1);
            let beyond = query(rig.context, 9, long.as_mut_ptr().cast(), 72);
            assert_eq!(beyond, libc::EINVAL);

            let mut gid = [0u8; 16];
            assert_eq!((rig.verbs.ibv_query_gid)(rig.context, 1, 0, &raw mut gid), 0);
            assert_eq!((rig.verbs.ibv_query_gid)(rig.context, 1, 1, &raw mut gid), -1);
            let mut entries = [GidEntry::default(); 4];
            let size = size_of::<GidEntry>();
            let table = rig.verbs._ibv_query_gid_table;
            assert_eq!(table(rig.context, entries.as_mut_ptr(), 4, 0, size), 1);
            assert_eq!((entries[0].gid.0, entries[0].port_num), (gid, 1));
            let too_short = table(rig.context, entries.as_mut_ptr(), 0, 0, size);
            assert_eq!(too_short, -(libc::EINVAL as isize));
            let mut entry = GidEntry::default();
            let one = rig.verbs._ibv_query_gid_ex;
            assert_eq!(one(rig.context, 1, 0, &raw mut entry, 0, size), 0);
            assert_eq!(entry.gid.0, gid);
            assert_eq!(one(rig.context, 1, 0, &raw mut entry, 1, size), libc::EOPNOTSUPP);
            const DEFAULT_PKEY: u16 = 0xffff;
            assert_eq!((rig.verbs.ibv_get_pkey_index)(rig.context, 1, DEFAULT_PKEY), 0);
            assert_eq!((rig.verbs.ibv_get_pkey_index)(rig.context, 1, 0x1234), -1);
        }
        rig.end();
    });
}

/// Promise: a message goes through posted lists, events and completions, as C code uses them; its
/// queue is destroyed only after the program has acknowledged the event.
#[test]
fn destroying_waits_for_acknowledgements() {
    in_a_job("destroying_waits_for_acknowledgements", || {
        let rig = Rig::new();
        let verbs = &rig.verbs;
        // SAFETY: throughout, called as the man pages say, with objects that are alive.
        unsafe {
            let channel = (verbs.ibv_create_comp_channel)(rig.context);
            assert!(!channel.is_null() && (*channel).fd >= 0);
            let user: *mut c_void = without_provenance_mut(0x55);
            let cq = (verbs.ibv_create_cq)(rig.context, 16, user, channel, 0);
            assert!(!cq.is_null() && (*cq).cqe >= 16 && (*cq).cq_context == user);
            assert_eq!((verbs.ibv_destroy_comp_channel)(channel), libc::EBUSY);
            let (a, b) = (rig.create_qp(cq, null_mut()), rig.create_qp(cq, null_mut()));
            assert_eq!((verbs.ibv_destroy_cq)(cq), libc::EBUSY);
            assert_eq!((*a).qp_context, without_provenance_mut(0x77));
            rig.connect(a, b);
            rig.connect(b, a);

            // Without an event a channel that does not block says so.
            libc::fcntl((*channel).fd, libc::F_SETFL, libc::O_NONBLOCK);
            let (mut of, mut whose) = (null_mut(), null_mut());
            assert_eq!((verbs.ibv_get_cq_event)(channel, &raw mut of, &raw mut whose), -1);
            assert_eq!(errno(), libc::EAGAIN);
            libc::fcntl((*channel).fd, libc::F_SETFL, 0);

            let ops = &(*rig.context).ops;
            assert_eq!(ops.req_notify_cq.unwrap()(cq, 0), 0);
            rig.memory.cast::<[u8; 5]>().write(*b"hello");
            let mut into = rig.sge(1024, 64);
            let mut recv =
                RecvWr { wr_id: 1, next: null_mut(), sg_list: &raw mut into, num_sge: 1 };
            let mut bad = null_mut();
            assert_eq!(ops.post_recv.unwrap()(b, &raw mut recv, &raw mut bad), 0);
            let mut from = rig.sge(0, 5);
            let mut second = SendWr { wr_id: 3, opcode: 0xff, ..SendWr::empty() };
            let mut send = SendWr {
                wr_id: 2,
                next: &raw mut second,
                sg_list: &raw mut from,
                num_sge: 1,
                send_flags: send_flags::SIGNALED,
                ..SendWr::empty()
            };
            let mut refused = null_mut();
            let status = ops.post_send.unwrap()(a, &raw mut send, &raw mut refused);
            // The first of the list was posted; no opcode has this number.
            assert_eq!((status, refused), (libc::EOPNOTSUPP, &raw mut second));

            assert_eq!((verbs.ibv_get_cq_event)(channel, &raw mut of, &raw mut whose), 0);
            assert_eq!((of, whose), (cq, user));
            let mut done = [rig.poll(cq), rig.poll(cq)];
            done.sort_by_key(|wc| wc.wr_id);
            assert!(done.iter().all(|wc| wc.status == wc_status::SUCCESS), "{done:?}");
            assert_eq!((done[0].opcode, done[0].byte_len), (wc_opcode::RECV, 5));
            assert_eq!((done[0].qp_num, done[1].qp_num), ((*b).qp_num, (*a).qp_num));
            let arrived = rig.memory.cast::<u8>().add(1024).cast::<[u8; 5]>();
            assert_eq!(arrived.read_volatile(), *b"hello");

            let (mut attr, mut init): (QpAttr, QpInitAttr) = (zeroed(), zeroed());
            let all = m::STATE as c_int;
            assert_eq!((verbs.ibv_query_qp)(a, &raw mut attr, all, &raw mut init), 0);
            assert_eq!((attr.qp_state, init.send_cq, init.sq_sig_all), (qp_state::RTS, cq, 1));
            assert_eq!((verbs.ibv_query_qp_data_in_order)(a, 0, 0), 0);
            assert_eq!((verbs.ibv_destroy_qp)(a), 0);
            assert_eq!((verbs.ibv_destroy_qp)(b), 0);

            // One event is not acknowledged yet: whatever destroys the queue waits for that.
            let acknowledged = AtomicBool::new(false);
            let queue = cq.expose_provenance();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let cq = std::ptr::with_exposed_provenance_mut(queue);
                    let status = (verbs.ibv_destroy_cq)(cq);
                    (status, acknowledged.load(Ordering::SeqCst))
                });
                std::thread::sleep(Duration::from_millis(50));
                acknowledged.store(true, Ordering::SeqCst);
                (verbs.ibv_ack_cq_events)(cq, 1);
                assert_eq!(waiting.join().unwrap(), (0, true));
            });
            assert_eq!((verbs.ibv_destroy_comp_channel)(channel), 0);
        }
        rig.end();
    });
}

/// Promise: an object of ours never reaches the real library, and what is not served says so;
/// what others still use is not destroyed.
#[test]
fn what_is_not_there_is_refused_with_our_objects() {
    in_a_job("what_is_not_there_is_refused_with_our_objects", || {
        let rig = Rig::new();
        let verbs = &rig.verbs;
        // SAFETY: throughout, called as the man pages say, with objects that are alive.
        unsafe {
            let cq = (verbs.ibv_create_cq)(rig.context, 16, null_mut(), null_mut(), 0);
            let attr = SrqAttr { max_wr: 8, max_sge: 1, srq_limit: 0 };
            let mut init = SrqInitAttr { srq_context: null_mut(), attr };
            let srq = (verbs.ibv_create_srq)(rig.pd, &raw mut init);
            assert!(!srq.is_null() && init.attr.max_wr >= 8);
            let mut found = SrqAttr::default();
            assert_eq!((verbs.ibv_query_srq)(srq, &raw mut found), 0);
            assert_eq!(found, init.attr);
            let qp = rig.create_qp(cq, srq);
            assert_eq!((verbs.ibv_destroy_srq)(srq), libc::EBUSY);

            let gid = [0u8; 16];
            let mut speed = 0;
            for status in [
                (verbs.ibv_attach_mcast)(qp, &raw const gid, 0),
                (verbs.ibv_query_ece)(qp, null_mut()),
                (verbs.ibv_query_port_speed)(rig.context, 1, &raw mut speed),
            ] {
                assert_eq!(status, libc::EOPNOTSUPP);
            }
            let refused = |what: &str, failed: bool| {
                assert!(failed && errno() == libc::EOPNOTSUPP, "{what}: errno {}", errno());
                *libc::__errno_location() = 0;
            };
            *libc::__errno_location() = 0;
            let rereg = (verbs.ibv_rereg_mr)(rig.mr, 0, rig.pd, null_mut(), 0, 0);
            refused("rereg", rereg == -1);
            refused("extended", (verbs.ibv_qp_to_qp_ex)(qp).is_null());
            refused("import", (verbs.ibv_import_pd)(rig.context, 0).is_null());
            refused("dmabuf", (verbs.ibv_reg_dmabuf_mr)(rig.pd, 0, 1, 0, 0, 0).is_null());
            let memory: *mut c_void = rig.memory.cast();
            let moved = (verbs.ibv_reg_mr_iova2)(rig.pd, memory, 64, 0x1000, 1);
            refused("iova", moved.is_null());

            // Remote write without local write, as verbs forbid.
            let wrong = access::REMOTE_WRITE as c_int;
            assert!((verbs.ibv_reg_mr)(rig.pd, memory, 64, wrong).is_null());
            assert_eq!(errno(), libc::EINVAL);
            assert!((verbs.ibv_create_cq)(rig.context, -1, null_mut(), null_mut(), 0).is_null());
            assert_eq!(errno(), libc::EINVAL);

            assert_eq!((verbs.ibv_destroy_qp)(qp), 0);
            assert_eq!((verbs.ibv_destroy_srq)(srq), 0);
            assert_eq!((verbs.ibv_destroy_cq)(cq), 0);
        }
        rig.end();
    });
}

/// Promise: an asynchronous event names the program's own object, and that is not destroyed before
/// the event is acknowledged.
#[test]
fn asynchronous_events_name_the_programs_objects() {
    in_a_job("asynchronous_events_name_the_programs_objects", || {
        let rig = Rig::new();
        let verbs = &rig.verbs;
        // SAFETY: throughout, called as the man pages say, with objects that are alive.
        unsafe {
            let cq = (verbs.ibv_create_cq)(rig.context, 16, null_mut(), null_mut(), 0);
            let (a, b) = (rig.create_qp(cq, null_mut()), rig.create_qp(cq, null_mut()));
            rig.connect(a, b);
            rig.connect(b, a);
            let mut event: AsyncEvent = zeroed();
            libc::fcntl((*rig.context).async_fd, libc::F_SETFL, libc::O_NONBLOCK);
            assert_eq!((verbs.ibv_get_async_event)(rig.context, &raw mut event), -1);
            assert_eq!(errno(), libc::EAGAIN);
            libc::fcntl((*rig.context).async_fd, libc::F_SETFL, 0);

            // A key that nobody has: the peer's queue pair says so.
            let mut from = rig.sge(0, 8);
            let remote_addr = from.addr;
            let mut write = SendWr {
                sg_list: &raw mut from,
                num_sge: 1,
                opcode: wr_opcode::RDMA_WRITE,
                ..SendWr::empty()
            };
            write.wr.rdma = RdmaWr { remote_addr, rkey: (*rig.mr).rkey ^ 0xff };
            let mut bad = null_mut();
            let ops = &(*rig.context).ops;
            assert_eq!(ops.post_send.unwrap()(a, &raw mut write, &raw mut bad), 0);
            assert_eq!(rig.poll(cq).status, wc_status::REM_ACCESS_ERR);
            assert_eq!((verbs.ibv_get_async_event)(rig.context, &raw mut event), 0);
            assert_eq!((event.event_type, event.element.qp), (event_type::QP_ACCESS_ERR, b));

            let acknowledged = AtomicBool::new(false);
            let pair = b.expose_provenance();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let qp = std::ptr::with_exposed_provenance_mut(pair);
                    let status = (verbs.ibv_destroy_qp)(qp);
                    (status, acknowledged.load(Ordering::SeqCst))
                });
                std::thread::sleep(Duration::from_millis(50));
                acknowledged.store(true, Ordering::SeqCst);
                (verbs.ibv_ack_async_event)(&raw mut event);
                assert_eq!(waiting.join().unwrap(), (0, true));
            });
            assert_eq!((verbs.ibv_destroy_qp)(a), 0);
            assert_eq!((verbs.ibv_destroy_cq)(cq), 0);
        }
        rig.end();
    });
}

/// Promise: a datagram can be answered from its completion alone.
#[test]
fn a_datagram_is_answered_from_its_completion() {
    in_a_job("a_datagram_is_answered_from_its_completion", || {
        const QKEY: u32 = 0x1111;
        let rig = Rig::new();
        let verbs = &rig.verbs;
        // SAFETY: throughout, called as the man pages say, with objects that are alive.
        unsafe {
            let cq = (verbs.ibv_create_cq)(rig.context, 16, null_mut(), null_mut(), 0);
            let [a, b] = [(); 2].map(|()| rig.create_qp_of(qp_type::UD, cq, null_mut()));
            let ops = &(*rig.context).ops;
            for (qp, at) in [(a, 1024), (b, 2048)] {
                let mut attr = QpAttr { port_num: 1, qkey: QKEY, ..QpAttr::default() };
                rig.modify(qp, &mut attr, qp_state::INIT, m::PKEY_INDEX | m::PORT | m::QKEY);
                rig.modify(qp, &mut attr, qp_state::RTR, 0);
                rig.modify(qp, &mut attr, qp_state::RTS, m::SQ_PSN);
                let mut into = rig.sge(at, 512);
                let mut recv =
                    RecvWr { wr_id: 7, next: null_mut(), sg_list: &raw mut into, num_sge: 1 };
                assert_eq!(ops.post_recv.unwrap()(qp, &raw mut recv, &mut null_mut()), 0);
            }
            let received = |from: *mut Qp, ah: *mut Ah, to: u32| {
                let mut sge = rig.sge(0, 16);
                let mut send =
                    SendWr { sg_list: &raw mut sge, num_sge: 1, wr_id: 8, ..SendWr::empty() };
                send.wr.ud = UdWr { ah: ah.cast(), remote_qpn: to, remote_qkey: QKEY };
                assert_eq!(ops.post_send.unwrap()(from, &raw mut send, &mut null_mut()), 0);
                let mut both = [rig.poll(cq), rig.poll(cq)];
                both.sort_by_key(|wc| wc.wr_id);
                assert!(both.iter().all(|wc| wc.status == wc_status::SUCCESS), "{both:?}");
                both[0]
            };
            // With a GRH, as between subnets.
            let mut attr = AhAttr { is_global: 1, port_num: 1, ..AhAttr::default() };
            assert_eq!((verbs.ibv_query_gid)(rig.context, 1, 0, &raw mut attr.grh.dgid.0), 0);
            let ah = (verbs.ibv_create_ah)(rig.pd, &raw mut attr);
            assert!(!ah.is_null());
            let mut wc = received(a, ah, (*b).qp_num);
            assert_eq!((wc.qp_num, wc.src_qp), ((*b).qp_num, (*a).qp_num));
            assert!(wc.wc_flags & wc_flags::GRH != 0);
            let header: *mut Grh = rig.memory.cast::<u8>().add(2048).cast();
            let back = (verbs.ibv_create_ah_from_wc)(rig.pd, &raw mut wc, header, 1);
            assert!(!back.is_null(), "errno {}", errno());
            let answer = received(b, back, wc.src_qp);
            assert_eq!((answer.qp_num, answer.src_qp), ((*a).qp_num, (*b).qp_num));

            assert_eq!((verbs.ibv_destroy_ah)(ah), 0);
            assert_eq!((verbs.ibv_destroy_ah)(back), 0);
            assert_eq!((verbs.ibv_destroy_qp)(a), 0);
            assert_eq!((verbs.ibv_destroy_qp)(b), 0);
            assert_eq!((verbs.ibv_destroy_cq)(cq), 0);
        }
        rig.end();
    });
}
