//! `sojourn devices`: what this machine has.

use super::packet_number::PacketNumber;
use super::{Failure, Outcome};
use serde::Serialize;
use sojourn::abi::{self, atomic_cap, link_layer, port_state};
use sojourn::device::{Device, DeviceContext};
use std::fmt::Write;

/// List the RDMA devices of this machine
///
/// Those of libibverbs come first, then the soft ones, which every machine has.
#[derive(Debug, clap::Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the limits of each device, too
    #[arg(short, long)]
    verbose: bool,
    /// Only this device
    #[arg(short, long, value_name = "NAME")]
    device: Option<String>,
}

/// A device as it is printed.
#[derive(Serialize)]
struct Description {
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    opened: Option<Opened>,
}

#[derive(Serialize)]
struct Opened {
    firmware: String,
    node_guid: String,
    packet_number: PacketNumber,
    limits: Limits,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Limits {
    max_qp: i32,
    max_qp_wr: i32,
    max_sge: i32,
    max_cq: i32,
    max_cqe: i32,
    max_mr: i32,
    max_mr_size: u64,
    max_pd: i32,
    max_ah: i32,
    max_srq: i32,
    max_srq_wr: i32,
    max_qp_rd_atom: i32,
    max_qp_init_rd_atom: i32,
    atomics: &'static str,
}

#[derive(Serialize)]
struct Port {
    port: u8,
    state: &'static str,
    link_layer: &'static str,
    lid: u16,
    sm_lid: u16,
    gid: String,
    gid_index: u32,
    max_mtu: u32,
    active_mtu: u32,
    max_message: u32,
}

/// Prints the devices.
pub(crate) fn run(args: &DevicesArgs) -> Outcome {
    let mut all = sojourn::device::list();
    if let Some(name) = &args.device {
        let names: Vec<String> = all.iter().map(|device| device.name().to_owned()).collect();
        all.retain(|device| device.name() == name);
        if all.is_empty() {
            return Err(Failure::new(format!(
                "device \"{name}\" not found; this machine has: {}",
                names.join(", ")
            )));
        }
    }
    let all: Vec<Description> = all.iter().map(|device| describe(&**device)).collect();
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&all)
            .map_err(|error| Failure::new(format!("writing JSON: {error}")))?;
        text.push('\n');
        text
    } else {
        let parts: Vec<String> = all.iter().map(|device| device.text(args.verbose)).collect();
        parts.join("\n")
    };
    super::print(&text)
}

fn describe(device: &dyn Device) -> Description {
    let (opened, error) = match device.open().and_then(|context| open(&*context)) {
        Ok(opened) => (Some(opened), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Description { name: device.name().to_owned(), kind: device.kind().as_str(), error, opened }
}

fn open(context: &dyn DeviceContext) -> sojourn::Result<Opened> {
    let attr = context.query_device()?;
    let ports = (1..=attr.phys_port_cnt).map(|number| port(context, number));
    let firmware = attr.fw_ver.split(|&byte| byte == 0).next().unwrap_or_default();
    let guid = attr.node_guid.to_ne_bytes();
    let guid: Vec<String> =
        guid.chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
    Ok(Opened {
        firmware: String::from_utf8_lossy(firmware).into_owned(),
        node_guid: guid.join(":"),
        packet_number: PacketNumber::new(sojourn::trial::known(context).as_ref()),
        limits: Limits {
            max_qp: attr.max_qp,
            max_qp_wr: attr.max_qp_wr,
            max_sge: attr.max_sge,
            max_cq: attr.max_cq,
            max_cqe: attr.max_cqe,
            max_mr: attr.max_mr,
            max_mr_size: attr.max_mr_size,
            max_pd: attr.max_pd,
            max_ah: attr.max_ah,
            max_srq: attr.max_srq,
            max_srq_wr: attr.max_srq_wr,
            max_qp_rd_atom: attr.max_qp_rd_atom,
            max_qp_init_rd_atom: attr.max_qp_init_rd_atom,
            atomics: atomic_cap::name(attr.atomic_cap),
        },
        ports: ports.collect::<sojourn::Result<_>>()?,
    })
}

fn port(context: &dyn DeviceContext, port: u8) -> sojourn::Result<Port> {
    let attr = context.query_port(port)?;
    let gid_index = context.best_gid_index(port)?;
    let mtu = |value| abi::mtu_bytes(value).unwrap_or(0);
    Ok(Port {
        port,
        state: port_state::name(attr.state),
        link_layer: match attr.link_layer {
            link_layer::INFINIBAND => "InfiniBand",
            link_layer::ETHERNET => "Ethernet",
            _ => "unspecified",
        },
        lid: attr.lid,
        sm_lid: attr.sm_lid,
        gid: context.query_gid(port, gid_index)?.to_string(),
        gid_index,
        max_mtu: mtu(attr.max_mtu),
        active_mtu: mtu(attr.active_mtu),
        max_message: attr.max_msg_sz,
    })
}

impl Description {
    fn text(&self, verbose: bool) -> String {
        let mut text = format!("{}\n", self.name);
        let mut line = |depth: usize, name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{:depth$}{name:<width$}{value}", "", width = 26 - depth);
        };
        line(2, "kind", &self.kind);
        if let Some(error) = &self.error {
            line(2, "error", error);
        }
        let Some(opened) = &self.opened else { return text };
        line(2, "firmware", &opened.firmware);
        line(2, "node GUID", &opened.node_guid);
        line(2, "packet number", &opened.packet_number.text());
        if verbose {
            let limits = &opened.limits;
            line(2, "max_qp", &limits.max_qp);
            line(2, "max_qp_wr", &limits.max_qp_wr);
            line(2, "max_sge", &limits.max_sge);
            line(2, "max_cq", &limits.max_cq);
            line(2, "max_cqe", &limits.max_cqe);
            line(2, "max_mr", &limits.max_mr);
            line(2, "max_mr_size", &limits.max_mr_size);
            line(2, "max_pd", &limits.max_pd);
            line(2, "max_ah", &limits.max_ah);
            line(2, "max_srq", &limits.max_srq);
            line(2, "max_srq_wr", &limits.max_srq_wr);
            line(2, "max_qp_rd_atom", &limits.max_qp_rd_atom);
            line(2, "max_qp_init_rd_atom", &limits.max_qp_init_rd_atom);
            line(2, "atomics", &limits.atomics);
        }
        for port in &opened.ports {
            line(2, "port", &port.port);
            line(4, "state", &port.state);
            line(4, "link layer", &port.link_layer);
            line(4, "LID", &port.lid);
            line(4, "GID", &format!("{} (index {})", port.gid, port.gid_index));
            line(4, "MTU", &format!("{} of {}", port.active_mtu, port.max_mtu));
            if verbose {
                line(4, "SM LID", &port.sm_lid);
                line(4, "max message", &port.max_message);
            }
        }
        text
    }
}
