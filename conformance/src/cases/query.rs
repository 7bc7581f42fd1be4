//! What a device says of itself.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    one(
        "query.device",
        "The device has a limit for everything, and says the same twice (ibv_query_device(3))",
        device,
    ),
    one(
        "query.port",
        "Port 1 is ACTIVE, with an MTU and an address; ports that are not there are refused \
         (ibv_query_port(3))",
        port,
    ),
    one(
        "query.gid",
        "The port has a GID, and an index beyond its table is refused (ibv_query_gid(3))",
        gid,
    ),
    one(
        "query.pkey",
        "The port has a partition key at index 0, and none beyond its table (ibv_query_pkey(3))",
        pkey,
    ),
];

fn device(side: &mut Side) -> Verdict {
    let first = side.context().query_device()?;
    for (what, value) in [
        ("max_qp", first.max_qp),
        ("max_qp_wr", first.max_qp_wr),
        ("max_sge", first.max_sge),
        ("max_cq", first.max_cq),
        ("max_cqe", first.max_cqe),
        ("max_mr", first.max_mr),
        ("max_pd", first.max_pd),
        ("max_ah", first.max_ah),
        ("max_qp_rd_atom", first.max_qp_rd_atom),
        ("max_qp_init_rd_atom", first.max_qp_init_rd_atom),
    ] {
        ensure(value > 0, &format!("{what} is {value}"))?;
    }
    ensure(first.max_mr_size > 0, "max_mr_size is 0")?;
    ensure(first.phys_port_cnt > 0, "the device has no port")?;
    ensure(first.max_pkeys > 0, "max_pkeys is 0")?;
    let second = side.context().query_device()?;
    same("node_guid, asked again,", second.node_guid, first.node_guid)?;
    same("max_qp_wr, asked again,", second.max_qp_wr, first.max_qp_wr)
}

fn port(side: &mut Side) -> Verdict {
    let device = side.context().query_device()?;
    let port = side.context().query_port(1)?;
    same("the state of port 1", abi::port_state::name(port.state), "ACTIVE")?;
    let (active, most) = (abi::mtu_bytes(port.active_mtu), abi::mtu_bytes(port.max_mtu));
    ensure(active.is_some() && most.is_some(), "an MTU is none of the five that there are")?;
    ensure(active <= most, "active_mtu exceeds max_mtu")?;
    ensure(port.gid_tbl_len > 0, "the port has no GID table")?;
    ensure(port.pkey_tbl_len > 0, "the port has no partition key table")?;
    ensure(port.max_msg_sz >= active.unwrap_or(0), "max_msg_sz is less than the MTU")?;
    match port.link_layer {
        abi::link_layer::INFINIBAND => {
            ensure((1..=0xbfff).contains(&port.lid), "the LID is no unicast LID (IBTA 4.1.3)")?;
        }
        abi::link_layer::ETHERNET => same("the LID of an Ethernet port", port.lid, 0)?,
        other => return Err(Stop::failed(format!("link layer {other}"))),
    }
    refused("port 0", side.context().query_port(0), &[libc::EINVAL])?;
    if let Some(beyond) = device.phys_port_cnt.checked_add(1) {
        refused("a port beyond the last", side.context().query_port(beyond), &[libc::EINVAL])?;
    }
    Ok(())
}

fn gid(side: &mut Side) -> Verdict {
    let device = side.context().device();
    let gid = device.query_gid(1, device.best_gid_index(1)?)?;
    ensure(gid.0 != [0; 16], "the GID is all zero")?;
    let beyond = u32::try_from(side.caps().port.gid_tbl_len).unwrap_or(0);
    refused("a GID beyond the table", device.query_gid(1, beyond), &[])?;
    refused("a GID of port 0", device.query_gid(0, 0), &[])
}

fn pkey(side: &mut Side) -> Verdict {
    let device = side.context().device();
    let key = u16::from_be(device.query_pkey(1, 0)?);
    ensure(key & 0x7fff != 0, "the partition key at index 0 is none")?;
    let beyond = u32::from(side.caps().port.pkey_tbl_len);
    refused("a partition key beyond the table", device.query_pkey(1, beyond), &[])
}
