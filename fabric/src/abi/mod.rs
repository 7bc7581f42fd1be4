//! The C ABI of libibverbs, checked in.
//!
//! What is here mirrors `infiniband/verbs.h` of rdma-core (44 to 64, x86-64 and other LP64
//! Linux): layouts are `repr(C)`, and constant assertions pin every size and offset, so that
//! a slip is a compile error. `hw-tests/oracle` compares the same layouts with the headers
//! of the system.
//!
//! C enumerations are plain integers here, with their values in modules of constants
//! ([`wr_opcode`], [`wc_status`], …): a library may hand out a value newer than this file,
//! and a Rust `enum` of an unknown value would be undefined behaviour.
//!
//! The structs that a program passes to verbs (work requests, completions, attributes) are
//! the vocabulary of the whole crate: every device and the virtual layer speak them.

mod attr;
mod consts;
mod context;
mod object;
mod table;
mod work;

pub use attr::{
    AhAttr, DeviceAttr, Gid, GlobalRoute, Grh, PortAttr, QpAttr, QpCap, SrqAttr, SrqInitAttr,
};
pub use consts::*;
pub use context::{
    ABI_EXTENDED, AllocParentDomain, AllocTd, Context, ContextOps, CreateCqEx, DeallocTd,
    ExtendedOp, PollCq, PostRecvOp, PostSendOp, PostSrqRecv, QueryPortEx, ReqNotifyCq,
    VerbsContext,
};
pub use object::{
    Ah, AsyncElement, AsyncEvent, CompChannel, Cq, CqInitAttrEx, Device, GidEntry, Mr, Mw,
    ParentDomainAlloc, ParentDomainFree, ParentDomainInitAttr, Pd, Qp, QpInitAttr, SYSFS_NAME_MAX,
    SYSFS_PATH_MAX, Srq, Td, TdInitAttr,
};
pub use table::{SONAME, Verbs};
pub use work::{
    AtomicWr, BindMw, BindOrTso, ImmOrKey, MwBindInfo, RdmaWr, RecvWr, SendWr, Sge, Tso, UdWr, Wc,
    WrTarget,
};

/// Asserts at compile time that fields stand at given offsets, and that a struct has a given size.
macro_rules! layout {
    ($ty:ty, size $size:expr $(, $field:ident at $off:expr)* $(,)?) => {
        const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            $(assert!(core::mem::offset_of!($ty, $field) == $off);)*
        };
    };
}
pub(crate) use layout;
