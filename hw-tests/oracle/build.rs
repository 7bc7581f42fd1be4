//! Lists what `fabric::abi` declares, from its sources, so that nothing is left out unnoticed:
//! every constant, paired with the enumerator of the same meaning, and the name of every type.

use std::path::Path;
use std::{env, fs};

/// How `rdma-sys` has the enumerators of a C enumeration.
enum Kind {
    /// Constants of a module of that name.
    Module(&'static str),
    /// Values of a newtype of that name, made for flags.
    Flags(&'static str),
    /// Variants of a Rust enumeration of that name.
    Enum(&'static str),
    /// Plain constants.
    Plain,
    /// It does not have them: the enumeration has no name, or they are macros.
    Absent,
}

/// Module of constants, prefix of its enumerators in C, and where `rdma-sys` has them.
const MODULES: &[(&str, &str, Kind)] = &[
    ("wr_opcode", "IBV_WR_", Kind::Module("ibv_wr_opcode")),
    ("send_flags", "IBV_SEND_", Kind::Flags("ibv_send_flags")),
    ("wc_status", "IBV_WC_", Kind::Module("ibv_wc_status")),
    ("wc_opcode", "IBV_WC_", Kind::Module("ibv_wc_opcode")),
    ("wc_flags", "IBV_WC_", Kind::Flags("ibv_wc_flags")),
    ("access", "IBV_ACCESS_", Kind::Flags("ibv_access_flags")),
    ("qp_type", "IBV_QPT_", Kind::Module("ibv_qp_type")),
    ("qp_state", "IBV_QPS_", Kind::Module("ibv_qp_state")),
    ("qp_mask", "IBV_QP_", Kind::Flags("ibv_qp_attr_mask")),
    ("mig_state", "IBV_MIG_", Kind::Module("ibv_mig_state")),
    ("mtu", "IBV_", Kind::Module("ibv_mtu")),
    ("port_state", "IBV_PORT_", Kind::Module("ibv_port_state")),
    ("link_layer", "IBV_LINK_LAYER_", Kind::Absent),
    ("port_flags", "IBV_QPF_", Kind::Absent),
    ("atomic_cap", "IBV_ATOMIC_", Kind::Module("ibv_atomic_cap")),
    ("device_cap", "IBV_DEVICE_", Kind::Flags("ibv_device_cap_flags")),
    ("gid_type", "IBV_GID_TYPE_", Kind::Plain),
    ("create_cq_wc_flags", "IBV_WC_EX_WITH_", Kind::Flags("ibv_create_cq_wc_flags")),
    ("cq_init_attr_mask", "IBV_CQ_INIT_ATTR_MASK_", Kind::Flags("ibv_cq_init_attr_mask")),
    ("create_cq_flags", "IBV_CREATE_CQ_ATTR_", Kind::Flags("ibv_create_cq_attr_flags")),
    ("srq_mask", "IBV_SRQ_", Kind::Flags("ibv_srq_attr_mask")),
    ("event_type", "IBV_EVENT_", Kind::Enum("ibv_event_type")),
];

fn main() {
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fabric/src/abi");
    println!("cargo::rerun-if-changed={}", abi.display());
    let mut constants = String::new();
    let mut types = String::new();
    for entry in fs::read_dir(&abi).expect("the sources of fabric::abi stand beside the oracle") {
        let path = entry.expect("the folder can be read").path();
        let source = fs::read_to_string(&path).expect("sources are text");
        let code: Vec<&str> =
            source.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
        for line in &code {
            if line.starts_with("pub struct ") || line.starts_with("pub union ") {
                let name: String = line
                    .split(' ')
                    .nth(2)
                    .expect("a name")
                    .chars()
                    .take_while(|c| c.is_alphanumeric())
                    .collect();
                types += &format!("{name:?}, ");
            }
        }
        // A call of the macro is the only thing that ends a line in this way.
        for block in code.join("\n").split("constants! {\n").skip(1) {
            constants += &constants_of(block);
        }
    }
    let list = format!(
        "/// Every constant.\n\
         #[allow(clippy::unnecessary_cast, reason = \"their types differ\")]\n\
         const CONSTANTS: &[Constant] = &[\n{constants}];\n\
         /// Every type.\nconst TYPES: &[&str] = &[{types}];\n"
    );
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("lists.rs");
    fs::write(out, list).expect("the list can be written");
}

/// The entries of one `module: type { NAME = value, … }`.
fn constants_of(block: &str) -> String {
    let (head, rest) = block.split_once('{').expect("a module has a body");
    let (body, _) = rest.split_once('}').expect("a body ends");
    let module = head.split(':').next().expect("a name").trim();
    let (_, prefix, kind) = MODULES
        .iter()
        .find(|(name, ..)| *name == module)
        .unwrap_or_else(|| panic!("tell build.rs which C enumeration abi::{module} is"));
    let names = body.split(',').filter_map(|item| item.split_once('='));
    names
        .map(|(name, _)| {
            let name = name.trim();
            let c = format!("{prefix}{name}");
            let theirs = match kind {
                Kind::Module(of) => format!("Some(rdma_sys::{of}::{c} as u64)"),
                Kind::Flags(of) => format!("Some(rdma_sys::{of}::{c}.0 as u64)"),
                Kind::Enum(of) => format!("Some(rdma_sys::{of}::{c} as u64)"),
                Kind::Plain => format!("Some(rdma_sys::{c} as u64)"),
                Kind::Absent => "None".into(),
            };
            format!(
                "Constant {{ name: \"{module}::{name}\", c: {c:?}, \
                 ours: abi::{module}::{name} as u64, rdma_sys: {theirs} }},\n"
            )
        })
        .collect()
}
