//! Memory regions.
//!
//! Registering writes an entry into the public region, by which initiators check their access.
//! Deregistering takes the key out of it and then fences: no copy of a peer that is in flight
//! (`inflight`), nor any of ours (a READ that lands here, a receive that is being filled from a
//! ring), touches the memory once it has returned.

use super::core::Core;
use super::inflight::Liveness;
use super::link::Link;
use super::pd::Pd;
use super::region::MrEntry;
use crate::abi::access;
use crate::device::DeviceMr;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Access flags that a soft device knows. `RELAXED_ORDERING` and whatever else stands in the
/// optional range (bits 20 to 29) is a hint that may be ignored; so is `HUGETLB`.
const KNOWN: u32 = access::LOCAL_WRITE
    | access::REMOTE_WRITE
    | access::REMOTE_READ
    | access::REMOTE_ATOMIC
    | access::HUGETLB
    | 0x3ff0_0000;

/// A registered region. Dropping it deregisters.
pub(super) struct Mr {
    pd: Arc<Pd>,
    key: u32,
    addr: u64,
    len: u64,
    /// The key while it has not been given back.
    held: AtomicU32,
}

impl Mr {
    pub(super) fn register(pd: Arc<Pd>, addr: u64, len: u64, flags: u32) -> Result<Mr> {
        if flags & !KNOWN != 0 {
            return Err(Error::unsupported(format!(
                "access flags {:#x}: a soft device has no memory windows, zero-based or \
                 on-demand regions",
                flags & !KNOWN
            )));
        }
        let writes = access::REMOTE_WRITE | access::REMOTE_ATOMIC;
        if flags & writes != 0 && flags & access::LOCAL_WRITE == 0 {
            return Err(Error::invalid(
                "a region with REMOTE_WRITE or REMOTE_ATOMIC needs LOCAL_WRITE too",
            ));
        }
        if len == 0 || addr.checked_add(len).is_none() {
            return Err(Error::invalid(format!("a region of {len} bytes at {addr:#x}")));
        }
        mapped(addr, len)?;
        let core = &pd.context.core;
        let key = core.numbers.lock().key()?;
        let entry = entry(core, key)?;
        entry.addr.store(addr, Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry.access.store(flags, Ordering::Relaxed);
        entry.pd.store(pd.id, Ordering::Relaxed);
        entry.vouched.store(0, Ordering::Relaxed);
        entry.key.store(key, Ordering::Release);
        Ok(Mr { pd, key, addr, len, held: AtomicU32::new(key) })
    }
}

fn entry(core: &Core, key: u32) -> Result<&MrEntry> {
    core.region.mr((key >> 8) as usize).ok_or_else(|| Error::invalid(format!("key {key:#x}")))
}

/// Whether all pages of the range are mapped.
fn mapped(addr: u64, len: u64) -> Result<()> {
    // SAFETY: plain call.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    let end = addr + len;
    let mut at = addr & !(page - 1);
    let mut resident = [0u8; 4096];
    while at < end {
        let pages = (end - at).div_ceil(page).min(resident.len() as u64);
        // SAFETY: the vector has a byte for each page asked about; the range itself is only
        // looked up.
        let answer =
            unsafe { libc::mincore(at as *mut _, (pages * page) as usize, resident.as_mut_ptr()) };
        if answer != 0 {
            return Err(Error::new(
                libc::EFAULT,
                format!("{len} bytes at {addr:#x} cannot be registered: not all of it is mapped"),
            ));
        }
        at += pages * page;
    }
    Ok(())
}

impl DeviceMr for Mr {
    fn lkey(&self) -> u32 {
        self.key
    }

    fn rkey(&self) -> u32 {
        self.key
    }

    fn dereg(&self) -> Result<()> {
        let core = &self.pd.context.core;
        if self.held.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let entry = entry(core, self.key)?;
        entry.key.store(0, Ordering::SeqCst);
        if entry.vouched.load(Ordering::SeqCst) != 0 {
            let qps: Vec<_> = core.qps.read().iter().flatten().cloned().collect();
            qps.iter().for_each(|qp| qp.disavow(self.key));
        }
        core.fence_memory(self.addr, self.len)?;
        if self.held.swap(0, Ordering::AcqRel) != 0 {
            core.numbers.lock().free_key(self.key);
        }
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if let Err(error) = self.dereg() {
            // The key stays taken; the memory may be written until that process goes on.
            tracing::error!(%error, "a memory region could not be fenced");
        }
    }
}

impl Core {
    /// Returns once nothing that was in flight can still touch `addr .. addr + len`. The region
    /// that allowed it is no longer valid.
    fn fence_memory(&self, addr: u64, len: u64) -> Result<()> {
        let links: Vec<Link> =
            self.links.read().iter().flatten().map(|(link, _)| link.clone()).collect();
        let doing = "deregistering memory";
        let own = Own;
        for link in &links {
            match link {
                Link::In(link) => {
                    // What peers copy into and out of our memory.
                    link.push.fence(|slot| slot.overlaps(addr, len), &*link.peer, doing)?;
                    // Our copies out of theirs, which may land here.
                    link.pull.drain(&own, doing)?;
                    // Receives that are being filled from the ring.
                    drop(link.rx.lock());
                }
                Link::Out(link) => {
                    // What peers pull out of our memory.
                    link.pull.fence(|slot| slot.overlaps(addr, len), &*link.peer, doing)?;
                    // Our copies between our memory and theirs.
                    link.push.drain(&own, doing)?;
                    // Requests that are being gathered into a ring, answers that are scattered.
                    drop(link.tx.lock());
                    drop(link.rx.lock());
                }
            }
        }
        if let Some(tcp) = &self.tcp {
            tcp.fence();
        }
        Ok(())
    }
}

/// This process, as the other side of its own copies.
struct Own;

impl Liveness for Own {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn gone(&self) -> bool {
        false
    }
}
