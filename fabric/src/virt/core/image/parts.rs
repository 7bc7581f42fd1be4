//! The parts of an image, as they are written.

use crate::abi::{self, AhAttr, Gid, GlobalRoute, QpAttr, QpCap, Wc};
use crate::names::{JobId, ProcessId};
use serde::{Deserialize, Serialize};
use sojourn_logging::{Element, Opcode, Past, SendEntry};

/// A context.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct Image {
    pub(in crate::virt::core) identity: IdentityImage,
    pub(in crate::virt::core) names: NamesImage,
    /// The active MTU of the first port ([`abi::mtu`]): how long a datagram may be.
    pub(in crate::virt::core) mtu: u32,
    pub(in crate::virt::core) pds: Vec<PdImage>,
    pub(in crate::virt::core) regions: Vec<RegionImage>,
    pub(in crate::virt::core) channels: Vec<ChannelImage>,
    pub(in crate::virt::core) cqs: Vec<CqImage>,
    pub(in crate::virt::core) srqs: Vec<SrqImage>,
    pub(in crate::virt::core) ahs: Vec<AddressHandleImage>,
    pub(in crate::virt::core) qps: Vec<QpImage>,
    /// That the program has not taken.
    pub(in crate::virt::core) events: Vec<EventImage>,
}

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct IdentityImage {
    pub(in crate::virt::core) job: JobId,
    pub(in crate::virt::core) process: ProcessId,
    pub(in crate::virt::core) incarnation: u32,
}

impl Default for IdentityImage {
    fn default() -> Self {
        IdentityImage { job: JobId(0), process: ProcessId(1), incarnation: 1 }
    }
}

/// What the process has dealt, under all of its contexts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct NamesImage {
    pub(in crate::virt::core) qpns: Dealt,
    pub(in crate::virt::core) keys: Dealt,
    /// Numbers of openings of devices.
    pub(in crate::virt::core) devices: u32,
    /// The last number of an address handle.
    pub(in crate::virt::core) last_ah: u32,
}

/// How far a dealer of names has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct Dealt {
    /// Indices from here on were never dealt.
    pub(in crate::virt::core) next: u32,
    /// Those that were given back, in that order.
    pub(in crate::virt::core) resting: Vec<u32>,
    /// The generation that each index is dealt with next; beyond the end, 0.
    pub(in crate::virt::core) generations: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct PdImage {
    pub(in crate::virt::core) single_threaded: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct RegionImage {
    pub(in crate::virt::core) key: u32,
    pub(in crate::virt::core) pd: u32,
    pub(in crate::virt::core) addr: u64,
    pub(in crate::virt::core) length: u64,
    pub(in crate::virt::core) access: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct ChannelImage {
    /// Events that the program has not taken: the `user` values of their CQs.
    pub(in crate::virt::core) ready: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct CqImage {
    pub(in crate::virt::core) user: u64,
    pub(in crate::virt::core) cqe: u32,
    pub(in crate::virt::core) channel: Option<u32>,
    pub(in crate::virt::core) single_threaded: bool,
    /// As in `cq::armed`.
    pub(in crate::virt::core) armed: u32,
    /// Completions that the program has not taken. Their entries have left the windows.
    pub(in crate::virt::core) unread: Vec<CompletionImage>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct SrqImage {
    pub(in crate::virt::core) pd: u32,
    pub(in crate::virt::core) user: u64,
    pub(in crate::virt::core) max_wr: u32,
    pub(in crate::virt::core) max_sge: u32,
    pub(in crate::virt::core) limit: u32,
    /// In the order in which they were posted.
    pub(in crate::virt::core) receives: Vec<ReceiveImage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct AddressHandleImage {
    /// As requests in windows name it.
    pub(in crate::virt::core) number: u32,
    pub(in crate::virt::core) pd: u32,
    pub(in crate::virt::core) to: AddressImage,
}

/// Where the other end of a queue pair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) enum Link {
    /// It is connected to none.
    #[default]
    Alone,
    /// The queue pair at that place of the image.
    Within(u32),
    /// It is connected to one of this process that is not connected back.
    Gone,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct QpImage {
    pub(in crate::virt::core) qpn: u32,
    pub(in crate::virt::core) qp_type: u32,
    /// In the order of [`QpCap`]'s fields.
    pub(in crate::virt::core) cap: [u32; 5],
    pub(in crate::virt::core) sig_all: bool,
    pub(in crate::virt::core) pd: u32,
    pub(in crate::virt::core) send_cq: u32,
    pub(in crate::virt::core) recv_cq: u32,
    pub(in crate::virt::core) srq: Option<u32>,
    pub(in crate::virt::core) state: u32,
    pub(in crate::virt::core) attr: AttrImage,
    pub(in crate::virt::core) link: Link,
    /// What completions say of the peer.
    pub(in crate::virt::core) remote: u64,
    /// The process and the queue pair that it has been connected to since it was in RESET.
    pub(in crate::virt::core) met: Option<(u32, u32)>,
    pub(in crate::virt::core) sends: SendsImage,
    pub(in crate::virt::core) recvs: RecvsImage,
}

/// The window of a send queue, and what is to be done with what was handed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct SendsImage {
    /// The sequence of the first entry.
    pub(in crate::virt::core) first: u64,
    /// So many of them were handed.
    pub(in crate::virt::core) handed: u32,
    pub(in crate::virt::core) past: Option<Past>,
    pub(in crate::virt::core) entries: Vec<RequestImage>,
    /// Those that were executed, by their places: their completions are still to come.
    pub(in crate::virt::core) executed: Vec<u32>,
    /// Those that are to be done again, and without how many of their leading bytes.
    pub(in crate::virt::core) replays: Vec<(u32, u32)>,
    /// At ERR: from where on the entries fail with that status; or are flushed, those behind it.
    pub(in crate::virt::core) failing: Option<Failing>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct Failing {
    /// The sequence of the request that has failed.
    pub(in crate::virt::core) first: u64,
    /// Its status.
    pub(in crate::virt::core) status: u32,
}

/// A request in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct RequestImage {
    pub(in crate::virt::core) wr_id: u64,
    /// As verbs number it.
    pub(in crate::virt::core) opcode: u8,
    pub(in crate::virt::core) flags: u16,
    pub(in crate::virt::core) imm: u32,
    pub(in crate::virt::core) remote_addr: u64,
    pub(in crate::virt::core) rkey: u32,
    pub(in crate::virt::core) qkey: u32,
    pub(in crate::virt::core) compare_add: u64,
    pub(in crate::virt::core) swap: u64,
    pub(in crate::virt::core) elements: Vec<ElementImage>,
    pub(in crate::virt::core) inline: Vec<u8>,
}

impl RequestImage {
    pub(in crate::virt::core) fn new(
        entry: &SendEntry,
        elements: Vec<ElementImage>,
        inline: Vec<u8>,
    ) -> Self {
        RequestImage {
            wr_id: entry.wr_id,
            opcode: entry.opcode as u8,
            flags: entry.flags,
            imm: entry.imm,
            remote_addr: entry.remote_addr,
            rkey: entry.rkey,
            qkey: entry.qkey,
            compare_add: entry.compare_add,
            swap: entry.swap,
            elements,
            inline,
        }
    }

    /// As a window has it; `None` where no window has such a request.
    pub(in crate::virt::core) fn entry(&self) -> Option<SendEntry> {
        let opcode = Opcode::from_verbs(self.opcode.into()).filter(|it| *it != Opcode::SendInv)?;
        Some(SendEntry {
            wr_id: self.wr_id,
            opcode,
            flags: self.flags,
            imm: self.imm,
            remote_addr: self.remote_addr,
            rkey: self.rkey,
            qkey: self.qkey,
            compare_add: self.compare_add,
            swap: self.swap,
            ..SendEntry::empty()
        })
    }
}

/// The window of a receive queue, and what its queue pair has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct RecvsImage {
    /// The sequence of the first entry.
    pub(in crate::virt::core) first: u64,
    pub(in crate::virt::core) entries: Vec<ReceiveImage>,
    /// Receives that were consumed before it was connected.
    pub(in crate::virt::core) base: u64,
    /// Receives that have come back empty since.
    pub(in crate::virt::core) unfilled: u64,
    /// Messages delivered since, where its receives are shared.
    pub(in crate::virt::core) delivered: u64,
    /// Bytes that the next receive lacks in its completion, because its request was cut.
    pub(in crate::virt::core) mend: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct ReceiveImage {
    pub(in crate::virt::core) wr_id: u64,
    pub(in crate::virt::core) elements: Vec<ElementImage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct ElementImage(pub(super) u64, pub(super) u32, pub(super) u32);

impl From<Element> for ElementImage {
    fn from(it: Element) -> Self {
        ElementImage(it.addr, it.length, it.lkey)
    }
}

impl From<ElementImage> for Element {
    fn from(ElementImage(addr, length, lkey): ElementImage) -> Self {
        Element { addr, length, lkey }
    }
}

/// An address vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct AddressImage {
    dgid: [u8; 16],
    flow_label: u32,
    sgid_index: u8,
    hop_limit: u8,
    traffic_class: u8,
    dlid: u16,
    sl: u8,
    src_path_bits: u8,
    static_rate: u8,
    is_global: u8,
    port_num: u8,
}

impl From<&AhAttr> for AddressImage {
    fn from(it: &AhAttr) -> Self {
        AddressImage {
            dgid: it.grh.dgid.0,
            flow_label: it.grh.flow_label,
            sgid_index: it.grh.sgid_index,
            hop_limit: it.grh.hop_limit,
            traffic_class: it.grh.traffic_class,
            dlid: it.dlid,
            sl: it.sl,
            src_path_bits: it.src_path_bits,
            static_rate: it.static_rate,
            is_global: it.is_global,
            port_num: it.port_num,
        }
    }
}

impl From<&AddressImage> for AhAttr {
    fn from(it: &AddressImage) -> Self {
        AhAttr {
            grh: GlobalRoute {
                dgid: Gid(it.dgid),
                flow_label: it.flow_label,
                sgid_index: it.sgid_index,
                hop_limit: it.hop_limit,
                traffic_class: it.traffic_class,
            },
            dlid: it.dlid,
            sl: it.sl,
            src_path_bits: it.src_path_bits,
            static_rate: it.static_rate,
            is_global: it.is_global,
            port_num: it.port_num,
        }
    }
}

/// What a program sets of a queue pair, beside its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct AttrImage {
    path_mtu: u32,
    qkey: u32,
    rq_psn: u32,
    sq_psn: u32,
    dest_qp_num: u32,
    qp_access_flags: u32,
    to: AddressImage,
    pkey_index: u16,
    max_rd_atomic: u8,
    max_dest_rd_atomic: u8,
    min_rnr_timer: u8,
    port_num: u8,
    timeout: u8,
    retry_cnt: u8,
    rnr_retry: u8,
}

impl AttrImage {
    pub(in crate::virt::core) fn new(it: &QpAttr) -> Self {
        AttrImage {
            path_mtu: it.path_mtu,
            qkey: it.qkey,
            rq_psn: it.rq_psn,
            sq_psn: it.sq_psn,
            dest_qp_num: it.dest_qp_num,
            qp_access_flags: it.qp_access_flags,
            to: (&it.ah_attr).into(),
            pkey_index: it.pkey_index,
            max_rd_atomic: it.max_rd_atomic,
            max_dest_rd_atomic: it.max_dest_rd_atomic,
            min_rnr_timer: it.min_rnr_timer,
            port_num: it.port_num,
            timeout: it.timeout,
            retry_cnt: it.retry_cnt,
            rnr_retry: it.rnr_retry,
        }
    }

    /// With that state.
    pub(in crate::virt::core) fn attr(&self, qp_state: u32) -> QpAttr {
        QpAttr {
            qp_state,
            path_mtu: self.path_mtu,
            qkey: self.qkey,
            rq_psn: self.rq_psn,
            sq_psn: self.sq_psn,
            dest_qp_num: self.dest_qp_num,
            qp_access_flags: self.qp_access_flags,
            ah_attr: (&self.to).into(),
            pkey_index: self.pkey_index,
            max_rd_atomic: self.max_rd_atomic,
            max_dest_rd_atomic: self.max_dest_rd_atomic,
            min_rnr_timer: self.min_rnr_timer,
            port_num: self.port_num,
            timeout: self.timeout,
            retry_cnt: self.retry_cnt,
            rnr_retry: self.rnr_retry,
            ..QpAttr::default()
        }
    }
}

/// A completion, as the program is to get it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct CompletionImage {
    wr_id: u64,
    status: u32,
    opcode: u32,
    vendor_err: u32,
    byte_len: u32,
    imm_data: u32,
    qp_num: u32,
    src_qp: u32,
    wc_flags: u32,
    pkey_index: u16,
    slid: u16,
    sl: u8,
    dlid_path_bits: u8,
}

impl CompletionImage {
    pub(in crate::virt::core) fn new(it: &Wc) -> Self {
        CompletionImage {
            wr_id: it.wr_id,
            status: it.status,
            opcode: it.opcode,
            vendor_err: it.vendor_err,
            byte_len: it.byte_len,
            imm_data: it.imm_data,
            qp_num: it.qp_num,
            src_qp: it.src_qp,
            wc_flags: it.wc_flags,
            pkey_index: it.pkey_index,
            slid: it.slid,
            sl: it.sl,
            dlid_path_bits: it.dlid_path_bits,
        }
    }

    pub(in crate::virt::core) fn wc(&self) -> Wc {
        Wc {
            wr_id: self.wr_id,
            status: self.status,
            opcode: self.opcode,
            vendor_err: self.vendor_err,
            byte_len: self.byte_len,
            imm_data: self.imm_data,
            qp_num: self.qp_num,
            src_qp: self.src_qp,
            wc_flags: self.wc_flags,
            pkey_index: self.pkey_index,
            slid: self.slid,
            sl: self.sl,
            dlid_path_bits: self.dlid_path_bits,
        }
    }
}

/// Sizes, as they are written.
pub(in crate::virt::core) fn cap_image(cap: &QpCap) -> [u32; 5] {
    [cap.max_send_wr, cap.max_recv_wr, cap.max_send_sge, cap.max_recv_sge, cap.max_inline_data]
}

impl QpImage {
    pub(in crate::virt::core) fn cap(&self) -> QpCap {
        let [max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data] = self.cap;
        QpCap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
    }

    /// Bytes of its longest request.
    pub(in crate::virt::core) fn longest_message(&self) -> u64 {
        let length = |it: &RequestImage| {
            let bytes: u64 = it.elements.iter().map(|element| u64::from(element.1)).sum();
            bytes + it.inline.len() as u64
        };
        self.sends.entries.iter().map(length).max().unwrap_or(0)
    }

    /// It may send or receive.
    pub(in crate::virt::core) fn is_connected(&self) -> bool {
        matches!(self.state, abi::qp_state::RTR | abi::qp_state::RTS)
    }
}

/// An asynchronous event.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) struct EventImage {
    pub(in crate::virt::core) event_type: u32,
    pub(in crate::virt::core) about: About,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::virt::core) enum About {
    Qp(u32),
    Cq(u64),
    Srq(u64),
    Port(u8),
    Device,
}
