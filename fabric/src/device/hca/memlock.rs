//! Why memory could not be pinned: the locked-memory limit, what counts against it, the need.
//!
//! The kernel counts pages pinned for devices (`VmPin` of `/proc/self/status`) against
//! `RLIMIT_MEMLOCK`, unless the process has `CAP_IPC_LOCK`.

use std::fs;

/// `CAP_IPC_LOCK` of `capabilities(7)`.
const CAP_IPC_LOCK: u32 = 14;

/// What this process may pin.
#[derive(Clone, Copy)]
struct Account {
    limit: u64,
    pinned: u64,
    unlimited: bool,
}

/// A sentence on the limit where it is what forbids pinning `length` bytes at `addr`.
pub(super) fn explain(addr: usize, length: usize) -> Option<String> {
    sentence(Account::of_this_process()?, whole_pages(addr, length, page_size()))
}

fn sentence(account: Account, need: u64) -> Option<String> {
    let Account { limit, pinned, unlimited } = account;
    if unlimited || pinned.saturating_add(need) <= limit {
        return None;
    }
    Some(format!(
        "RLIMIT_MEMLOCK is {limit} bytes, of which {pinned} are pinned already, and this needs \
         {need} more; raise the limit (ulimit -l, memlock in /etc/security/limits.conf, or \
         LimitMEMLOCK= of the service)"
    ))
}

impl Account {
    fn of_this_process() -> Option<Self> {
        use nix::sys::resource::{Resource, getrlimit};
        let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let pinned = field(&status, "VmPin:")?.parse::<u64>().ok()?.saturating_mul(1024);
        let capabilities = u64::from_str_radix(field(&status, "CapEff:")?, 16).ok()?;
        let unlimited = limit == libc::RLIM_INFINITY || capabilities >> CAP_IPC_LOCK & 1 == 1;
        Some(Account { limit, pinned, unlimited })
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// The bytes of all pages that a range touches: what the kernel pins.
fn whole_pages(addr: usize, length: usize, page: u64) -> u64 {
    let (addr, length) = (addr as u64, length as u64);
    let last = addr.saturating_add(length).saturating_add(page - 1) / page;
    last.saturating_sub(addr / page).saturating_mul(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: the message names the limit and the need, in whole pages, and only where the
    /// limit is the reason.
    #[test]
    fn the_limit_and_the_need_are_named() {
        let account = Account { limit: 65536, pinned: 4096, unlimited: false };
        let text = sentence(account, 65536).expect("the limit forbids it");
        for part in ["RLIMIT_MEMLOCK is 65536", "4096 are pinned", "needs 65536", "ulimit -l"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(sentence(account, 61440).is_none(), "it fits");
        assert!(sentence(Account { unlimited: true, ..account }, u64::MAX).is_none());
        assert_eq!(whole_pages(0x1fff, 2, 4096), 8192);
        assert_eq!(whole_pages(0x1000, 4096, 4096), 4096);
        assert_eq!(whole_pages(usize::MAX, usize::MAX, 4096), 0, "beyond memory: no overflow");
    }

    /// Promise: this process's account can be read on any Linux.
    #[test]
    fn this_process_has_an_account() {
        assert!(Account::of_this_process().is_some());
    }
}
