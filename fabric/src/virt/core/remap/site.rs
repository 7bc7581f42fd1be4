//! Everything of a context on one more device, or not any more.

use crate::error::{Error, Result};
use crate::names::DeviceId;
use crate::virt::core::context::VirtualContext;
use crate::virt::core::mr::VirtualMr;
use crate::virt::core::underlay::Underlay;
use std::sync::Arc;

/// Protection domains, channels, CQs and regions get a physical side on `underlay`. Where one cannot
/// have it, none has.
///
/// # Errors
/// The first that failed, with what it was.
pub(super) fn extend(context: &VirtualContext, underlay: &Arc<Underlay>) -> Result<()> {
    extend_all(context, underlay).inspect_err(|_| {
        // What has nothing there lets go of nothing.
        retract(context, underlay.id);
    })
}

fn extend_all(context: &VirtualContext, underlay: &Arc<Underlay>) -> Result<()> {
    let name = underlay.device.name();
    let failed = |what: &str| {
        let text = format!("{name}: {what}");
        move |error: Error| error.context(text)
    };
    context.add_underlay(underlay).map_err(failed("its events"))?;
    for pd in context.pds.alive() {
        pd.extend(underlay).map_err(failed("a protection domain"))?;
    }
    for channel in context.channels.alive() {
        channel.extend(underlay).map_err(failed("a completion channel"))?;
    }
    for cq in context.cqs.alive() {
        cq.extend(underlay).map_err(failed("a completion queue"))?;
    }
    let mrs = context.mrs.alive();
    for (at, mr) in mrs.iter().enumerate() {
        mr.extend(underlay).map_err(|error| error.context(not_pinned(&mrs, at, name)))?;
    }
    Ok(())
}

/// What could not be registered once more, and what all of it takes.
fn not_pinned(mrs: &[Arc<VirtualMr>], at: usize, device: &str) -> String {
    let (key, length) = mrs[at].describe();
    let total: usize = mrs.iter().map(|mr| mr.describe().1).sum();
    format!(
        "{device}: memory region {key:#x} of {length} bytes ({} of {}; while a context moves, all of its \
         {total} registered bytes are pinned twice)",
        at + 1,
        mrs.len()
    )
}

/// Leaves the devices that nothing is on any more: a peer had gone there, and has come back. Tried only.
pub(super) fn leave_unused(context: &VirtualContext) {
    let is_idle = |underlay: &&Arc<Underlay>| !underlay.is_used();
    if !context.underlays().iter().skip(1).any(|it| is_idle(&it)) {
        return;
    }
    let Some(_unsettled) = context.try_unsettle() else { return };
    for idle in context.underlays().iter().skip(1).filter(is_idle) {
        retract(context, idle.id);
    }
}

/// Nothing of the context is on that device any more. No queue pair is there.
pub(super) fn retract(context: &VirtualContext, device: DeviceId) {
    for ah in context.ahs.alive() {
        ah.retract(device);
    }
    for cq in context.cqs.alive() {
        cq.retract(device);
    }
    for channel in context.channels.alive() {
        channel.retract(device);
    }
    for mr in context.mrs.alive() {
        if let Err(error) = mr.retract(device) {
            tracing::warn!("a region stays registered on a device that was left: {error}");
        }
    }
    for pd in context.pds.alive() {
        pd.retract(device);
    }
    context.remove_underlay(device);
    let local = context.local();
    local.peer(local.grant().process).forget_device(device);
}
