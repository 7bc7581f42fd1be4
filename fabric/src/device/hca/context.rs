//! An opened device.

use super::channel::HcaChannel;
use super::cq::HcaCq;
use super::pd::HcaPd;
use super::raw::{self, Handle};
use super::{events, gid};
use crate::abi::{self, Verbs, VerbsContext, link_layer};
use crate::device::{
    AsyncEvent, CqInit, DeviceChannel, DeviceContext, DeviceCq, DevicePd, Kind, PdInit,
};
use crate::{Error, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub(super) struct HcaContext {
    pub(super) verbs: &'static Verbs,
    pub(super) raw: Handle<abi::Context>,
    pub(super) name: String,
}

impl HcaContext {
    pub(super) fn new(
        verbs: &'static Verbs,
        raw: Handle<abi::Context>,
        name: String,
    ) -> Result<Self> {
        let context = HcaContext { verbs, raw, name };
        if context.async_fd_number() < 0 {
            let text = format!("device \"{}\" has no asynchronous events", context.name);
            return Err(Error::new(libc::EIO, text));
        }
        set_nonblocking(context.async_fd())
            .map_err(|error| error.context(format_args!("opening \"{}\"", context.name)))?;
        Ok(context)
    }

    fn async_fd_number(&self) -> i32 {
        // SAFETY: the context is open, and this field is set once, at opening.
        unsafe { (*self.raw.ptr()).async_fd }
    }

    /// Completion vectors are numbered below this.
    pub(super) fn comp_vectors(&self) -> i32 {
        // SAFETY: the context is open, and this field is set once, at opening.
        unsafe { (*self.raw.ptr()).num_comp_vectors }
    }

    pub(super) fn device_attr(&self) -> Result<abi::DeviceAttr> {
        // SAFETY: the struct holds integers only.
        let mut attr: abi::DeviceAttr = unsafe { zeroed() };
        // SAFETY: the context is open, and the attributes are of the type that the man page asks.
        let answer = unsafe { (self.verbs.ibv_query_device)(self.raw.ptr(), &raw mut attr) };
        raw::status(answer)
            .map_err(|errno| raw::error(errno, format_args!("querying device {}", self.name)))?;
        Ok(attr)
    }

    fn port_attr(&self, port: u8) -> std::result::Result<abi::PortAttr, i32> {
        let mut attr = abi::PortAttr::default();
        // SAFETY: the context is open.
        let answer = match unsafe { VerbsContext::op(self.raw.ptr(), VerbsContext::QUERY_PORT) } {
            // SAFETY: the context is open; the length says how much may be written.
            Some(query) => unsafe {
                query(self.raw.ptr(), port, &raw mut attr, size_of::<abi::PortAttr>())
            },
            // SAFETY: the context is open; this old form writes a front part of the struct.
            None => unsafe { (self.verbs.ibv_query_port)(self.raw.ptr(), port, &raw mut attr) },
        };
        raw::status(answer).map(|()| attr)
    }

    /// `EINVAL` for what the device does not have, with what it has.
    fn table_error(&self, errno: i32, what: &str, port: u8, index: u32) -> Error {
        let name = &self.name;
        let attr = match self.query_port(port) {
            Ok(attr) => attr,
            Err(error) => return error,
        };
        let len = match what {
            "GID" => attr.gid_tbl_len,
            _ => i32::from(attr.pkey_tbl_len),
        };
        if i64::from(index) >= i64::from(len) {
            return Error::invalid(format!(
                "port {port} of {name} has no {what} {index}: its table has {len} entries"
            ));
        }
        raw::error(errno, format_args!("querying {what} {index} of port {port} of {name}"))
    }

    fn gid_table(&self) -> Result<Vec<abi::GidEntry>> {
        let ports = self.device_attr()?.phys_port_cnt;
        let entries: i64 = (1..=ports)
            .filter_map(|port| self.port_attr(port).ok())
            .map(|attr| i64::from(attr.gid_tbl_len))
            .sum();
        let mut table = vec![abi::GidEntry::default(); usize::try_from(entries).unwrap_or(0)];
        // SAFETY: the context is open; the table has room for as many entries as is said, of the
        // size that is said.
        let found = unsafe {
            (self.verbs._ibv_query_gid_table)(
                self.raw.ptr(),
                table.as_mut_ptr(),
                table.len(),
                0,
                size_of::<abi::GidEntry>(),
            )
        };
        let found = usize::try_from(found).map_err(|_| {
            let errno = i32::try_from(-found).unwrap_or(libc::EIO);
            raw::error(errno, format_args!("querying the GIDs of {}", self.name))
        })?;
        table.truncate(found);
        Ok(table)
    }
}

impl Drop for HcaContext {
    fn drop(&mut self) {
        // SAFETY: the context is open, and all that was created from it held it and is gone.
        let answer = unsafe { (self.verbs.ibv_close_device)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("the context of {}", self.name));
    }
}

impl DeviceContext for HcaContext {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Hca
    }

    fn query_device(&self) -> Result<abi::DeviceAttr> {
        self.device_attr()
    }

    fn query_port(&self, port: u8) -> Result<abi::PortAttr> {
        self.port_attr(port).map_err(|errno| match self.device_attr() {
            Ok(attr) if port == 0 || port > attr.phys_port_cnt => Error::invalid(format!(
                "{} has no port {port}; its ports are 1 to {}",
                self.name, attr.phys_port_cnt
            )),
            _ => raw::error(errno, format_args!("querying port {port} of {}", self.name)),
        })
    }

    fn query_gid(&self, port: u8, index: u32) -> Result<abi::Gid> {
        let mut gid = abi::Gid::default();
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: the context is open, and the GID has the 16 bytes that are written.
        let answer =
            unsafe { (self.verbs.ibv_query_gid)(self.raw.ptr(), port, number, &raw mut gid) };
        raw::status(answer).map_err(|errno| self.table_error(errno, "GID", port, index))?;
        Ok(gid)
    }

    fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
        let mut pkey = 0;
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: the context is open, and the key has the 2 bytes that are written.
        let answer =
            unsafe { (self.verbs.ibv_query_pkey)(self.raw.ptr(), port, number, &raw mut pkey) };
        raw::status(answer).map_err(|errno| self.table_error(errno, "P_Key", port, index))?;
        Ok(pkey)
    }

    fn best_gid_index(&self, port: u8) -> Result<u32> {
        if self.query_port(port)?.link_layer != link_layer::ETHERNET {
            return Ok(0);
        }
        Ok(gid::best(&self.gid_table()?, port))
    }

    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
        Ok(Arc::new(HcaPd::alloc(self, init)?))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        Ok(Arc::new(HcaChannel::create(self)?))
    }

    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        Ok(Arc::new(HcaCq::create(self, init)?))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context is, and is not negative
        // (`HcaContext::new`).
        unsafe { BorrowedFd::borrow_raw(self.async_fd_number()) }
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        events::take(self)
    }
}

/// Makes reads of a descriptor return `EAGAIN` where they would block.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let set = || {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
    };
    set().map(drop).map_err(|errno| raw::error(errno as i32, "setting O_NONBLOCK"))
}
