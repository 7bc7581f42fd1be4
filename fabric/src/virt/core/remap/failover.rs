//! A path has failed, and both processes live: the context goes to another device by itself.
//!
//! A poller that finds a request of a reliable connection at `RETRY_EXC_ERR`, or at `LOC_QP_OP_ERR`
//! (rxe, whose own interface is down), or a flush that may be the consequence, withholds that completion
//! and all that follow, stops handing (the queue pair is *broken*), and tells the thread of this file.
//! That looks for the cause, and asks whether the peer and its queue pair are there at all; if so, it
//! takes the context to the first
//! device that all can follow to, and the window's replay does the rest. If not, or where there is
//! no other device, the program gets the completions that were withheld.
//!
//! The thread is there while it is needed; there is one for each process.

use super::{FIRST_PORT, Relocation, block_signals, mover};
use crate::abi::{port_state, wc_status};
use crate::device::{self, DeviceContext, Kind};
use crate::error::{Error, Result};
use crate::names::{self, Fetch};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::local::Local;
use crate::virt::core::lock_mutex;
use crate::virt::core::qp::QpCore;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// What is done where the path of a connection fails and the peer lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Failover {
    /// The program gets the error that verbs give.
    #[default]
    Off,
    /// The context goes to another device of the same kind whose port is up, if the machine has one.
    Auto,
    /// It goes to the first of these devices that it can go to.
    To(Vec<String>),
}

impl Failover {
    /// The environment variable that says it: `off`, `auto` (where it is not set, too), or the names of devices.
    pub const VARIABLE: &'static str = "SOJOURN_FAILOVER";

    /// What the environment says.
    ///
    /// # Errors
    /// `EINVAL` where a name is empty.
    pub fn from_env() -> Result<Self> {
        match std::env::var(Self::VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(_) => Ok(Failover::Auto),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "auto" => Ok(Failover::Auto),
            "off" => Ok(Failover::Off),
            names => {
                let names: Vec<_> = names.split(',').map(|name| name.trim().to_owned()).collect();
                if names.iter().any(String::is_empty) {
                    return Err(Error::invalid(format!(
                        "{} is {text:?}: want off, auto, or names of devices (rxe1,rxe0)",
                        Self::VARIABLE
                    )));
                }
                Ok(Failover::To(names))
            }
        }
    }

    /// Whether there may be somewhere to go from `from`.
    pub(in crate::virt::core) fn may_leave(&self, from: &dyn DeviceContext) -> bool {
        !self.candidates(from).is_empty()
    }

    /// Where to go from `from`, best first.
    fn candidates(&self, from: &dyn DeviceContext) -> Vec<String> {
        match self {
            Failover::Off => Vec::new(),
            Failover::Auto => others(from.name(), from.kind()),
            Failover::To(names) => {
                names.iter().filter(|name| *name != from.name()).cloned().collect()
            }
        }
    }
}

fn others(name: &str, kind: Kind) -> Vec<String> {
    let all = device::list();
    let other = all.iter().filter(|it| it.kind() == kind && it.name() != name);
    other.map(|it| it.name().to_owned()).collect()
}

/// The thread goes after so long without work.
const IDLE: Duration = Duration::from_secs(5);
/// Who sees nothing wrong with its own port leaves the peer as long to go away from one that is.
const COURTESY: Duration = Duration::from_millis(50);
/// How long the peer may take to say whether its queue pair is there.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// A device may fail requests so long before it says that its port is down.
const PORT_LAG: Duration = Duration::from_millis(200);
/// Between two looks at that port.
const LOOK: Duration = Duration::from_millis(2);

/// Between two tries to start the thread.
const REST: Duration = Duration::from_secs(1);

/// Something has failed.
pub(in crate::virt::core) enum Broken {
    /// The path of a queue pair.
    Path(Weak<QpCore>),
    /// The port of a context's device.
    Port(Weak<VirtualContext>),
}

/// The way to the thread, while there is one.
#[derive(Default)]
pub(in crate::virt::core) struct Rescue(Mutex<Option<Sender<Broken>>>);

impl Rescue {
    /// Tells the thread; starts it where there is none. Called by pollers.
    pub(in crate::virt::core) fn call(&self, local: &Arc<Local>, what: Broken) {
        let mut way = lock_mutex(&self.0);
        let what = match &*way {
            Some(way) => match way.send(what) {
                Ok(()) => return,
                Err(unsent) => unsent.into_inner(),
            },
            None => what,
        };
        let (tell, told) = unbounded();
        let weak = Arc::downgrade(local);
        let ours = Weak::clone(&weak);
        let started =
            std::thread::Builder::new().name("sojourn-rescue".to_owned()).spawn(move || {
                block_signals();
                serve(&ours, &told);
            });
        match started {
            Ok(_) => {
                // It is alive: nobody else holds the other end.
                let _ = tell.send(what);
                *way = Some(tell);
            }
            Err(error) => {
                tracing::error!("a path has failed, and no thread can be started: {error}");
                let again = Box::new(move || {
                    if let Some(local) = weak.upgrade() {
                        local.rescue.call(&local, what);
                    }
                });
                local.resolver().run_later(Instant::now() + REST, again);
            }
        }
    }
}

fn serve(local: &Weak<Local>, told: &Receiver<Broken>) {
    loop {
        if let Ok(broken) = told.recv_timeout(IDLE) {
            let Some(local) = local.upgrade() else { return };
            rescue(&local, broken);
            continue;
        }
        let Some(local) = local.upgrade() else { return };
        let mut way = lock_mutex(&local.rescue.0);
        // Under the lock, so that nothing is told to a thread that goes.
        if told.is_empty() {
            *way = None;
            return;
        }
    }
}

impl Broken {
    fn still_is(&self) -> Option<Arc<VirtualContext>> {
        match self {
            Broken::Path(qp) => {
                let qp = qp.upgrade().filter(|qp| qp.is_broken())?;
                Some(Arc::clone(&qp.pd.context))
            }
            Broken::Port(context) => context.upgrade().filter(|context| !port_is_up(context)),
        }
    }

    fn let_it_fail(&self) {
        if let Broken::Path(qp) = self
            && let Some(qp) = qp.upgrade()
        {
            qp.let_it_fail();
        }
    }
}

fn port_is_up(context: &VirtualContext) -> bool {
    let port = context.underlay().device.query_port(FIRST_PORT);
    port.is_ok_and(|port| port.state == port_state::ACTIVE)
}

fn port_goes_down(context: &VirtualContext) -> bool {
    let until = Instant::now() + PORT_LAG;
    while port_is_up(context) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

fn rescue(local: &Arc<Local>, broken: Broken) {
    let Some(context) = broken.still_is() else { return };
    if let Broken::Path(qp) = &broken
        && let Some(qp) = qp.upgrade()
    {
        qp.cqs().for_each(|cq| cq.harvest_now());
        let path = match qp.cause() {
            Some(wc_status::LOC_QP_OP_ERR) => port_goes_down(&context),
            cause => cause.is_some(),
        };
        if !path {
            tracing::info!("queue pair {:#x} failed, and its path is not to blame", qp.qpn);
            return qp.let_it_fail();
        }
    }
    if let Broken::Path(qp) = &broken
        && let Some(qp) = qp.upgrade()
        && let Err(error) = ask_for_peer(local, &qp)
    {
        tracing::info!("queue pair {:#x}: {error}: its path is not to blame", qp.qpn);
        return qp.let_it_fail();
    }
    if port_is_up(&context) {
        std::thread::sleep(COURTESY);
    }
    let from = context.underlay();
    let mut names = context.failover().candidates(&*from.device);
    // It had followed a peer to another device: back to where everything else is.
    if let Broken::Path(qp) = &broken
        && qp.upgrade().is_some_and(|qp| qp.device() != Some(from.id))
    {
        names.insert(0, from.device.name().to_owned());
    }
    for name in names {
        if broken.still_is().is_none() {
            return;
        }
        match go(&context, &name) {
            Ok(moved) => {
                tracing::warn!(
                    "{} has failed: went over to {name}, blackout {:?}",
                    moved.from,
                    moved.blackout()
                );
                context.note_move(moved);
                // What has failed on the new path since has called for itself.
                return;
            }
            Err(error) => {
                tracing::warn!("a path over {} has failed: {error}", from.device.name())
            }
        }
    }
    // There is nowhere to go.
    broken.let_it_fail();
}

fn go(context: &Arc<VirtualContext>, name: &str) -> Result<Relocation> {
    let device = device::open(name)?;
    let port = device.query_port(FIRST_PORT)?;
    if port.state != port_state::ACTIVE {
        return Err(Error::new(
            libc::ENETDOWN,
            format!("its port is {}", port_state::name(port.state)),
        ));
    }
    mover::relocate(context, &device, super::Cause::PathFailure)
}

/// Whether the queue pair at the other end is there to be asked.
fn ask_for_peer(local: &Arc<Local>, qp: &QpCore) -> std::result::Result<(), names::Error> {
    let Ok(Some((process, dest))) = qp.status().map(|status| status.peer) else { return Ok(()) };
    if process == local.grant().process {
        return Ok(());
    }
    let what = Fetch::Qpn { qpn: dest, own_qpn: 0, own_end: None };
    local.resolver().fetch_wait(process, what, Instant::now() + ASK_PATIENCE).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_go_is_said_by_name_or_left_to_us() {
        let parse = |text| Failover::parse(text);
        assert_eq!(parse("").unwrap(), Failover::Auto);
        assert_eq!(parse("off").unwrap(), Failover::Off);
        let names = ["rxe1", "rxe0"].map(str::to_owned).to_vec();
        assert_eq!(parse("rxe1, rxe0").unwrap(), Failover::To(names));
        let error = parse("rxe1,,rxe0").unwrap_err().to_string();
        assert!(error.contains(Failover::VARIABLE) && error.contains("rxe1,,rxe0"), "{error}");
    }
}
