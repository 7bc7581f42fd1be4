//! Where the kernel forbids `process_vm_readv` and `process_vm_writev`, here by a seccomp filter, the
//! soft device carries everything through shared memory, and says so once.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{SrqAttr, wc_opcode, wr_opcode};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that travel in the ring at once, and far more than that.
const LENGTHS: [u32; 3] = [0, 64, 100_000];

static WARNINGS: AtomicUsize = AtomicUsize::new(0);

/// Counts what is said at WARN, by all threads.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        WARNINGS.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// From now on the kernel answers EPERM, as it does under Yama, to this thread and those that it
/// starts.
fn forbid_copies() {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, k: u32| libc::sock_filter { code, jt, jf: 0, k };
    let mut filter = [
        step(LOAD_NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, 2, libc::SYS_process_vm_readv as u32),
        step(JUMP_IF_EQUAL, 1, libc::SYS_process_vm_writev as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: a program that lives through the call, which copies it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
    let mut word = 0u64;
    let own = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    // SAFETY: from a local word to itself, if anything.
    let read = unsafe { libc::process_vm_readv(std::process::id() as i32, &own, 1, &own, 1, 0) };
    assert_eq!(read, -1, "the filter is in force");
}

fn shared() -> Setup {
    Setup { srq: Some(SrqAttr { max_wr: 16, max_sge: 2, srq_limit: 0 }), ..Setup::default() }
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// Sends every length to an end, and checks what has come.
fn messages(from: &End, to: &End, post: impl Fn(u32)) {
    for len in LENGTHS {
        post(len);
        from.memory.put(0, &pattern(len));
        from.send(1, 0, len);
        assert_eq!((from.success().wr_id, to.success().byte_len), (1, len));
        assert_eq!(to.memory.get(1 << 20, len as usize), pattern(len));
    }
}

/// Plays the other process's part.
#[test]
fn helper() {
    if role().as_deref() != Some("forbidden") {
        return;
    }
    tracing::subscriber::set_global_default(Warnings).unwrap();
    forbid_copies();
    let (a, b) = pair(&Setup::default());
    messages(&a, &b, |len| b.recv(2, 1 << 20, len).unwrap());
    for len in LENGTHS {
        a.memory.put(0, &pattern(len));
        a.write(3, 0, len, &b.address(), 2 << 20);
        assert_eq!(a.success().opcode, wc_opcode::RDMA_WRITE);
        assert_eq!(b.memory.get(2 << 20, len as usize), pattern(len));
        a.read(4, 3 << 20, len, &b.address(), 2 << 20);
        assert_eq!(a.success().opcode, wc_opcode::RDMA_READ);
        assert_eq!(a.memory.get(3 << 20, len as usize), pattern(len));
    }
    b.memory.put(0, &41u64.to_ne_bytes());
    let mut add = rdma(wr_opcode::ATOMIC_FETCH_AND_ADD, 5, &b.address(), 0);
    add.wr.atomic = sojourn_fabric::abi::AtomicWr {
        remote_addr: b.memory.addr(),
        compare_add: 1,
        swap: 0,
        rkey: b.mr.rkey(),
    };
    a.post(add, 8, 8).unwrap();
    assert_eq!(a.success().opcode, wc_opcode::FETCH_ADD);
    assert_eq!(b.memory.get(0, 8), 42u64.to_ne_bytes());

    let (c, d) = pair(&shared());
    let srq = d.srq.as_ref().unwrap();
    messages(&c, &d, |len| post_srq(&**srq, 2, &mut [d.sge(1 << 20, len)]).unwrap());

    // A peer that may copy, which cannot know that this process may not.
    let end = End::new(&shared());
    let srq = end.srq.as_ref().unwrap();
    meet(&end);
    for len in LENGTHS {
        post_srq(&**srq, 2, &mut [end.sge(1 << 20, len)]).unwrap();
        say("go");
        assert_eq!(end.success().byte_len, len);
        assert_eq!(end.memory.get(1 << 20, len as usize), pattern(len));
    }
    say(&format!("{} warnings", WARNINGS.load(Ordering::Relaxed)));
    listen();
}

/// Every kind of request of every size class arrives without a copy between processes: within a
/// process that may not copy, and from one that may to one that may not, whose shared queue would
/// have to fetch what is large. It is said once, however many peers there are.
#[test]
fn everything_arrives_where_copies_are_forbidden() {
    let mut other = Other::start("forbidden", &[]);
    let end = End::new(&shared());
    other.connect(&end);
    for len in LENGTHS {
        assert_eq!(other.hear(), "go");
        end.memory.put(0, &pattern(len));
        end.send(1, 0, len);
        assert_eq!(end.success().wr_id, 1);
    }
    assert_eq!(other.hear(), "1 warnings");
}
