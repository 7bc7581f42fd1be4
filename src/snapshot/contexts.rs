//! Memory that devices write, and the contexts of these devices.

use super::{Area, Attach, Mapping, Snapshots, Windows};
use crate::Result;
use crate::verbs::{Context, MemoryRegion};
use std::sync::Arc;

/// Who keeps an area mapped.
pub(super) enum Owner {
    /// Memory of a program.
    Mapping(#[expect(dead_code, reason = "kept for its drop")] Arc<Mapping>),
    /// Registered memory.
    Region(#[expect(dead_code, reason = "kept for its drop")] Arc<MemoryRegion>),
    /// The caller, as it has promised.
    Caller,
}

impl Snapshots {
    /// From now on this context, with its peers' ends of its connections, stands still while the last of an epoch is
    /// sent ([`Context::suspend`]), and what devices have written for it is part of the epoch: so memory that is
    /// registered with it can be protected ([`Self::protect_region`]). Every context that writes into protected
    /// memory is attached. It has been opened with `SOJOURN_TRACK_WRITES=1`, and so have those of its peers: a peer that
    /// does not track may have written anything that it is allowed to, each time.
    ///
    /// A peer goes on by itself after 30 s; an epoch whose last round takes longer is given up, and says so.
    ///
    /// # A rank that is restored with its windows
    ///
    /// With [`Attach::Windows`] requests that were posted and not executed, posted receives, completions that were not
    /// polled, counters and names are part of the epoch, too. Both ends of each connection of such a context are its
    /// own: the moments at which ranks stand still are not one cut through the job yet, so what is between two ranks
    /// cannot be brought back on both sides, and the epoch is given up by name. A context with connections to others is
    /// attached with [`Attach::Memory`], and they are made anew after [`Self::restored`].
    ///
    /// A rank comes back with its windows so: its regions' memory lies at the same addresses in each life; it is
    /// protected, and restored, before there is a context; then the context is made from the windows, and attached.
    ///
    /// ```no_run
    /// use sojourn::snapshot::{Area, Attach, Mapping, Options, Snapshots};
    /// use sojourn::{Job, abi::access};
    /// use std::{mem::ManuallyDrop, ptr::NonNull, sync::Arc};
    ///
    /// # fn main() -> sojourn::Result<()> {
    /// /// Far from where the kernel puts what may lie anywhere.
    /// const AT: usize = 0x2000_0000_0000;
    /// const BYTES: usize = 1 << 20;
    ///
    /// let job = Job::from_env()?;
    /// let options = Options::from_env()?.expect("SOJOURN_STORES names the stores");
    /// let mut snapshots = Snapshots::new(&job, options)?;
    /// // The region is going to be its owner.
    /// let mapping = ManuallyDrop::new(Mapping::new(BYTES, Some(AT))?);
    /// // SAFETY: it stays mapped as long as the region, which outlives the snapshots.
    /// unsafe { snapshots.protect_area(Area { id: 0, addr: AT, bytes: BYTES }) }?;
    /// let epoch = snapshots.restored()?;
    /// let (context, region) = match snapshots.windows().and_then(|windows| windows.of(0)) {
    ///     Some(windows) => {
    ///         // SAFETY: the memory was restored just now, and is the region's alone.
    ///         let mut restored = unsafe { job.restore_context(windows) }?;
    ///         let key = restored.regions().next().expect("it had one").key;
    ///         (restored.context(), restored.take_region(key).expect("it begins with a page"))
    ///         // Queue pairs are taken by their numbers, and so on.
    ///     }
    ///     None => {
    ///         let context = job.context()?;
    ///         let base = NonNull::new(mapping.addr() as *mut u8).expect("it is mapped");
    ///         // SAFETY: a mapping that is nobody else's.
    ///         let region = unsafe { context.alloc_pd()?.adopt(base, BYTES, access::LOCAL_WRITE) };
    ///         (context, region?)
    ///     }
    /// };
    /// snapshots.attach(&context, Attach::Windows)?;
    /// # drop(region); Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `EOPNOTSUPP` where it is not one of virtual verbs, or does not track what devices write; `EINVAL` where it is
    /// attached already.
    pub fn attach(&mut self, context: &Context, what: Attach) -> Result<()> {
        self.contexts.attach(context, what)
    }

    /// This context does not stand still any more: before it goes, or once no protected memory is registered with it.
    /// Contexts that were attached later move up by one place. False where it was not attached.
    pub fn detach(&mut self, context: &Context) -> bool {
        self.contexts.detach(context)
    }

    /// Registered memory is part of every epoch from now on, as [`Self::protect`] says. Its context is to be
    /// [attached](Self::attach) before anybody else writes there.
    ///
    /// # Errors
    /// As [`Self::protect`].
    pub fn protect_region(&mut self, id: u32, region: &Arc<MemoryRegion>) -> Result<()> {
        let area = Area { id, addr: region.addr() as usize, bytes: region.len() };
        self.add(area, Owner::Region(Arc::clone(region)))
    }

    /// The same for memory of the caller's own.
    ///
    /// # Safety
    /// It stays mapped, readable and writable as long as this value is there. While [`Self::restored`] runs nobody else
    /// writes it, and no reference to it is in use.
    ///
    /// # Errors
    /// As [`Self::protect`].
    pub unsafe fn protect_area(&mut self, area: Area) -> Result<()> {
        self.add(area, Owner::Caller)
    }

    /// The windows of the epoch that [`Self::restored`] has brought memory back to: of the contexts that were attached
    /// then, in that order. `None` where the job began.
    #[must_use]
    pub fn windows(&self) -> Option<&Windows> {
        self.windows.as_ref()
    }
}
