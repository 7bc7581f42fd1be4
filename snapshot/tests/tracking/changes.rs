//! Memory that changes without a store of its program: each way, once.

use crate::memory::{HUGE, Image, Made, Memory, memfd, told};
use crate::{alone, telling, tracker};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::{Kind, Tracker};

/// Runs `change` on written memory that is tracked and told, and checks that it was told.
fn each(made: Made, change: impl Fn(&mut Memory)) {
    each_of(&telling(), made, change);
}

fn each_of(kinds: &[Kind], made: Made, change: impl Fn(&mut Memory)) {
    for &kind in kinds {
        let Some(mut memory) = Memory::new(made, 2 * HUGE) else {
            println!("skipped: this machine has no {made:?} memory");
            return;
        };
        memory.write(0, memory.bytes, 7);
        let mut tracker = tracker(kind);
        tracker.add(memory.range()).unwrap();
        let mut image = Image::new(&memory);
        image.update(&mut *tracker, &memory);
        image.check(&memory, kind.name());
        change(&mut memory);
        image.update(&mut *tracker, &memory);
        image.check(&memory, &format!("{kind} {made:?}"));
        // And it is tracked from here on as if nothing had been.
        memory.write(3 * PAGE, 1, 9);
        image.update(&mut *tracker, &memory);
        image.check(&memory, &format!("{kind} {made:?}, afterwards"));
        let quiet = image.update(&mut *tracker, &memory).len();
        assert!(
            quiet == 0 || made.always_dirty(kind),
            "{kind} {made:?} tells {quiet} pages for ever"
        );
    }
}

#[test]
fn dropped_pages_are_told() {
    let _alone = alone();
    for made in [Made::Private, Made::PrivateFile, Made::SharedAnonymous, Made::Transparent] {
        each(made, |memory| memory.dont_need(PAGE..3 * PAGE));
    }
}

#[test]
fn dropped_page_tables_are_told() {
    let _alone = alone();
    for made in crate::memory::ALL {
        each(made, |memory| memory.dont_need(0..HUGE));
        each(made, |memory| memory.dont_need(0..memory.bytes));
    }
}

#[test]
fn dropped_pages_that_were_read_since_are_told() {
    let _alone = alone();
    for made in [Made::Private, Made::PrivateFile, Made::Transparent, Made::Explicit] {
        each(made, |memory| {
            memory.dont_need(0..HUGE);
            assert_eq!((memory.read(0), memory.read(5 * PAGE)), (0, 0));
        });
    }
}

#[test]
fn pages_that_are_written_dropped_and_written_between_collects_are_told() {
    let _alone = alone();
    for made in [Made::Private, Made::Transparent, Made::Memfd] {
        each(made, |memory| {
            memory.dont_need(0..HUGE);
            memory.write(PAGE, 1, 8);
            memory.dont_need(0..HUGE);
        });
    }
}

/// Of collects at work, too: what each told is copied, and what it left out is told at rest.
#[test]
fn pages_that_are_written_and_dropped_around_a_collect_at_work_are_told() {
    let _alone = alone();
    for made in [Made::Private, Made::PrivateFile, Made::Transparent, Made::Memfd] {
        for kind in telling() {
            let memory = Memory::new(made, 2 * HUGE).unwrap();
            memory.write(0, memory.bytes, 7);
            let mut tracker = tracker(kind);
            tracker.add(memory.range()).unwrap();
            let mut image = Image::new(&memory);
            memory.dont_need(0..HUGE);
            image.update(&mut *tracker, &memory);
            // No page table, then a page of some bytes, and none again: once in each place.
            for (round, page) in [0, 5, 511].into_iter().enumerate() {
                memory.dont_need(0..HUGE);
                image.update(&mut *tracker, &memory);
                memory.write(page * PAGE, 1, 8);
                image.update_meanwhile(&mut *tracker, &memory);
                memory.dont_need(0..HUGE);
                if round == 1 {
                    memory.read(page * PAGE);
                }
                image.update(&mut *tracker, &memory);
                image.check(&memory, &format!("{kind} {made:?} round {round}"));
            }
        }
    }
}

#[test]
fn lazily_freed_pages_are_told() {
    let _alone = alone();
    each(Made::Private, |memory| {
        assert!(memory.advise(0..16 * PAGE, libc::MADV_FREE));
        // Nobody else has need of the memory: takes them at once.
        assert!(memory.advise(0..16 * PAGE, libc::MADV_PAGEOUT));
    });
}

#[test]
fn fresh_memory_in_its_place_is_told() {
    let _alone = alone();
    for made in [Made::Private, Made::SharedAnonymous, Made::Memfd, Made::Transparent] {
        each(made, |memory| assert!(memory.fresh(0..HUGE)));
        each(made, |memory| {
            memory.unmap(0..HUGE);
            assert!(memory.fresh(0..HUGE));
            memory.write(9, 1, 3);
        });
    }
}

#[test]
fn memory_that_is_moved_into_its_place_is_told() {
    let _alone = alone();
    each(Made::Private, |memory| {
        let other = Memory::new(Made::Private, HUGE).unwrap();
        other.write(0, HUGE, 4);
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (from, to) = (other.addr as *mut libc::c_void, memory.addr as *mut libc::c_void);
        // SAFETY: memory of our own on both sides.
        assert_eq!(unsafe { libc::mremap(from, HUGE, HUGE, how, to) }, to);
    });
}

#[test]
fn tracked_memory_that_is_moved_within_tracked_memory_is_told() {
    let _alone = alone();
    each(Made::Private, |memory| {
        memory.write(HUGE, HUGE, 4);
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let to = memory.addr as *mut libc::c_void;
        let from = (memory.addr + HUGE) as *mut libc::c_void;
        // SAFETY: memory of our own on both sides.
        assert_eq!(unsafe { libc::mremap(from, HUGE, HUGE, how, to) }, to);
        memory.fresh(HUGE..2 * HUGE);
    });
}

#[test]
fn memory_that_shrinks_and_grows_again_is_told() {
    let _alone = alone();
    each(Made::Private, |memory| {
        let at = memory.addr as *mut libc::c_void;
        memory.unmap(2 * HUGE - PAGE..2 * HUGE);
        // SAFETY: it grows into the page that was just unmapped.
        let grown = unsafe { libc::mremap(at, 2 * HUGE - PAGE, 2 * HUGE, 0) };
        assert_eq!(grown, at, "{}", std::io::Error::last_os_error());
    });
}

#[test]
fn addresses_with_nothing_are_told_once_something_is_there() {
    let _alone = alone();
    for kind in telling() {
        let mut memory = Memory::new(Made::Private, 2 * HUGE).unwrap();
        memory.write(0, memory.bytes, 7);
        memory.unmap(HUGE..2 * HUGE);
        let mut tracker = tracker(kind);
        tracker.add(memory.range()).unwrap();
        let collect = |tracker: &mut dyn Tracker| {
            let mut pages = 0;
            tracker.collect_at_rest(&mut |range| pages += range.len() / PAGE).unwrap();
            pages
        };
        collect(&mut *tracker);
        assert_eq!(collect(&mut *tracker), 0, "{kind}");
        memory.fresh(HUGE..2 * HUGE);
        memory.write(HUGE + 5, 1, 1);
        let mut image = Image::new(&memory);
        let pages = image.update(&mut *tracker, &memory);
        assert!((512..1024).all(|page| pages.contains(&page)), "{kind}");
        memory.write(HUGE + 5, 1, 2);
        assert!(told(&mut *tracker, &memory).contains(&512), "{kind}");
    }
}

#[test]
fn what_is_made_readable_only_and_written_later_is_told() {
    let _alone = alone();
    // To protect, the program may not do this itself: its documentation says so.
    let kinds: Vec<Kind> = telling().into_iter().filter(|it| *it != Kind::Protect).collect();
    each_of(&kinds, Made::Private, |memory| {
        let protect = |protection| {
            // SAFETY: memory of our own, which nobody else uses.
            let done = unsafe { libc::mprotect(memory.addr as *mut _, HUGE, protection) };
            assert_eq!(done, 0);
        };
        protect(libc::PROT_READ);
        protect(libc::PROT_READ | libc::PROT_WRITE);
        memory.write(4 * PAGE, 1, 1);
        protect(libc::PROT_READ);
        protect(libc::PROT_READ | libc::PROT_WRITE);
    });
}

#[test]
fn a_file_that_is_mapped_for_reading_is_told() {
    let _alone = alone();
    for kind in telling() {
        let file = memfd(HUGE);
        let at = {
            use std::os::fd::AsRawFd;
            let (read, shared) = (libc::PROT_READ, libc::MAP_PRIVATE);
            // SAFETY: a mapping at a place of the kernel's choice.
            unsafe { libc::mmap(std::ptr::null_mut(), HUGE, read, shared, file.as_raw_fd(), 0) }
        } as usize;
        let mut tracker = tracker(kind);
        tracker.add(at..at + HUGE).unwrap();
        let mut pages = 0;
        tracker.collect_at_rest(&mut |range| pages += range.len() / PAGE).unwrap();
        assert!(pages >= HUGE / PAGE, "{kind}");
        drop(tracker);
        // SAFETY: nobody refers to it.
        unsafe { libc::munmap(at as *mut _, HUGE) };
    }
}
