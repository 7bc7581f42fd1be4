//! The `SIGSEGV` handler of [`super::protect`], and what it shares with the tracker.
//!
//! A page is *clean* where it is protected, and dirty where it can be written: the kernel's own list of
//! mappings is the only record. The handler makes the page of a refused store writable, and no more. A
//! collect reads that list, protects what can be written, and tells it. So nothing is lost:
//!
//! - What was written before the list was read could be written then, and is told.
//! - A page that becomes writable after the list was read is not protected by this collect, which
//!   protects just what it tells; the next one finds it.
//! - A store to a page that is told, before it is protected, is in the page when its teller returns;
//!   one after that is refused, and makes the page dirty again.
//!
//! # Whose fault it is
//!
//! Ours is a store that is refused for want of permission (`SEGV_ACCERR`), to a page of a region.
//! Everything else goes to the handler that was there before, under the mask and the flags that it was
//! installed with; without one, the process dies of the signal, as it would have. A thread may also be
//! late: its page was protected at its store, and is not tracked any more. The kernel is asked whether
//! such a page can be written now, and if so the store is made again.

use crate::{Error, PAGE, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Ranges that are remembered after their tracking ended, for threads that are late.
const MAX_RETIRED: usize = 64;
/// `madvise`: the page is made writable, or the call fails. Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;
/// Bit of the x86 page fault code: it was a store.
#[cfg(target_arch = "x86_64")]
const FAULT_WRITE: i64 = 1 << 1;

/// Memory of one mapping that is protected page by page.
#[derive(Clone)]
pub(super) struct Region {
    pub(super) range: Range<usize>,
    /// What it allows when it is not protected.
    allows: i32,
    /// The unit of protection: more than a page for explicit huge ones.
    page: usize,
}

impl Region {
    pub(super) fn new(range: Range<usize>, execute: bool, page: usize) -> Region {
        let allows = libc::PROT_READ | libc::PROT_WRITE | if execute { libc::PROT_EXEC } else { 0 };
        Region { range, allows, page }
    }

    /// Protects a part of it. False where the kernel refuses: something else is mapped there.
    pub(super) fn protect(&self, part: &Range<usize>) -> bool {
        set_protection(part, self.allows & !libc::PROT_WRITE)
    }

    /// Undoes that.
    pub(super) fn release(&self, part: &Range<usize>) -> bool {
        set_protection(part, self.allows)
    }

    /// The part of it that is left without `gone`.
    pub(super) fn without(&self, gone: &[Range<usize>]) -> Vec<Region> {
        let left = super::ranges::subtract(std::slice::from_ref(&self.range), gone);
        left.into_iter().map(|range| Region { range, ..self.clone() }).collect()
    }
}

fn set_protection(part: &Range<usize>, protection: i32) -> bool {
    // SAFETY: the memory is mapped with these permissions by the program, which has named it to be
    // tracked; taking away and giving back the right to write breaks no reference into it, since
    // every store ends in the handler.
    unsafe { libc::mprotect(part.start as *mut _, part.len(), protection) == 0 }
}

/// What the handler looks at. Never changed: replaced.
struct Table {
    regions: Vec<Region>,
    retired: Vec<Range<usize>>,
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());
/// Handlers that look at a table.
static READERS: AtomicUsize = AtomicUsize::new(0);
/// The action that was there before ours. Never freed: a handler may look at it.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// What only trackers touch.
struct Shared {
    installed: bool,
    regions: Vec<Region>,
    retired: Vec<Range<usize>>,
    /// Tables that a handler may still look at.
    #[expect(clippy::vec_box, reason = "handlers hold their addresses")]
    old: Vec<Box<Table>>,
}

static SHARED: Mutex<Shared> =
    Mutex::new(Shared { installed: false, regions: vec![], retired: vec![], old: vec![] });

fn with_shared<T>(change: impl FnOnce(&mut Shared) -> T) -> T {
    change(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Shows the handler the regions as they are now.
fn publish(shared: &mut Shared) {
    let retired = shared.retired.len().saturating_sub(MAX_RETIRED);
    shared.retired.drain(..retired);
    shared.regions.sort_unstable_by_key(|region| region.range.start);
    let table =
        Box::new(Table { regions: shared.regions.clone(), retired: shared.retired.clone() });
    let old = TABLE.swap(Box::into_raw(table), Ordering::SeqCst);
    if !old.is_null() {
        // SAFETY: it came out of a box, and is in no other list.
        shared.old.push(unsafe { Box::from_raw(old) });
    }
    // Whoever begins to read after the swap reads the new one.
    if READERS.load(Ordering::SeqCst) == 0 {
        shared.old.clear();
    }
}

/// Adds regions. They are not protected yet.
pub(super) fn add(regions: &[Region]) {
    with_shared(|shared| {
        shared.regions.extend_from_slice(regions);
        publish(shared);
    });
}

/// Puts other regions (parts of the old ones) in the place of `old`. What is no part of these has been
/// released.
pub(super) fn replace(old: &[Region], by: &[Region]) {
    with_shared(|shared| {
        shared.regions.retain(|it| !old.iter().any(|old| old.range == it.range));
        shared.regions.extend_from_slice(by);
        shared.retired.extend(old.iter().map(|it| it.range.clone()));
        publish(shared);
    });
}

/// Whether a range has a page that some tracker protects.
pub(super) fn covers(range: &Range<usize>) -> bool {
    with_shared(|shared| {
        shared.regions.iter().any(|it| it.range.start < range.end && range.start < it.range.end)
    })
}

/// Whether the handler must be able to write to this range, whatever is protected.
pub(super) fn needs(range: &Range<usize>) -> bool {
    let start = &raw const READERS as usize;
    start < range.end && range.start < start + size_of_val(&READERS)
}

/// Installs the handler, once for the life of this process: a late fault must find it.
///
/// # Errors
/// `EBUSY` where the program has installed its own over it since.
pub(super) fn install() -> Result<()> {
    with_shared(|shared| {
        if shared.installed {
            return if in_place() {
                Ok(())
            } else {
                Err(Error::new(
                    libc::EBUSY,
                    "the program has installed a handler of SIGSEGV over that of dirty tracking: it \
                     is to install its own first",
                ))
            };
        }
        // SAFETY: an all-zero sigaction is a valid one, and is filled in.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = handler_address();
        // On the alternate stack where the thread has one, as its own handler would have needed.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // Another signal's handler must not store to tracked memory while this one is blocked.
        // SAFETY: the set is ours.
        unsafe { libc::sigfillset(&mut ours.sa_mask) };
        let before = Box::into_raw(Box::new(current()?));
        PREVIOUS.store(before, Ordering::SeqCst);
        // SAFETY: the handler is safe to run at any point of any thread.
        if unsafe { libc::sigaction(libc::SIGSEGV, &ours, std::ptr::null_mut()) } != 0 {
            return Err(Error::last_os("installing a handler of SIGSEGV"));
        }
        shared.installed = true;
        Ok(())
    })
}

/// Whether the kernel calls our handler.
pub(super) fn in_place() -> bool {
    current().is_ok_and(|it| it.sa_sigaction == handler_address())
}

fn handler_address() -> usize {
    handler as *const () as usize
}

fn current() -> Result<libc::sigaction> {
    // SAFETY: an all-zero sigaction is a valid one.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: it is written to, and nothing is changed.
    if unsafe { libc::sigaction(libc::SIGSEGV, std::ptr::null(), &mut now) } != 0 {
        return Err(Error::last_os("asking for the handler of SIGSEGV"));
    }
    Ok(now)
}

/// Makes a clean page writable, or hands the signal on.
extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the C library's own, for this thread.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel hands a valid one to a handler with SA_SIGINFO.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SEGV_ACCERR, which libc does not name.
    let ours = code == 2 && was_store(context) && resolve(addr);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !ours {
        hand_on(signal, info, context, code);
    }
}

/// Whether the fault was a store, as far as this machine tells.
fn was_store(context: *mut libc::c_void) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the kernel hands a ucontext to a handler with SA_SIGINFO.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        context.uc_mcontext.gregs[libc::REG_ERR as usize] & FAULT_WRITE != 0
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = context;
        true
    }
}

/// Whether the store can be made again.
fn resolve(addr: usize) -> bool {
    READERS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: a table lives as long as somebody reads.
    let table = unsafe { TABLE.load(Ordering::SeqCst).as_ref() };
    let resolved = table.is_some_and(|table| {
        let at = table.regions.partition_point(|region| region.range.end <= addr);
        match table.regions.get(at).filter(|region| region.range.contains(&addr)) {
            Some(region) => open_page(region, addr),
            None => table.retired.iter().any(|it| it.contains(&addr)) && is_writable(addr),
        }
    });
    READERS.fetch_sub(1, Ordering::SeqCst);
    resolved
}

fn open_page(region: &Region, addr: usize) -> bool {
    let start = addr - (addr - region.range.start) % region.page;
    let page = start..start + region.page;
    // A process may have so many mappings and no more, and each page makes two of one. The whole
    // region is one.
    region.release(&page) || region.release(&region.range)
}

fn is_writable(addr: usize) -> bool {
    let page = addr / PAGE * PAGE;
    // SAFETY: changes no byte.
    unsafe { libc::madvise(page as *mut _, PAGE, MADV_POPULATE_WRITE) == 0 }
}

/// Does what would have been done without us.
fn hand_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void, code: i32) {
    // SAFETY: set before the handler was installed, and never freed.
    let previous = unsafe { &*PREVIOUS.load(Ordering::SeqCst) };
    let handler = previous.sa_sigaction;
    // Somebody has sent it: nothing will fault again.
    let sent = code <= 0;
    if handler == libc::SIG_IGN && sent {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: from here on the process is dying: the store is made again, or the signal sent
        // again, and there is no handler.
        unsafe {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &default, std::ptr::null_mut());
            if sent {
                libc::raise(signal);
            }
        }
        return;
    }
    // SAFETY: calls what the program has installed, as the kernel would have: under the mask that
    // the thread had, and what its handler blocks. The kernel restores the thread's own afterwards.
    unsafe {
        let mut mask = (*context.cast::<libc::ucontext_t>()).uc_sigmask;
        for other in 1..=libc::SIGRTMAX() {
            if libc::sigismember(&previous.sa_mask, other) == 1 {
                libc::sigaddset(&mut mask, other);
            }
        }
        if previous.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut mask, signal);
        }
        if previous.sa_flags & libc::SA_RESETHAND != 0 {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(i32) = std::mem::transmute(handler);
            call(signal);
        }
    }
}
