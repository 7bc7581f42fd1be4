//! Why a creation failed: what was asked for, beside what the device allows.

use super::context::HcaContext;
use super::raw;
use crate::Error;
use crate::abi::DeviceAttr;
use std::fmt;

/// Something asked for that a field of [`DeviceAttr`] bounds.
pub(super) struct Ask {
    pub(super) what: &'static str,
    pub(super) asked: u64,
    pub(super) limit: &'static str,
    pub(super) allowed: fn(&DeviceAttr) -> i32,
}

impl Ask {
    fn excess(&self, attr: &DeviceAttr) -> Option<String> {
        let allowed = (self.allowed)(attr);
        let fits = u64::try_from(allowed).is_ok_and(|allowed| self.asked <= allowed);
        (!fits).then(|| {
            format!("{} {} is beyond the device's {} {allowed}", self.what, self.asked, self.limit)
        })
    }
}

/// The error of a creation that the device refused. `most` names the field that bounds how many
/// such objects there can be.
pub(super) fn refused(
    context: &HcaContext,
    errno: i32,
    doing: impl fmt::Display,
    asks: &[Ask],
    most: (&str, fn(&DeviceAttr) -> i32),
) -> Error {
    let error = raw::error(errno, format_args!("{doing} on {}", context.name));
    match context.device_attr() {
        Ok(attr) => {
            Error::new(errno, format!("{error}; {}", verdict(&attr, asks, most.0, most.1(&attr))))
        }
        Err(_) => error,
    }
}

fn verdict(attr: &DeviceAttr, asks: &[Ask], most: &str, number: i32) -> String {
    let beyond: Vec<String> = asks.iter().filter_map(|ask| ask.excess(attr)).collect();
    if !beyond.is_empty() {
        return beyond.join("; ");
    }
    let limits: Vec<String> = asks
        .iter()
        .map(|ask| format!("{} {} of {}", ask.what, ask.asked, (ask.allowed)(attr)))
        .chain([format!("{most} {number}")])
        .collect();
    format!("within the device's limits: {}", limits.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi;

    /// Promise: a creation that asks too much names what, how much, and the limit.
    #[test]
    fn what_exceeds_is_named() {
        // SAFETY: the struct holds integers only.
        let mut attr: abi::DeviceAttr = unsafe { std::mem::zeroed() };
        (attr.max_qp_wr, attr.max_sge, attr.max_qp) = (100, 4, 7);
        let ask = |asked| Ask {
            what: "max_send_wr",
            asked,
            limit: "max_qp_wr",
            allowed: |attr| attr.max_qp_wr,
        };
        assert_eq!(
            verdict(&attr, &[ask(101)], "max_qp", attr.max_qp),
            "max_send_wr 101 is beyond the device's max_qp_wr 100"
        );
        assert_eq!(
            verdict(&attr, &[ask(100)], "max_qp", attr.max_qp),
            "within the device's limits: max_send_wr 100 of 100, max_qp 7"
        );
    }
}
