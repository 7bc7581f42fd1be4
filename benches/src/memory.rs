//! What queue pairs take of the heap. (What the soft device shares with its peers is not in the heap,
//! and is sparse: an idle queue pair has touched one entry of it.)

use sojourn_fabric::Result;
use sojourn_fabric::abi::QpCap;
use sojourn_fabric::virt::{Context, Process, QpOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count.
pub struct Counting;

// SAFETY: all is the system allocator's, with the caller's own promises; counting touches no memory
// of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Queue pairs that are counted together: enough that growing tables count little, few enough that
/// the largest fit.
const MANY: usize = 1024;

/// The sizes of a queue pair.
#[must_use]
pub fn sizes(sends: u32, recvs: u32, elements: u32, inline: u32) -> QpCap {
    QpCap {
        max_send_wr: sends,
        max_recv_wr: recvs,
        max_send_sge: elements,
        max_recv_sge: elements,
        max_inline_data: inline,
    }
}

/// Bytes of heap that one idle queue pair takes over `soft0`, and one of virtual verbs over that.
///
/// # Errors
/// Where they cannot be created.
pub fn of_queue_pair(cap: QpCap) -> Result<(f64, f64)> {
    let process = Process::standalone()?;
    let virt = of_many(&process.open("soft0")?, cap)?;
    Ok((of_many(&Context::open_raw("soft0")?, cap)?, virt))
}

fn of_many(context: &Context, cap: QpCap) -> Result<f64> {
    let pd = context.alloc_pd()?;
    // Large enough from the start: it is not the queue pairs' own.
    let cq = context.create_cq((cap.max_send_wr + cap.max_recv_wr + 2) * MANY as u32)?;
    let options = QpOptions { cap, ..QpOptions::rc(&cq) };
    let mut qps = Vec::with_capacity(MANY);
    let before = LIVE.load(Ordering::Relaxed);
    for _ in 0..MANY {
        qps.push(pd.create_qp(&options)?);
    }
    Ok((LIVE.load(Ordering::Relaxed) - before) as f64 / MANY as f64)
}
