//! Choosing a back end, the books of a tracker, and what it refuses.

use crate::memory::{HUGE, Made, Memory, told};
use crate::{alone, kinds, telling, tracker};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::{Kind, open};

#[test]
fn the_best_back_end_is_taken_and_every_one_can_be_forced() {
    let _alone = alone();
    let here = kinds();
    let best = open(None).unwrap().kind();
    let expected = here.iter().find(|kind| **kind != Kind::Protect).unwrap();
    assert_eq!(best, *expected);
    assert!(here.contains(&Kind::Everything));
}

#[test]
fn a_word_that_names_no_back_end_is_refused_by_name() {
    let refused = Kind::parse("dirtyest").unwrap_err().to_string();
    assert!(refused.contains("SOJOURN_TRACKING=dirtyest"), "{refused}");
    assert_eq!(Kind::parse("auto").unwrap(), None);
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.name()).unwrap(), Some(kind));
    }
}

/// Promise: while the program runs some kinds start afresh; the others tell again what they have told, until they are asked
/// at rest.
#[test]
fn what_is_told_at_work_is_told_once_or_until_it_is_told_at_rest() {
    let _alone = alone();
    for kind in kinds() {
        let mut tracker = tracker(kind);
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        memory.write(0, HUGE, 1);
        tracker.add(memory.range()).unwrap();
        tracker.collect_at_rest(&mut |_| {}).unwrap();
        memory.write(PAGE, 8, 2);
        let mut told_at_work = || {
            let mut any = false;
            tracker.collect(&mut |_| any = true).unwrap();
            any
        };
        let (first, second) = (told_at_work(), told_at_work());
        let afresh = matches!(kind, Kind::Scan | Kind::Protect);
        assert_eq!((first, second), (true, !afresh), "{kind}");
    }
}

#[test]
fn what_a_kernel_lacks_is_named() {
    let _alone = alone();
    for kind in Kind::ALL {
        if let Err(why) = open(Some(kind)) {
            let why = why.to_string();
            assert!(why.contains(kind.name()), "{why}");
            let lacks = ["UFFD_FEATURE_WP_ASYNC", "PAGEMAP_SCAN", "userfaultfd", "MEM_SOFT_DIRTY"];
            assert!(lacks.iter().any(|it| why.contains(it)), "{why}");
        }
    }
}

#[test]
fn ranges_that_cannot_be_tracked_are_refused_by_name() {
    let _alone = alone();
    for kind in kinds() {
        let mut tracker = tracker(kind);
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        tracker.add(memory.range()).unwrap();
        let twice = tracker.add(memory.range()).unwrap_err();
        assert!(twice.to_string().contains(&format!("{:#x}", memory.addr)), "{twice}");
        assert!(tracker.add(5..5).is_err());
        assert!(tracker.add(usize::MAX - 5..usize::MAX).is_err());
        assert!(tracker.remove(memory.part(0..PAGE)).is_err());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let special = maps.lines().find(|line| line.contains("[vdso]")).unwrap();
        let (start, end) = special.split_whitespace().next().unwrap().split_once('-').unwrap();
        let address = |text| usize::from_str_radix(text, 16).unwrap();
        let refused = tracker.add(address(start)..address(end)).unwrap_err().to_string();
        assert!(refused.contains("[vdso]") && refused.contains(start), "{refused}");
        // What was tracked is tracked still.
        told(&mut *tracker, &memory);
        memory.write(9, 1, 1);
        assert!(told(&mut *tracker, &memory).contains(&0));
    }
}

#[test]
fn ranges_of_any_alignment_come_and_go_alone() {
    let _alone = alone();
    for kind in telling() {
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        memory.write(0, HUGE, 1);
        let mut tracker = tracker(kind);
        let (one, other) = (memory.part(10..PAGE + 10), memory.part(PAGE + 20..2 * PAGE + 5));
        tracker.add(one.clone()).unwrap();
        assert_eq!(told(&mut *tracker, &memory), [0, 1], "{kind}");
        assert_eq!(told(&mut *tracker, &memory), [0; 0], "{kind}");
        // All of it is dirty, the page that was tracked before too.
        tracker.add(other).unwrap();
        assert_eq!(told(&mut *tracker, &memory), [1, 2], "{kind}");
        tracker.remove(one).unwrap();
        memory.write(0, 4 * PAGE, 2);
        assert_eq!(told(&mut *tracker, &memory), [1, 2], "{kind}: the page of both stays");
        tracker.add_always_dirty(memory.part(PAGE + 7..PAGE + 8)).unwrap();
        tracker.collect(&mut |range| panic!("{kind}: {range:x?} is told at work")).unwrap();
        assert_eq!(told(&mut *tracker, &memory), [1], "{kind}");
        memory.write(2 * PAGE, 1, 3);
        assert_eq!(told(&mut *tracker, &memory), [1, 2], "{kind}");
        tracker.remove(memory.part(PAGE + 7..PAGE + 8)).unwrap();
        assert_eq!(told(&mut *tracker, &memory), [1], "{kind}: nobody knows what it was");
        assert_eq!(told(&mut *tracker, &memory), [0; 0], "{kind}");
        memory.write(PAGE, 1, 4);
        assert_eq!(told(&mut *tracker, &memory), [1], "{kind}");
    }
}

#[test]
fn two_trackers_of_one_range_are_refused_or_both_right() {
    let _alone = alone();
    let memory = Memory::new(Made::Private, HUGE).unwrap();
    for kind in telling() {
        let mut first = tracker(kind);
        first.add(memory.range()).unwrap();
        let second = open(Some(kind)).and_then(|mut second| second.add(memory.range()));
        let refused = second.unwrap_err();
        assert_eq!(refused.errno(), libc::EBUSY, "{kind}: {refused}");
        drop(first);
        tracker(kind).add(memory.range()).unwrap();
    }
}

#[test]
fn the_child_of_a_fork_is_refused_and_its_parent_is_not_disturbed() {
    let _alone = alone();
    for kind in telling() {
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        memory.write(0, HUGE, 1);
        let mut tracker = tracker(kind);
        tracker.add(memory.range()).unwrap();
        told(&mut *tracker, &memory);
        // SAFETY: the child writes to memory, makes one call that fails at once, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            memory.write(0, 4 * PAGE, 2);
            let refused = tracker.collect(&mut |_| ()).is_err_and(|it| it.errno() == libc::EPERM);
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if refused { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "{kind}: the child's collect must be refused");
        assert_eq!(told(&mut *tracker, &memory), [0; 0], "{kind}: only the child has written");
        memory.write(5 * PAGE, 1, 2);
        assert_eq!(told(&mut *tracker, &memory), [5], "{kind}");
    }
}

/// What a system call or another process writes is seen where the kernel tracks, and refused where
/// pages are protected.
#[test]
fn what_system_calls_write_is_told() {
    let _alone = alone();
    for kind in telling() {
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        memory.write(0, HUGE, 1);
        let mut tracker = tracker(kind);
        tracker.add(memory.part(0..8 * PAGE)).unwrap();
        told(&mut *tracker, &memory);
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let read = |at: usize| {
            use std::os::fd::AsRawFd;
            let to = (memory.addr + at) as *mut libc::c_void;
            // SAFETY: memory of our own, of which nobody holds a reference.
            unsafe { libc::read(zero.as_raw_fd(), to, 10) }
        };
        if kind == Kind::Protect {
            assert_eq!(read(PAGE), -1, "documented to fail");
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
            assert_eq!(told(&mut *tracker, &memory), [0; 0]);
            tracker.add_always_dirty(memory.part(PAGE..PAGE + 1)).unwrap();
        }
        assert_eq!(read(PAGE), 10);
        assert_eq!(told(&mut *tracker, &memory), [1], "{kind}");
    }
}

#[test]
fn what_another_process_writes_is_told() {
    let _alone = alone();
    for kind in telling() {
        let memory = Memory::new(Made::Private, HUGE).unwrap();
        memory.write(0, HUGE, 1);
        let mut tracker = tracker(kind);
        tracker.add(memory.range()).unwrap();
        told(&mut *tracker, &memory);
        let write_from_outside = || {
            let parent = std::process::id() as i32;
            let bytes = [7u8; 10];
            let from = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: 10 };
            let at = (memory.addr + 3 * PAGE + 5) as *mut libc::c_void;
            let to = libc::iovec { iov_base: at, iov_len: 10 };
            // SAFETY: for a child of this process alone; the child makes one call and ends.
            let child = unsafe {
                libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
                libc::fork()
            };
            if child == 0 {
                // SAFETY: the iovecs name memory that is mapped on both sides.
                let written = unsafe { libc::process_vm_writev(parent, &from, 1, &to, 1, 0) };
                // SAFETY: ends the child without running what belongs to its parent.
                unsafe { libc::_exit(if written == 10 { 0 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: our own child.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            status == 0
        };
        if kind == Kind::Protect {
            assert!(!write_from_outside(), "documented to fail");
            tracker.add_always_dirty(memory.part(3 * PAGE..4 * PAGE)).unwrap();
            told(&mut *tracker, &memory);
        }
        assert!(write_from_outside());
        assert_eq!(memory.read(3 * PAGE + 5), 7);
        assert_eq!(told(&mut *tracker, &memory), [3], "{kind}");
    }
}
