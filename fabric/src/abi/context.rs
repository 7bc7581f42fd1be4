//! `struct ibv_context`, the functions behind its inlined verbs, and the extended context in
//! front of it.
//!
//! A program's `ibv_post_send`, `ibv_post_recv`, `ibv_post_srq_recv`, `ibv_poll_cq` and
//! `ibv_req_notify_cq` are inlined calls through [`ContextOps`]. Newer verbs go through
//! [`VerbsContext`], whose last field is the `ibv_context` that the program holds. It grows at
//! its *front*, so a field is found at its distance from the end, and it is there only if `sz`
//! says so: [`VerbsContext::op`] is the one way to reach a field.
//!
//! Layout source: `verbs.h` of rdma-core 44. rdma-core 64 puts more functions in front, and is
//! otherwise the same.

use super::{
    Cq, CqInitAttrEx, Device, ParentDomainInitAttr, Pd, PortAttr, Qp, RecvWr, SendWr, Srq, Td,
    TdInitAttr, Wc, layout,
};
use core::ffi::{c_int, c_void};
use core::mem::{offset_of, size_of};
use libc::pthread_mutex_t;

/// `poll_cq` of `struct ibv_context_ops`.
pub type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int;
/// `req_notify_cq` of `struct ibv_context_ops`.
pub type ReqNotifyCq = unsafe extern "C" fn(*mut Cq, c_int) -> c_int;
/// `post_srq_recv` of `struct ibv_context_ops`.
pub type PostSrqRecv = unsafe extern "C" fn(*mut Srq, *mut RecvWr, *mut *mut RecvWr) -> c_int;
/// `post_send` of `struct ibv_context_ops`.
pub type PostSendOp = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;
/// `post_recv` of `struct ibv_context_ops`.
pub type PostRecvOp = unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int;

/// `struct ibv_context_ops`. What begins with `_compat` is there for its place only; functions
/// that nothing here calls are untyped.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of verbs.h")]
pub struct ContextOps {
    pub _compat_query_device: *mut c_void,
    pub _compat_query_port: *mut c_void,
    pub _compat_alloc_pd: *mut c_void,
    pub _compat_dealloc_pd: *mut c_void,
    pub _compat_reg_mr: *mut c_void,
    pub _compat_rereg_mr: *mut c_void,
    pub _compat_dereg_mr: *mut c_void,
    pub alloc_mw: *mut c_void,
    pub bind_mw: *mut c_void,
    pub dealloc_mw: *mut c_void,
    pub _compat_create_cq: *mut c_void,
    pub poll_cq: Option<PollCq>,
    pub req_notify_cq: Option<ReqNotifyCq>,
    pub _compat_cq_event: *mut c_void,
    pub _compat_resize_cq: *mut c_void,
    pub _compat_destroy_cq: *mut c_void,
    pub _compat_create_srq: *mut c_void,
    pub _compat_modify_srq: *mut c_void,
    pub _compat_query_srq: *mut c_void,
    pub _compat_destroy_srq: *mut c_void,
    pub post_srq_recv: Option<PostSrqRecv>,
    pub _compat_create_qp: *mut c_void,
    pub _compat_query_qp: *mut c_void,
    pub _compat_modify_qp: *mut c_void,
    pub _compat_destroy_qp: *mut c_void,
    pub post_send: Option<PostSendOp>,
    pub post_recv: Option<PostRecvOp>,
    pub _compat_create_ah: *mut c_void,
    pub _compat_destroy_ah: *mut c_void,
    pub _compat_attach_mcast: *mut c_void,
    pub _compat_detach_mcast: *mut c_void,
    pub _compat_async_event: *mut c_void,
}

/// `struct ibv_context`: an opened device.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of verbs.h")]
pub struct Context {
    pub device: *mut Device,
    pub ops: ContextOps,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub mutex: pthread_mutex_t,
    /// [`ABI_EXTENDED`] where a [`VerbsContext`] surrounds this context.
    pub abi_compat: *mut c_void,
}

/// What `abi_compat` holds where a [`VerbsContext`] surrounds the context (all bits set).
pub const ABI_EXTENDED: usize = usize::MAX;

/// `query_port` of `struct verbs_context`; the last argument is the size of the attributes.
pub type QueryPortEx = unsafe extern "C" fn(*mut Context, u8, *mut PortAttr, usize) -> c_int;
/// `alloc_parent_domain` of `struct verbs_context`.
pub type AllocParentDomain =
    unsafe extern "C" fn(*mut Context, *mut ParentDomainInitAttr) -> *mut Pd;
/// `dealloc_td` of `struct verbs_context`.
pub type DeallocTd = unsafe extern "C" fn(*mut Td) -> c_int;
/// `alloc_td` of `struct verbs_context`.
pub type AllocTd = unsafe extern "C" fn(*mut Context, *mut TdInitAttr) -> *mut Td;
/// `create_cq_ex` of `struct verbs_context`; it returns a `struct ibv_cq_ex`, which begins as a
/// [`Cq`] does.
pub type CreateCqEx = unsafe extern "C" fn(*mut Context, *mut CqInitAttrEx) -> *mut Cq;

/// `struct verbs_context`. Functions that nothing here calls are untyped.
///
/// Never make a reference to one: a library older than this file has less of its front.
#[repr(C)]
#[allow(missing_docs, non_snake_case, reason = "the fields are those of verbs.h")]
pub struct VerbsContext {
    pub query_port: Option<QueryPortEx>,
    pub advise_mr: *mut c_void,
    pub alloc_null_mr: *mut c_void,
    pub read_counters: *mut c_void,
    pub attach_counters_point_flow: *mut c_void,
    pub create_counters: *mut c_void,
    pub destroy_counters: *mut c_void,
    pub reg_dm_mr: *mut c_void,
    pub alloc_dm: *mut c_void,
    pub free_dm: *mut c_void,
    pub modify_flow_action_esp: *mut c_void,
    pub destroy_flow_action: *mut c_void,
    pub create_flow_action_esp: *mut c_void,
    pub modify_qp_rate_limit: *mut c_void,
    pub alloc_parent_domain: Option<AllocParentDomain>,
    pub dealloc_td: Option<DeallocTd>,
    pub alloc_td: Option<AllocTd>,
    pub modify_cq: *mut c_void,
    pub post_srq_ops: *mut c_void,
    pub destroy_rwq_ind_table: *mut c_void,
    pub create_rwq_ind_table: *mut c_void,
    pub destroy_wq: *mut c_void,
    pub modify_wq: *mut c_void,
    pub create_wq: *mut c_void,
    pub query_rt_values: *mut c_void,
    pub create_cq_ex: Option<CreateCqEx>,
    pub r#priv: *mut c_void,
    pub query_device_ex: *mut c_void,
    pub ibv_destroy_flow: *mut c_void,
    pub ABI_placeholder2: *mut c_void,
    pub ibv_create_flow: *mut c_void,
    pub ABI_placeholder1: *mut c_void,
    pub open_qp: *mut c_void,
    pub create_qp_ex: *mut c_void,
    pub get_srq_num: *mut c_void,
    pub create_srq_ex: *mut c_void,
    pub open_xrcd: *mut c_void,
    pub close_xrcd: *mut c_void,
    pub _ABI_placeholder3: u64,
    /// Size of the whole struct in the library that made it.
    pub sz: usize,
    /// What the program holds a pointer to.
    pub context: Context,
}

/// A field of [`VerbsContext`] that holds a function: where it stands, and its type.
#[derive(Clone, Copy)]
pub struct ExtendedOp<F> {
    offset: usize,
    read: unsafe fn(*const VerbsContext) -> Option<F>,
}

macro_rules! extended_ops {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $field:ident;)*) => {$(
        $(#[$doc])*
        pub const $name: ExtendedOp<$ty> = ExtendedOp {
            offset: offset_of!(VerbsContext, $field),
            // SAFETY: the caller has seen that the library's struct has this field.
            read: |context| unsafe { (&raw const (*context).$field).read() },
        };
    )*};
}

impl VerbsContext {
    extended_ops! {
        /// The field `query_port`.
        QUERY_PORT: QueryPortEx = query_port;
        /// The field `alloc_parent_domain`.
        ALLOC_PARENT_DOMAIN: AllocParentDomain = alloc_parent_domain;
        /// The field `dealloc_td`.
        DEALLOC_TD: DeallocTd = dealloc_td;
        /// The field `alloc_td`.
        ALLOC_TD: AllocTd = alloc_td;
        /// The field `create_cq_ex`.
        CREATE_CQ_EX: CreateCqEx = create_cq_ex;
    }

    /// The function `op` of the extended context around `context`, or `None` where the library
    /// or the provider does not have it.
    ///
    /// # Safety
    /// `context` is an open context of a libibverbs.
    #[must_use]
    pub unsafe fn op<F>(context: *mut Context, op: ExtendedOp<F>) -> Option<F> {
        // SAFETY: the context is open, so its own fields may be read.
        if unsafe { (*context).abi_compat } as usize != ABI_EXTENDED {
            return None;
        }
        let whole: *const VerbsContext =
            context.wrapping_byte_sub(offset_of!(VerbsContext, context)).cast();
        // SAFETY: an extended context has `sz` immediately in front of the context.
        let size = unsafe { (&raw const (*whole).sz).read() };
        if size < size_of::<VerbsContext>() - op.offset {
            return None;
        }
        // SAFETY: the library's struct reaches from its end back to this field, as just checked.
        unsafe { (op.read)(whole) }
    }
}

const MUTEX: usize = size_of::<pthread_mutex_t>();

layout!(ContextOps, size 256, _compat_query_device at 0, alloc_mw at 56, poll_cq at 88,
    req_notify_cq at 96, post_srq_recv at 160, post_send at 200, post_recv at 208,
    _compat_async_event at 248);
layout!(Context, size 280 + MUTEX + 8, device at 0, ops at 8, cmd_fd at 264, async_fd at 268,
    num_comp_vectors at 272, mutex at 280, abi_compat at 280 + MUTEX);
layout!(VerbsContext, size 320 + size_of::<Context>(), query_port at 0,
    alloc_parent_domain at 112, dealloc_td at 120, alloc_td at 128, create_cq_ex at 200,
    r#priv at 208, query_device_ex at 216, create_qp_ex at 264, _ABI_placeholder3 at 304,
    sz at 312, context at 320);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::zeroed;

    unsafe extern "C" fn alloc_td(_: *mut Context, _: *mut TdInitAttr) -> *mut Td {
        core::ptr::null_mut()
    }

    /// A context as a library makes one, with one function filled in.
    fn library_context(size: usize) -> Box<VerbsContext> {
        // SAFETY: integers, null pointers and `None`s are all zero; so are an unused mutex's bytes.
        let mut whole: Box<VerbsContext> = Box::new(unsafe { zeroed() });
        whole.context.abi_compat = ABI_EXTENDED as *mut c_void;
        whole.sz = size;
        whole.alloc_td = Some(alloc_td);
        whole
    }

    fn finds<F>(whole: &mut VerbsContext, op: ExtendedOp<F>) -> bool {
        let context = (&raw mut *whole).wrapping_byte_add(offset_of!(VerbsContext, context)).cast();
        // SAFETY: the context lies in a whole VerbsContext, and the pointer comes from it.
        unsafe { VerbsContext::op(context, op) }.is_some()
    }

    /// Promise: a function of the extended context is used only where the library has it.
    #[test]
    fn extended_functions_need_the_size_and_the_pointer() {
        let mut whole = library_context(size_of::<VerbsContext>());
        assert!(finds(&mut whole, VerbsContext::ALLOC_TD));
        assert!(!finds(&mut whole, VerbsContext::DEALLOC_TD), "the pointer is null");

        let up_to_it = size_of::<VerbsContext>() - offset_of!(VerbsContext, alloc_td);
        assert!(finds(&mut library_context(up_to_it), VerbsContext::ALLOC_TD));
        assert!(!finds(&mut library_context(up_to_it - 8), VerbsContext::ALLOC_TD));

        whole.sz = size_of::<VerbsContext>() + 64;
        assert!(finds(&mut whole, VerbsContext::ALLOC_TD), "a newer library is larger");

        whole.context.abi_compat = core::ptr::null_mut();
        assert!(!finds(&mut whole, VerbsContext::ALLOC_TD), "not an extended context");
    }
}
