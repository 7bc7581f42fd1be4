//! Address handles.

use super::pd::HcaPd;
use super::raw::{self, Handle};
use crate::abi::{self, link_layer};
use crate::device::{DeviceAh, DeviceContext};
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

pub(super) struct HcaAh {
    pd: Arc<HcaPd>,
    raw: Handle<abi::Ah>,
}

impl HcaAh {
    pub(super) fn create(pd: Arc<HcaPd>, attr: &abi::AhAttr) -> Result<Self> {
        let mut copy = *attr;
        // SAFETY: the domain exists, and the attributes are valid.
        let created = unsafe { (pd.context.verbs.ibv_create_ah)(pd.raw.ptr(), &raw mut copy) };
        let raw = raw::created(created).map_err(|errno| refused(&pd, errno, attr))?;
        Ok(HcaAh { pd, raw })
    }
}

fn refused(pd: &HcaPd, errno: i32, attr: &abi::AhAttr) -> Error {
    let (context, port) = (&pd.context, attr.port_num);
    let table = match context.query_port(port) {
        Ok(table) => table,
        Err(error) => return error.context("creating an address handle"),
    };
    let doing = format!("creating an address handle on port {port} of {}", context.name);
    let reason = if attr.is_global == 0 && table.link_layer == link_layer::ETHERNET {
        "an Ethernet port (RoCE) needs a GID: is_global is 0".into()
    } else if attr.is_global != 0 && i32::from(attr.grh.sgid_index) >= table.gid_tbl_len {
        format!("sgid_index {} is beyond its {} GIDs", attr.grh.sgid_index, table.gid_tbl_len)
    } else if attr.is_global != 0 {
        format!("to GID {} from GID index {}", attr.grh.dgid, attr.grh.sgid_index)
    } else {
        format!("to LID {}", attr.dlid)
    };
    Error::new(errno, format!("{}: {reason}", raw::error(errno, doing)))
}

impl Drop for HcaAh {
    fn drop(&mut self) {
        // SAFETY: the handle exists. (Providers copy its contents into the requests that use it.)
        let answer = unsafe { (self.pd.context.verbs.ibv_destroy_ah)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("an AH of {}", self.pd.context.name));
    }
}

impl DeviceAh for HcaAh {
    fn as_raw(&self) -> *mut c_void {
        self.raw.ptr().cast()
    }
}
