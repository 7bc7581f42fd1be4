//! What devices lack, or do in a way of their own, with the reason: the one table that makes a
//! case not applicable.

use crate::caps::{Caps, Layer};
use sojourn_fabric::abi;
use sojourn_fabric::device::Kind;

/// The vendor id that rxe reports (the kernel's `rxe_param.h`).
const RXE_VENDOR: u32 = 0x00ff_ffff;

/// Something that a case needs and a device may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// FETCH_ADD and CMP_SWAP.
    Atomics,
    /// Shared receive queues.
    Srq,
    /// A LID, and completions that name the sender's.
    Lid,
    /// Datagrams without a GRH.
    WithoutGrh,
    /// A receive that is posted in ERR completes with a flush.
    FlushOfLateReceives,
    /// A request whose opcode the QP type does not have is refused when posted.
    RefusesOpcodes,
    /// LAST_WQE_REACHED when a QP on an SRQ goes to ERR.
    LastWqe,
    /// QP_ACCESS_ERR at the responder after a remote access error.
    AccessErrorEvent,
    /// A request whose own memory is not as it says ends with LOC_PROT_ERR.
    LocalErrorStatus,
    /// A receive that is too small, or not writable, ends with a status of its own, and the
    /// request with the matching one.
    ReceiveErrorStatus,
    /// Destroying a QP takes its completions out of its CQ.
    CleansCq,
    /// CQ_ERR when a completion finds its CQ full.
    CqOverrun,
    /// A QP whose CQ was overrun goes to ERR.
    CqOverrunStopsQps,
    /// `rq_psn` of `query_qp` is the responder's expected number at that moment.
    LivePsn,
    /// A queue key with its top bit set stands for the sender's own.
    OwnQkey,
    /// A retry count of 7 is seven.
    SevenRetries,
    /// A completion that is an error counts as solicited.
    ErrorIsSolicited,
    /// A request that fails here does not keep out the acknowledgements of those before it.
    AcksAfterLocalError,
    /// Requests posted in SQD go on with RTS.
    GoesOnAfterSqd,
    /// SQ_DRAINED when the send queue has drained in SQD.
    SqDrained,
    /// Where a WRITE_WITH_IMM of several packets over UC finds no receive, later messages arrive.
    UcGoesOnAfterCutWrite,
    /// Attribute values beyond the device's limits are refused.
    ChecksAttributeValues,
}

/// Which device a side runs on, as far as the table tells devices apart.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    model: Model,
    layer: Layer,
    /// Version of the kernel: drivers change with it.
    kernel: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Rxe,
    Other,
}

impl Subject {
    pub(crate) fn of(kind: Kind, vendor_id: u32, layer: Layer) -> Self {
        let rxe = kind == Kind::Hca && vendor_id == RXE_VENDOR;
        let model = if rxe { Model::Rxe } else { Model::Other };
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Subject { model, layer, kernel: version(&release) }
    }
}

/// The first two numbers of a kernel release; 0 for what cannot be read.
fn version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// A row of the table.
struct Quirk {
    model: Model,
    feature: Feature,
    /// What the device does instead.
    reason: &'static str,
    /// Over the raw device alone: virtual verbs make up for it.
    raw_only: bool,
    /// On kernels before this one.
    before: (u32, u32),
    /// On kernels from this one on.
    since: (u32, u32),
}

impl Quirk {
    const fn rxe(feature: Feature, reason: &'static str) -> Self {
        let before = (u32::MAX, 0);
        Quirk { model: Model::Rxe, feature, reason, raw_only: false, before, since: (0, 0) }
    }

    const fn raw_only(self) -> Self {
        Quirk { raw_only: true, ..self }
    }

    const fn before(self, major: u32, minor: u32) -> Self {
        Quirk { before: (major, minor), ..self }
    }

    const fn since(self, major: u32, minor: u32) -> Self {
        Quirk { since: (major, minor), ..self }
    }

    fn applies(&self, subject: &Subject, feature: Feature) -> bool {
        self.feature == feature
            && self.model == subject.model
            && !(self.raw_only && subject.layer == Layer::Virtual)
            && (self.since..self.before).contains(&subject.kernel)
    }
}

/// What is known of devices, measured on Debian's kernels 6.1 and 6.12.
const QUIRKS: &[Quirk] = &[
    Quirk::rxe(
        Feature::FlushOfLateReceives,
        "rxe before Linux 6.12 never flushes a receive that is posted after its QP went to ERR, and \
         6.12 not always",
    )
    .raw_only(),
    Quirk::rxe(
        Feature::RefusesOpcodes,
        "rxe takes every opcode when posting; the request fails when it is executed",
    ),
    Quirk::rxe(Feature::LastWqe, "rxe before Linux 6.12 raises no LAST_WQE_REACHED").before(6, 12),
    Quirk::rxe(Feature::AccessErrorEvent, "rxe moves the responder to ERR without QP_ACCESS_ERR"),
    Quirk::rxe(
        Feature::LocalErrorStatus,
        "rxe ends such a request with LOC_QP_OP_ERR (6.1) or WR_FLUSH_ERR (6.12)",
    ),
    Quirk::rxe(
        Feature::ReceiveErrorStatus,
        "rxe ends the receive with LOC_QP_OP_ERR or without a word, and the request with \
         REM_OP_ERR",
    ),
    Quirk::rxe(
        Feature::CleansCq,
        "rxe before Linux 6.12 leaves the flushes of a destroyed QP in the CQ",
    )
    .raw_only()
    .before(6, 12),
    Quirk::rxe(Feature::CqOverrunStopsQps, "rxe drops the completion and lets the QPs go on"),
    Quirk::rxe(Feature::OwnQkey, "rxe sends the queue key of the request as it is"),
    Quirk::rxe(
        Feature::GoesOnAfterSqd,
        "rxe does not look at its send queue when it goes from SQD to RTS",
    ),
    Quirk::rxe(
        Feature::SqDrained,
        "rxe before Linux 6.12 looks for the end of draining only while it has work to do",
    )
    .before(6, 12),
    Quirk::rxe(
        Feature::AcksAfterLocalError,
        "rxe drops what a peer answers after a request has failed here: 6.1 ends no request then, \
         and 6.12 flushes those before it",
    ),
    Quirk::rxe(Feature::SevenRetries, "rxe takes a retry count of 7 for one without end")
        .raw_only(),
    Quirk::rxe(Feature::ErrorIsSolicited, "rxe from Linux 6.12 on raises no event for a flush")
        .since(6, 12),
    Quirk::rxe(
        Feature::UcGoesOnAfterCutWrite,
        "rxe waits for the last packet of a WRITE over UC that it has dropped, and drops all others",
    ),
    Quirk::rxe(Feature::ChecksAttributeValues, "rxe stores some attribute values unseen"),
];

/// Why `feature` is not to be had on this device; `None` where it is.
pub(crate) fn lacking(subject: &Subject, caps: &Caps, feature: Feature) -> Option<String> {
    const GROWS: &str = "a virtual CQ has a backlog that grows: it is never overrun";
    let layer = subject.layer;
    let by_capability = match feature {
        Feature::Atomics if caps.device.atomic_cap == abi::atomic_cap::NONE => {
            Some("the device has no atomics (atomic_cap is NONE)")
        }
        Feature::Srq if caps.device.max_srq == 0 => {
            Some("the device has no shared receive queues (max_srq is 0)")
        }
        Feature::Lid if caps.port.lid == 0 => Some("the port has no LID"),
        Feature::WithoutGrh if caps.global() => {
            Some("the port is addressed by GID, so every datagram carries a GRH")
        }
        Feature::CqOverrun | Feature::CqOverrunStopsQps if layer == Layer::Virtual => Some(GROWS),
        _ => None,
    };
    let row = || QUIRKS.iter().find(|quirk| quirk.applies(subject, feature));
    by_capability.or_else(|| row().map(|quirk| quirk.reason)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_read_by_its_first_two_numbers() {
        assert_eq!(version("6.12.117+deb13-amd64\n"), (6, 12));
        assert_eq!(version("6.1.0-49-amd64"), (6, 1));
        assert_eq!(version(""), (0, 0));
    }

    #[test]
    fn a_row_applies_to_its_device_layer_and_kernels_alone() {
        let subject =
            |vendor, layer, kernel| Subject { kernel, ..Subject::of(Kind::Hca, vendor, layer) };
        let lacks =
            |subject: &Subject| QUIRKS.iter().any(|row| row.applies(subject, Feature::CleansCq));
        assert!(lacks(&subject(RXE_VENDOR, Layer::Raw, (6, 1))));
        assert!(!lacks(&subject(RXE_VENDOR, Layer::Raw, (6, 12))));
        assert!(!lacks(&subject(RXE_VENDOR, Layer::Virtual, (6, 1))));
        assert!(!lacks(&subject(0x15b3, Layer::Raw, (6, 1))));
    }
}
