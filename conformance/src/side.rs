//! One side of a case: its device, its words with the other side, and its clock.

use crate::caps::{Caps, Layer, Node};
use crate::case::{Stop, Verdict, place};
use crate::link::Link;
use crate::message::{Ended, MAX_WORDS, Message};
use crate::quirks::Feature;
use sojourn_fabric::abi::Wc;
use sojourn_fabric::device::{AsyncEvent, EventElement};
use sojourn_fabric::virt::{CompletionQueue, Context};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Empty polls before a waiter lets the other side have the core.
const SPINS: u32 = 100;
/// How often a waiter looks whether the other side has stopped.
const GLANCE: Duration = Duration::from_millis(5);

/// Which side of a case one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The active side, and the only one of a case that needs one.
    A,
    /// The other.
    B,
}

/// A link shared by the case that talks over it and the watch that ends it.
pub(crate) type SharedLink = Arc<Mutex<Box<dyn Link>>>;

/// The line that a side is at, to be read while it hangs.
pub(crate) type Place = Arc<Mutex<String>>;

/// One side of a running case.
pub struct Side {
    role: Role,
    context: Context,
    layer: Layer,
    caps: Caps,
    link: SharedLink,
    heard: VecDeque<Vec<u64>>,
    other: Option<Ended>,
    glanced: Instant,
    deadline: Instant,
    patience: Duration,
    place: Place,
    kept: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Side {
    pub(crate) fn new(
        role: Role,
        node: &Node,
        link: SharedLink,
        deadline: Instant,
        patience: Duration,
        place: Place,
    ) -> Verdict<Self> {
        Ok(Side {
            role,
            context: Context::over(Arc::clone(&node.context)),
            layer: node.layer,
            caps: Caps::query(node)?,
            link,
            heard: VecDeque::new(),
            other: None,
            glanced: Instant::now(),
            deadline,
            patience,
            place,
            kept: Vec::new(),
        })
    }

    /// Which side this is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn layer(&self) -> Layer {
        self.layer
    }

    pub(crate) fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Ends the case as not applicable where the device lacks `feature`.
    pub(crate) fn needs(&self, feature: Feature) -> Verdict {
        self.caps.needs(feature)
    }

    /// Keeps an object until the other side has ended too, which may still be using it.
    pub(crate) fn keep<T: Any + Send + Sync>(&mut self, object: T) -> Arc<T> {
        let object = Arc::new(object);
        self.kept.push(Arc::clone(&object) as Arc<dyn Any + Send + Sync>);
        object
    }

    /// When the wait that begins now must have ended.
    #[track_caller]
    pub(crate) fn until(&self) -> Instant {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place(Location::caller());
        self.deadline.min(Instant::now() + self.patience)
    }

    // ---- words with the other side -------------------------------------------------------

    /// Says numbers to the other side.
    #[track_caller]
    pub(crate) fn tell(&mut self, words: &[u64]) -> Verdict {
        assert!(words.len() <= MAX_WORDS, "{} words in one message", words.len());
        let frame = Message::Data(words.to_vec()).encode();
        let sent = self.link.lock().unwrap_or_else(PoisonError::into_inner).send(&frame);
        sent.map_err(|error| Stop::Abandoned(error.to_string()))
    }

    /// Hears `N` numbers from the other side.
    #[track_caller]
    pub(crate) fn hear<const N: usize>(&mut self) -> Verdict<[u64; N]> {
        let at = Location::caller();
        let until = self.until();
        while self.heard.is_empty() {
            self.stopped()?;
            if !self.receive(until.min(Instant::now() + GLANCE))? && Instant::now() >= until {
                return Err(Stop::Failed(format!("{}: the other side says nothing", place(at))));
            }
        }
        let words = self.heard.pop_front().unwrap_or_default();
        <[u64; N]>::try_from(words).map_err(|words| {
            Stop::Failed(format!("{}: heard {} words instead of {N}", place(at), words.len()))
        })
    }

    /// Waits until both sides are here.
    #[track_caller]
    pub(crate) fn meet(&mut self) -> Verdict {
        let at = Location::caller();
        self.tell(&[u64::from(at.line())])?;
        let _ = self.until();
        let [_] = self.hear_at(at)?;
        Ok(())
    }

    fn hear_at<const N: usize>(&mut self, at: &'static Location<'static>) -> Verdict<[u64; N]> {
        self.hear().map_err(|stop| match stop {
            Stop::Failed(message) => Stop::Failed(format!("{}: meeting: {message}", place(at))),
            other => other,
        })
    }

    /// How the other side ended, waiting for it at most until `until`. What it says meanwhile is
    /// of no interest any more.
    pub(crate) fn farewell(&mut self, until: Instant) -> Result<Ended, String> {
        loop {
            if let Some(ended) = self.other.clone() {
                return Ok(ended);
            }
            if Instant::now() >= until {
                return Err("the other side has not ended in time".into());
            }
            match self.receive(until.min(Instant::now() + GLANCE)) {
                Ok(_) => {}
                Err(Stop::Failed(why) | Stop::Abandoned(why) | Stop::NotApplicable(why)) => {
                    return Err(why);
                }
            }
        }
    }

    /// Takes one frame off the link; false when none came.
    fn receive(&mut self, until: Instant) -> Verdict<bool> {
        let frame = self.link.lock().unwrap_or_else(PoisonError::into_inner).recv(until);
        match frame {
            Ok(None) => Ok(false),
            Ok(Some(frame)) => match Message::decode(&frame) {
                Ok(Message::Data(words)) => {
                    self.heard.push_back(words);
                    Ok(true)
                }
                Ok(Message::Done(ended)) => {
                    self.other = Some(ended);
                    Ok(true)
                }
                Ok(message) => {
                    Err(Stop::Abandoned(format!("the other side said {message:?} within a case")))
                }
                Err(why) => Err(Stop::Abandoned(format!("the other side sent {why}"))),
            },
            Err(error) => Err(Stop::Abandoned(error.to_string())),
        }
    }

    /// Stops this side where the other has stopped with something else than success.
    fn stopped(&self) -> Verdict {
        match &self.other {
            None => Ok(()),
            Some(Ended::With(crate::Outcome::Passed)) if !self.heard.is_empty() => Ok(()),
            Some(ended) => Err(Stop::Abandoned(format!("the other side has ended: {ended:?}"))),
        }
    }

    /// Called by waiters: now and then looks whether the other side has failed.
    fn glance(&mut self) -> Verdict {
        if self.glanced.elapsed() >= GLANCE {
            self.glanced = Instant::now();
            self.receive(Instant::now())?;
            if !matches!(self.other, Some(Ended::With(crate::Outcome::Passed)) | None) {
                return self.stopped();
            }
        }
        Ok(())
    }

    // ---- waiting -------------------------------------------------------------------------

    /// Polls `ready` until it says something.
    #[track_caller]
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut() -> Verdict<Option<T>>,
    ) -> Verdict<T> {
        let at = Location::caller();
        let until = self.until();
        let mut spins = 0;
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            if Instant::now() >= until {
                return Err(Stop::Failed(format!("{}: {what} does not come", place(at))));
            }
            self.glance()?;
            std::thread::yield_now();
        }
    }

    /// The next completion, of whatever status.
    #[track_caller]
    pub(crate) fn completion(&mut self, cq: &CompletionQueue) -> Verdict<Wc> {
        self.wait("a completion", || {
            let mut wc = [Wc::default()];
            Ok((cq.poll(&mut wc)? == 1).then(|| wc[0]))
        })
    }

    /// The next `n` completions, polled several at a time.
    #[track_caller]
    pub(crate) fn completions(&mut self, cq: &CompletionQueue, n: usize) -> Verdict<Vec<Wc>> {
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            let mut wcs = [Wc::default(); 16];
            let room = wcs.len().min(n - all.len());
            let got = self.wait("a completion", || {
                let got = cq.poll(&mut wcs[..room])?;
                Ok((got > 0).then_some(got))
            });
            match got {
                Ok(got) => all.extend_from_slice(&wcs[..got]),
                Err(Stop::Failed(why)) => {
                    return Err(Stop::Failed(format!("{why}, after {} of {n}", all.len())));
                }
                Err(stop) => return Err(stop),
            }
        }
        Ok(all)
    }

    /// Fails where the queue has a completion, or gets one within `quiet`.
    #[track_caller]
    pub(crate) fn nothing(&mut self, cq: &CompletionQueue, quiet: Duration) -> Verdict {
        match self.within(cq, quiet)? {
            Some(wc) => Err(Stop::failed(format!("an unexpected completion: {wc:?}"))),
            None => Ok(()),
        }
    }

    /// The completion that comes within `quiet`, if one does.
    pub(crate) fn within(&mut self, cq: &CompletionQueue, quiet: Duration) -> Verdict<Option<Wc>> {
        let mut wc = [Wc::default()];
        let came = cq.wait(&mut wc, self.until().min(Instant::now() + quiet))?;
        Ok((came > 0).then_some(wc[0]))
    }

    /// The next asynchronous event about `element`; those about other objects are dropped.
    #[track_caller]
    pub(crate) fn async_event(&mut self, element: EventElement) -> Verdict<AsyncEvent> {
        let context = self.context.clone();
        self.wait("an asynchronous event", || {
            let event = context.next_async_event(Instant::now())?;
            Ok(event.filter(|event| event.element == element))
        })
    }

    /// Fails where an asynchronous event of this kind about `element` comes within `quiet`.
    #[track_caller]
    pub(crate) fn no_async_event(&mut self, unwanted: AsyncEvent, quiet: Duration) -> Verdict {
        let until = self.until().min(Instant::now() + quiet);
        while let Some(event) = self.context.next_async_event(until)? {
            if event == unwanted {
                return Err(Stop::failed(format!("an unexpected event: {event:?}")));
            }
        }
        Ok(())
    }
}
