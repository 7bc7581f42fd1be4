//! The image of one process back into memory: read where it is whole, else rebuilt from its group.

use super::distant::Distant;
use super::held::Held;
use super::member_of;
use super::whole::{Whole, seal};
use crate::epoch::{Epoch, Holding, Member, Origin, Slot, StoreId};
use crate::image::{self, Source};
use crate::redundancy::rebuild::{Rebuild, Survivors};
use crate::redundancy::{Answer, Image, Missing, Placement, Plan, plan};
use crate::restore::{Copy, ReadReport, Recovered, area_places};
use crate::session::{Restored, StoreAt};
use crate::store::Client;
use crate::{Error, Layout, PAGE, Result, store};
use sojourn_fabric::names::{JobKey, ProcessId};
use sojourn_fabric::virt::ProtectionDomain;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The store that an [`Origin`] names where memory was rebuilt: no store, whose slot could be equal to it.
pub const REBUILT: StoreId = StoreId(0);
/// How long a store may take to be connected to.
const CONNECT: Duration = Duration::from_secs(2);

/// What restoring needs to know. Stores are named in the placement by where they listen.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    /// The device by which stores are reached.
    pub device: &'a str,
    /// Their key.
    pub key: &'a JobKey,
    /// Who is in which group, and which store holds what.
    pub placement: &'a Placement,
    /// Every store that may have something.
    pub stores: &'a [StoreAt],
    /// Threads, where an image is read.
    pub lanes: usize,
    /// The memory that is given is zeros already.
    pub fresh: bool,
}

/// What could be rebuilt of each process without its own image, as if a store had it: its epochs in the words, the
/// newest two. `heard` is what stores have of processes and of shares of parity.
///
/// A recovery takes this for one more store ([`REBUILT`]).
#[must_use]
pub fn rebuildable(
    placement: &Placement,
    heard: &BTreeMap<Member, Vec<Holding>>,
) -> BTreeMap<Member, Holding> {
    let held = |member: Member| heard.get(&member).map_or(&[][..], Vec::as_slice);
    let has = |member: Member, epoch: Epoch| {
        held(member).iter().any(|holding| holding.slot_of(epoch).is_some())
    };
    let mut all = BTreeMap::new();
    for group in 0..placement.groups() {
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        let shares: Vec<Member> =
            (0..placement.scheme().parity()).map(|index| member_of(number, index)).collect();
        let mut parity = shares.iter().flat_map(|share| held(*share));
        let Some(first) = parity.next().copied() else { continue };
        let (mut most, mut epochs) = (first, first.words.to_vec());
        for holding in parity {
            most.incarnation = most.incarnation.max(holding.incarnation);
            most.committed = most.committed.max(holding.committed);
            epochs.extend(holding.words);
        }
        epochs.sort_unstable_by(|one, two| two.cmp(one));
        epochs.dedup();
        let members = placement.members(group);
        for own in members {
            let enough = |epoch: &&Epoch| {
                let images =
                    members.iter().filter(|it| *it != own && has(Member(it.0.into()), **epoch));
                let parity = shares.iter().filter(|share| has(**share, **epoch));
                epoch.is_some() && images.count() + parity.count() >= members.len()
            };
            let mut epochs = epochs.iter().filter(enough).copied();
            let mut next = || epochs.next().unwrap_or(Epoch::NONE);
            let words = [next(), next()];
            if words[0].is_some() {
                all.insert(Member(own.0.into()), Holding { words, ..most });
            }
        }
    }
    all
}

/// Reads the image of a process of this epoch into memory that `place` names, once it has seen what there is. Where
/// it is lost or damaged, it is rebuilt. Every chunk is checked.
///
/// # Safety
/// The areas that `place` names are mapped, writable, and used by nobody else until this returns.
///
/// # Errors
/// `ENODATA` where too much is missing: the message names each share that is. What `place` says, and `EINVAL` where it
/// names other areas than those of the snapshot.
pub unsafe fn restore(
    options: &Restore<'_>,
    process: ProcessId,
    epoch: Epoch,
    mut place: impl FnMut(&image::Slot) -> Result<Layout>,
) -> Result<Recovered> {
    let group = options.placement.group_of(process).ok_or_else(|| {
        Error::new(libc::ENOENT, format!("{process} is not one of those that were placed"))
    })?;
    let mut survey = Survey::new(options, group, epoch)?;
    let own = options.placement.members(group).iter().position(|it| *it == process);
    let own = own.unwrap_or_default();
    let mut damaged = String::new();
    if let Some((at, distant, share)) = survey.shares[own].take() {
        drop((distant, share));
        let store = &options.stores[at];
        // SAFETY: the caller's promise.
        match unsafe { read(options, store, process, epoch, &mut place) } {
            Ok(recovered) => return Ok(recovered),
            Err(error) if error.errno() == libc::EINVAL => return Err(error),
            Err(error) => {
                tracing::warn!("{process} is rebuilt: {error}");
                damaged = format!("; its image on store {}: {error}", store.at);
            }
        }
    }
    let step = Plan::new(options.placement, epoch.0, &survey.answers()).step(process).cloned();
    let lost = |missing: &Missing| {
        let wrong: String = survey.wrong.iter().map(|why| format!("; {why}")).collect();
        let text = format!("{epoch}: {missing}{wrong}{damaged}");
        Error::new(libc::ENODATA, text)
    };
    let step = match step {
        Some(plan::Step::Missing(missing)) => return Err(lost(&missing)),
        Some(step) => step,
        None => return Err(Error::new(libc::EIO, format!("{process} has no place in a plan"))),
    };
    let rebuild = Rebuild::new(options.placement.scheme(), &step)?;
    let plan::Step::Rebuild { image, .. } = step else {
        return Err(Error::new(libc::EIO, format!("{process} is not one to be rebuilt")));
    };
    // SAFETY: the caller's promise.
    unsafe { into_memory(survey, rebuild, image, options.fresh, &mut place) }
        .map_err(|error| error.context(format_args!("rebuilding {process}, {epoch}{damaged}")))
}

/// # Safety
/// As [`restore`].
unsafe fn read(
    options: &Restore<'_>,
    store: &StoreAt,
    process: ProcessId,
    epoch: Epoch,
    place: &mut impl FnMut(&image::Slot) -> Result<Layout>,
) -> Result<Recovered> {
    let Restore { device, key, lanes, fresh, .. } = *options;
    let member = Member(process.0.into());
    let pd = store::device(device)?.alloc_pd()?;
    let gone = || Error::new(libc::ENODATA, format!("{epoch} is not there any more"));
    let slot = Distant::open(&pd, key, &store.at, member)?.slot_of(epoch)?.ok_or_else(gone)?;
    let mut copy = Copy::open(device, key, store, member, slot, lanes)?;
    if copy.slot().stamp().epoch != epoch.0 {
        return Err(gone());
    }
    let to = place(copy.slot())?;
    // SAFETY: the caller's promise.
    let report = unsafe { copy.read(&to, fresh) }?;
    Ok(recovered(copy.slot(), Origin { epoch, store: store.id, slot }, report))
}

fn recovered(slot: &image::Slot, origin: Origin, report: ReadReport) -> Recovered {
    Recovered {
        restored: Restored { origin, pages: slot.pages().clone() },
        windows: slot.windows().to_vec(),
        layout: slot.layout().clone(),
        report,
    }
}

/// # Safety
/// As [`restore`].
unsafe fn into_memory(
    survey: Survey,
    rebuild: Rebuild,
    image: Image,
    fresh: bool,
    place: &mut impl FnMut(&image::Slot) -> Result<Layout>,
) -> Result<Recovered> {
    const CHUNKS: usize = Rebuild::STRIPE / PAGE;
    let since = Instant::now();
    let source = Rebuilt { image, inner: RefCell::new((rebuild, survey)) };
    let slot = image::Slot::open(&source)?;
    let mut header = vec![0; PAGE];
    source.read(0, &mut header)?;
    let stamp = *slot.stamp();
    if seal(&header, stamp.incarnation.0) != image.seal || stamp.process != image.process {
        let text = "what was rebuilt is not the image that its parity is of";
        return Err(Error::new(libc::EBADMSG, text));
    }
    let to = area_places(slot.layout(), &place(&slot)?)?;
    let mut stripe = vec![0; Rebuild::STRIPE];
    let mut bytes = 0;
    for area in 0..to.areas().len() {
        let own = to.chunks_of(area);
        for start in own.clone().step_by(CHUNKS) {
            let chunks = start..own.end.min(start + CHUNKS);
            let Some((_, memory)) = to.pieces(chunks.clone()).next() else { continue };
            let zeros = slot.pages().entries()[chunks.clone()].iter().all(|it| it.is_zero());
            if zeros && fresh {
                continue;
            }
            let into = &mut stripe[..memory.len()];
            slot.read(&source, chunks, into)?;
            bytes += if zeros { 0 } else { into.len() as u64 };
            // SAFETY: an area that the caller has given; the stripe is memory of our own.
            unsafe {
                std::ptr::copy_nonoverlapping(into.as_ptr(), memory.start as *mut u8, into.len());
            }
        }
    }
    let origin = Origin { epoch: Epoch(image.epoch), store: REBUILT, slot: Slot::A };
    Ok(recovered(&slot, origin, ReadReport { bytes, took: since.elapsed() }))
}

/// An image that is rebuilt where it is read.
struct Rebuilt {
    image: Image,
    inner: RefCell<(Rebuild, Survey)>,
}

impl Source for Rebuilt {
    fn bytes(&self) -> usize {
        usize::try_from(self.image.bytes).unwrap_or(usize::MAX)
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        let end = at.checked_add(into.len()).filter(|end| *end <= self.bytes());
        let Some(end) = end else {
            let (wanted, has) = (into.len(), self.bytes());
            return Err(Error::invalid(format!("{wanted} bytes from {at:#x} of {has} bytes")));
        };
        let (rebuild, survey) = &mut *self.inner.borrow_mut();
        let mut stripe = vec![0; into.len().next_multiple_of(PAGE).min(Rebuild::STRIPE) + PAGE];
        let mut from = at;
        while from < end {
            let first = from / PAGE;
            let to = end.min(first * PAGE + Rebuild::STRIPE);
            let chunks = first..to.div_ceil(PAGE);
            let whole = &mut stripe[..chunks.len() * PAGE];
            rebuild.stripe(chunks, survey, whole)?;
            into[from - at..to - at].copy_from_slice(&whole[from - first * PAGE..][..to - from]);
            from = to;
        }
        Ok(())
    }
}

enum Share {
    Image(Box<Whole>),
    Parity(Box<Held>),
}

/// What there is of one group and epoch.
struct Survey {
    /// Each store that answers, by where it listens; the others are none.
    stores: Vec<Option<String>>,
    /// The shares in their order, each with the store that it is on.
    shares: Vec<Option<(usize, Distant, Share)>>,
    /// Shares that are there, and cannot be used.
    wrong: Vec<String>,
    count: u64,
}

impl Survey {
    fn new(options: &Restore<'_>, group: usize, epoch: Epoch) -> Result<Survey> {
        let Restore { device, key, placement, stores, .. } = *options;
        let pd = store::device(device)?.alloc_pd()?;
        let answers = |store: &StoreAt| {
            let until = Instant::now() + CONNECT;
            Client::connect(&store.at, key, until).ok().map(|_| store.at.to_string())
        };
        let alive: Vec<Option<String>> = stores.iter().map(answers).collect();
        let members = placement.members(group).to_vec();
        let many = members.len();
        let mut survey = Survey { stores: alive, shares: vec![], wrong: vec![], count: 0 };
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        for (share, _, first) in placement.shares(group) {
            let member = match members.get(share.index) {
                Some(process) => Member(process.0.into()),
                None => member_of(number, share.index - many),
            };
            // Where it ought to be, and then wherever it may have gone.
            let mut order: Vec<usize> =
                (0..stores.len()).filter(|at| survey.stores[*at].is_some()).collect();
            order.sort_by_key(|at| survey.stores[*at].as_deref() != Some(first));
            let is_image = share.index < many;
            let mut found = None;
            for at in order {
                match open((&pd, key), &stores[at], member, epoch, is_image) {
                    Ok(Some((distant, it))) => {
                        found = Some((at, distant, it));
                        break;
                    }
                    Ok(None) => {}
                    Err(error) if error.errno() == libc::ENOENT => {}
                    Err(error) => survey.wrong.push(error.to_string()),
                }
            }
            survey.shares.push(found);
        }
        Ok(survey)
    }

    fn answers(&self) -> Vec<Answer> {
        let named = |(at, name): (usize, &Option<String>)| {
            let mut answer = Answer { store: name.clone()?, ..Answer::default() };
            for (_, _, share) in self.shares.iter().flatten().filter(|(of, _, _)| *of == at) {
                match share {
                    Share::Image(whole) => answer.images.push(whole.image()),
                    Share::Parity(held) => answer.parity.push(held.header().clone()),
                }
            }
            Some(answer)
        };
        self.stores.iter().enumerate().filter_map(named).collect()
    }
}

fn open(
    (pd, key): (&ProtectionDomain, &JobKey),
    store: &StoreAt,
    member: Member,
    epoch: Epoch,
    is_image: bool,
) -> Result<Option<(Distant, Share)>> {
    let distant = Distant::open(pd, key, &store.at, member)?;
    let share = if is_image {
        Whole::open(&distant, member, epoch)?.map(|it| Share::Image(Box::new(it)))
    } else {
        Held::open(&distant, epoch)?.map(|it| Share::Parity(Box::new(it)))
    };
    Ok(share.map(|share| (distant, share)))
}

impl Survivors for Survey {
    fn read(&mut self, share: usize, chunks: Range<usize>, into: &mut [u8]) -> Result<bool> {
        match self.shares.get(share).and_then(Option::as_ref) {
            Some((_, distant, Share::Image(whole))) => {
                whole.read(distant, chunks.start * PAGE, into, &mut self.count)
            }
            Some((_, distant, Share::Parity(held))) => {
                held.read(distant, chunks, into).map(|()| true)
            }
            None => Err(Error::new(libc::ENODATA, format!("share {share} is lost"))),
        }
    }
}
