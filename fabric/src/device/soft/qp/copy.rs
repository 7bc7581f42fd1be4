//! One copy between processes, by one system call, under a revocable slot (`inflight`).

use super::super::inflight::Claimed;
use super::super::inflight::Slots;
use super::super::peer::Peer;
use super::recv::Pieces;
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU32;

/// Which way the data goes, seen from this process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Into the other process.
    Out,
    /// Out of the other process.
    In,
}

/// Why nothing, or not all, was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// What the check asks for no longer holds.
    Invalid,
    /// Local memory is not there.
    Local,
    /// Remote memory is not there.
    Remote,
    /// The other process is gone.
    Dead,
    /// The kernel does not allow copies between these processes.
    Forbidden,
}

/// Copies `local` to or from `remote`, both of the same length, if `valid` holds once the slot
/// is published. On success the slot is still held: the caller drops it when whatever belongs to
/// the copy is published too.
#[inline]
#[expect(clippy::too_many_arguments, reason = "all of them vary by caller")]
pub(super) fn copy<'a>(
    peer: &Peer,
    slots: &'a Slots,
    busy: &'a AtomicU32,
    way: Way,
    qpn: u32,
    local: &Pieces,
    remote: impl Iterator<Item = (u64, u64)> + Clone,
    valid: impl Fn() -> bool,
) -> Result<Claimed<'a>, Trouble> {
    let mut slot = slots.claim(busy);
    let mut vec = [const { MaybeUninit::<libc::iovec>::uninit() }; super::super::limits::MAX_SGE];
    let mut total = 0u64;
    for ((addr, len), place) in local.iter().zip(&mut vec) {
        place.write(libc::iovec { iov_base: addr as *mut _, iov_len: len as usize });
        total += len;
    }
    loop {
        slot.fill(qpn, remote.clone());
        slot.activate();
        if !valid() {
            return Err(Trouble::Invalid);
        }
        // The life word last: the closer to the call, the better.
        if !peer.alive() {
            return Err(Trouble::Dead);
        }
        if total == 0 {
            return Ok(slot);
        }
        stop_point("before-copy");
        let (iov, count) = slot.iov();
        let (mine, n) = (vec.as_ptr().cast::<libc::iovec>(), local.len() as libc::c_ulong);
        let pid = peer.pid() as libc::pid_t;
        // SAFETY: the kernel checks every address of either process, and both arrays are valid:
        // ours has `n` written elements, the slot's lives as long as the claim. That the memory
        // may be written is what `valid` and the keys said.
        let moved = unsafe {
            match way {
                Way::Out => libc::process_vm_writev(pid, mine, n, iov, count as libc::c_ulong, 0),
                Way::In => libc::process_vm_readv(pid, mine, n, iov, count as libc::c_ulong, 0),
            }
        };
        if moved >= 0 && moved as u64 == total {
            return Ok(slot);
        }
        let errno = if moved < 0 {
            std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
        } else {
            libc::EFAULT
        };
        if slot.revoked() {
            // Whoever did so says by his words whether he means us: look again.
            slot.again();
            std::thread::yield_now();
            continue;
        }
        return Err(match errno {
            libc::ESRCH => Trouble::Dead,
            libc::EPERM | libc::ENOSYS | libc::EACCES => Trouble::Forbidden,
            _ if !readable(local) => Trouble::Local,
            _ => Trouble::Remote,
        });
    }
}

/// Whether all pieces of this process's memory are there.
fn readable(local: &Pieces) -> bool {
    let mut scratch = [0u8; 4096];
    for (addr, len) in local.iter() {
        let mut at = addr;
        while at < addr + len {
            let now = (addr + len - at).min(4096 - at % 4096);
            let to = libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: now as usize };
            let from = libc::iovec { iov_base: at as *mut _, iov_len: now as usize };
            // SAFETY: reads our own memory through the kernel, which answers EFAULT where there
            // is none; the scratch page holds what is asked for.
            let moved = unsafe {
                libc::process_vm_readv(std::process::id() as libc::pid_t, &to, 1, &from, 1, 0)
            };
            if moved != now as isize {
                return false;
            }
            at += now;
        }
    }
    true
}

/// Where tests stop a process between its checks and what they guard:
/// `SOJOURN_SOFT_TEST_STOP=before-copy`, `before-publish` or `before-verdict`. Not in release builds.
#[inline]
pub(super) fn stop_point(name: &str) {
    #[cfg(debug_assertions)]
    {
        use std::sync::OnceLock;
        static STOP: OnceLock<Option<String>> = OnceLock::new();
        let stop = STOP.get_or_init(|| std::env::var("SOJOURN_SOFT_TEST_STOP").ok());
        if stop.as_deref() == Some(name) {
            // SAFETY: stops this process; whoever tests continues it.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
