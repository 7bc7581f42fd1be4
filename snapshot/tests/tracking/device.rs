//! What an RDMA device writes, which no tracker sees: the fact that the log of RDMA writes is for. A
//! kernel on which this fails has begun to see it. Needs a device of libibverbs; `hw-tests/run` has
//! one.

use crate::memory::{HUGE, Made, Memory, told};
use crate::{alone, telling, tracker};
use sojourn_fabric::abi::{access, wc_status};
use sojourn_fabric::device::hca;
use sojourn_fabric::virt::{ConnectOptions, Context, Op, QpOptions, Remote, SendRequest};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::Kind;
use std::sync::Arc;
use std::time::Duration;

/// Far above what anything takes on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PAGE_WRITTEN: usize = 3;

#[test]
fn what_a_device_writes_no_tracker_sees() {
    let _alone = alone();
    let devices = hca::find().unwrap_or_default();
    let Some(device) = devices.first() else {
        println!("skipped: this machine has no RDMA device");
        return;
    };
    let context = Context::over(device.open().unwrap());
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(16).unwrap();
    let (from, _to) = pd.create_pair(&QpOptions::rc(&cq), &ConnectOptions::default()).unwrap();
    let source = pd.register(PAGE, access::LOCAL_WRITE).unwrap();
    source.write(0, &[9; 64]);
    for kind in telling() {
        for made in [Made::Private, Made::SharedAnonymous, Made::Memfd, Made::Transparent] {
            let memory = Memory::new(made, HUGE).unwrap();
            memory.write(0, HUGE, 1);
            let (start, rights) =
                (memory.addr as *mut _, access::LOCAL_WRITE | access::REMOTE_WRITE);
            // SAFETY: the memory outlives the region, and all access to it is atomic.
            let region =
                unsafe { Arc::clone(pd.device()).reg_mr(start, memory.bytes, rights) }.unwrap();
            let mut tracker = tracker(kind);
            tracker.add(memory.range()).unwrap();
            told(&mut *tracker, &memory);
            let before = told(&mut *tracker, &memory).contains(&PAGE_WRITTEN);
            let addr = (memory.addr + PAGE_WRITTEN * PAGE) as u64;
            let to = Remote { addr, rkey: region.rkey() };
            let bytes = [source.slice(0..64)];
            from.post_send(&SendRequest::new(1, Op::Write(to), &bytes)).unwrap();
            assert_eq!(cq.expect(PATIENCE).unwrap().status, wc_status::SUCCESS);
            let after = told(&mut *tracker, &memory).contains(&PAGE_WRITTEN);
            assert_eq!(memory.read(PAGE_WRITTEN * PAGE), 9);
            println!("{kind}, {made:?}: told before the write: {before}, after it: {after}");
            match (kind, made) {
                // Dirty as long as it is pinned, whether anybody writes or not.
                (Kind::SoftDirty, Made::Private) => assert!(before && after),
                // Dirty each time.
                (Kind::SoftDirty, Made::SharedAnonymous | Made::Memfd) => assert!(before && after),
                // Whether it is one huge page is for the kernel to say.
                (Kind::SoftDirty, _) => {}
                _ => assert!(!before && !after, "{kind} sees what a device writes to {made:?}"),
            }
            drop((region, tracker));
        }
    }
}
