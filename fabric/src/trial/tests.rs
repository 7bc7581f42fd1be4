//! The trial on soft devices, which are live, and on such that are not what they seem.

use super::cases::run;
use super::*;
use crate::abi::{
    self, DeviceAttr, Gid, PortAttr, QpAttr, QpCap, RecvWr, SendWr, qp_mask, qp_state,
};
use crate::device::*;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

fn soft(mode: soft::Mode) -> Arc<dyn DeviceContext> {
    let options = soft::Options { mode, ..soft::Options::default() };
    soft::open_with("soft0", options).unwrap()
}

/// How a device misleads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// The number is what software said when the queue pair was connected (irdma).
    Copy,
    /// It is that of the request before the last.
    Lags,
    /// It counts a READ, and an atomic, as its request alone.
    OneForEach,
    /// At ERR it counts a packet that was not executed.
    AheadAtErr,
    /// Nothing that is posted is ever done.
    Hangs,
}

/// A soft device with a habit.
struct Misled {
    inner: Arc<dyn DeviceContext>,
    habit: Habit,
}

impl DeviceContext for Misled {
    fn name(&self) -> &str {
        "misled0"
    }
    fn kind(&self) -> Kind {
        Kind::Hca
    }
    fn query_device(&self) -> Result<DeviceAttr> {
        self.inner.query_device()
    }
    fn query_port(&self, port: u8) -> Result<PortAttr> {
        self.inner.query_port(port)
    }
    fn query_gid(&self, port: u8, index: u32) -> Result<Gid> {
        self.inner.query_gid(port, index)
    }
    fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
        self.inner.query_pkey(port, index)
    }
    fn addresses_by_gid(&self, port: u8) -> Result<bool> {
        self.inner.addresses_by_gid(port)
    }
    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
        let inner = Arc::clone(&self.inner).alloc_pd(init)?;
        Ok(Arc::new(MisledPd { inner, habit: self.habit }))
    }
    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        Arc::clone(&self.inner).create_channel()
    }
    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        Arc::clone(&self.inner).create_cq(init)
    }
    fn async_fd(&self) -> BorrowedFd<'_> {
        self.inner.async_fd()
    }
    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        self.inner.get_async_event()
    }
}

struct MisledPd {
    inner: Arc<dyn DevicePd>,
    habit: Habit,
}

impl DevicePd for MisledPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        // SAFETY: the caller's promise.
        unsafe { Arc::clone(&self.inner).reg_mr(addr, length, flags) }
    }
    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        let inner = Arc::clone(&self.inner).create_qp(init)?;
        let (connected, told) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(Arc::new(MisledQp { inner, habit: self.habit, connected, told }))
    }
    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        Arc::clone(&self.inner).create_srq(init)
    }
    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        Arc::clone(&self.inner).create_ah(attr)
    }
}

struct MisledQp {
    inner: Arc<dyn DeviceQp>,
    habit: Habit,
    connected: AtomicU32,
    told: AtomicU32,
}

impl DeviceQp for MisledQp {
    fn qp_num(&self) -> u32 {
        self.inner.qp_num()
    }
    fn qp_type(&self) -> u32 {
        self.inner.qp_type()
    }
    fn init_cap(&self) -> QpCap {
        self.inner.init_cap()
    }
    unsafe fn post_send(&self, wr: *mut SendWr) -> PostSend {
        if self.habit == Habit::Hangs {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.post_send(wr) }
    }
    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        unsafe { self.inner.post_recv(wr) }
    }
    fn modify(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        if mask & qp_mask::RQ_PSN != 0 {
            self.connected.store(attr.rq_psn, Ordering::Relaxed);
            self.told.store(attr.rq_psn, Ordering::Relaxed);
        }
        self.inner.modify(attr, mask)
    }
    fn query(&self, mask: u32) -> Result<QpAttr> {
        let attr = self.inner.query(mask)?;
        let before = self.told.swap(attr.rq_psn, Ordering::Relaxed);
        let rq_psn = match self.habit {
            Habit::Copy => self.connected.load(Ordering::Relaxed),
            Habit::Lags => before,
            // By three, whatever it was: a READ's response of three packets is the first of that.
            Habit::OneForEach if attr.rq_psn.wrapping_sub(before) == 3 => before + 1,
            Habit::AheadAtErr if attr.qp_state == qp_state::ERR => attr.rq_psn + 1,
            Habit::OneForEach | Habit::AheadAtErr | Habit::Hangs => attr.rq_psn,
        };
        Ok(QpAttr { rq_psn, ..attr })
    }
}

/// Promise: soft devices are live, at once and packet by packet at a pace.
#[test]
fn soft_devices_are_live() {
    let pace = |seed, us, gbps| soft::Pace { seed, latency: Duration::from_micros(us), gbps };
    let modes =
        [soft::Mode::Sync, soft::Mode::Async(pace(3, 5, 5.0)), soft::Mode::Async(pace(4, 50, 1.0))];
    for mode in modes {
        assert_eq!(run(&soft(mode), PATIENCE).unwrap(), Verdict::Live, "{mode:?}");
    }
    let known = known(&*soft(soft::Mode::Sync)).unwrap();
    assert_eq!(known, Known { verdict: Verdict::Live, tried: None }, "and need no trial");
}

/// Promise: a number that is a copy, that lags behind, or that counts otherwise, is not live, and the verdict
/// says by what that showed.
#[test]
fn numbers_that_mislead_are_found_out() {
    let cases = [
        (Habit::Copy, "Send of 0 B at a path MTU of 256"),
        (Habit::Lags, "Send of 0 B at a path MTU of 256"),
        (Habit::OneForEach, "Send of 513 B at a path MTU of 256"),
        (Habit::AheadAtErr, "WRITE with a wrong key at a path MTU of 256"),
    ];
    for (habit, wanted) in cases {
        let device: Arc<dyn DeviceContext> =
            Arc::new(Misled { inner: soft(soft::Mode::Sync), habit });
        match run(&device, PATIENCE).unwrap() {
            Verdict::NotLive { case, expected, found: Some(found) } => {
                assert_eq!(case, wanted, "{habit:?}");
                assert_ne!(expected, found);
            }
            other => panic!("{habit:?}: {other:?}"),
        }
    }
}

/// Promise: a device that hangs is not live, and keeps nobody waiting for long.
#[test]
fn a_device_that_hangs_is_not_live() {
    let device: Arc<dyn DeviceContext> =
        Arc::new(Misled { inner: soft(soft::Mode::Sync), habit: Habit::Hangs });
    let verdict = run(&device, Duration::from_millis(50)).unwrap();
    assert!(matches!(verdict, Verdict::NotLive { found: None, .. }), "{verdict:?}");
    assert!(verdict.to_string().contains("no answer came"), "{verdict}");
}

/// Promise: a device of which the cache knows is not tried; another of its kind is known, too, as it was found
/// to be. Without a cache nothing fails.
#[test]
fn a_verdict_is_kept_in_the_cache() {
    let place = tempfile::tempdir().unwrap();
    let cache = Cache::at(&place.path().join("sojourn"));
    let with = |habit| -> Arc<dyn DeviceContext> {
        Arc::new(Misled { inner: soft(soft::Mode::Sync), habit })
    };
    assert_eq!(known_in(Some(&cache), &*with(Habit::Copy)), None);
    let found = try_in(Some(&cache), &with(Habit::Copy)).unwrap();
    assert!(matches!(found.verdict, Verdict::NotLive { .. }), "{found:?}");
    assert!(found.tried > Some(0));
    for habit in [Habit::Lags, Habit::Hangs] {
        assert_eq!(known_in(Some(&cache), &*with(habit)), Some(found.clone()));
    }
    assert_ne!(try_in(None, &with(Habit::OneForEach)).unwrap().verdict, found.verdict);
    let anew = try_in(Some(&cache), &with(Habit::AheadAtErr)).unwrap();
    assert_ne!(anew.verdict, found.verdict);
    assert_eq!(known_in(Some(&cache), &*with(Habit::Copy)), Some(anew));
}

/// Promise: where the trial cannot be made there is no verdict, and the error says what was being done.
#[test]
fn a_trial_that_cannot_be_made_has_no_verdict() {
    struct NoPort(Arc<dyn DeviceContext>);
    impl DeviceContext for NoPort {
        fn name(&self) -> &str {
            "noport0"
        }
        fn kind(&self) -> Kind {
            Kind::Hca
        }
        fn query_device(&self) -> Result<DeviceAttr> {
            self.0.query_device()
        }
        fn query_port(&self, port: u8) -> Result<PortAttr> {
            Err(crate::Error::invalid(format!("port {port}")))
        }
        fn query_gid(&self, port: u8, index: u32) -> Result<Gid> {
            self.0.query_gid(port, index)
        }
        fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
            self.0.query_pkey(port, index)
        }
        fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
            Arc::clone(&self.0).alloc_pd(init)
        }
        fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
            Arc::clone(&self.0).create_channel()
        }
        fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
            Arc::clone(&self.0).create_cq(init)
        }
        fn async_fd(&self) -> BorrowedFd<'_> {
            self.0.async_fd()
        }
        fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
            self.0.get_async_event()
        }
    }
    let device: Arc<dyn DeviceContext> = Arc::new(NoPort(soft(soft::Mode::Sync)));
    let error = run(&device, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("trying the packet number of noport0"), "{error}");
}
