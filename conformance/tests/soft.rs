//! Every case on the soft device, and on virtual verbs over it.

mod common;

use common::{VIRTUAL_LACKS, all, job, open, paced};
use sojourn_conformance::{Layer, Node};
use sojourn_fabric::device::{DeviceContext, soft};
use sojourn_fabric::names::JobKey;
use sojourn_fabric::names::env::KEY_FILE;
use sojourn_fabric::virt::Process;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Once};

/// What the raw soft device lacks: nothing.
const RAW_LACKS: &[&str] = &[];

fn raw(context: Arc<dyn DeviceContext>) -> Node {
    Node { context, layer: Layer::Raw }
}

#[test]
fn a_context_with_itself_passes_every_case() {
    let node = raw(open(soft::Options::default()));
    all(&node, &node, RAW_LACKS);
}

#[test]
fn two_contexts_of_a_device_pass_every_case() {
    let (a, b) = (open(soft::Options::default()), open(soft::Options::default()));
    all(&raw(a), &raw(b), RAW_LACKS);
}

#[test]
fn without_copies_between_processes_every_case_passes() {
    let options = soft::Options { ring_only: true, ..soft::Options::default() };
    all(&raw(open(options)), &raw(open(options)), RAW_LACKS);
}

#[test]
fn packet_by_packet_at_a_pace_every_case_passes() {
    all(&raw(open(paced(7))), &raw(open(paced(8))), RAW_LACKS);
}

#[test]
fn paced_and_immediate_contexts_understand_each_other() {
    all(&raw(open(paced(9))), &raw(open(soft::Options::default())), RAW_LACKS);
}

#[test]
fn virtual_verbs_pass_every_case() {
    let job = job(soft::Options::default(), soft::Options::default());
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

#[test]
fn virtual_verbs_of_one_process_with_itself_pass_every_case() {
    let process = Process::standalone().expect("a process");
    let context = process.open_over(open(soft::Options::default())).expect("a context");
    let node = Node { context: context.device().clone(), layer: Layer::Virtual };
    all(&node, &node, VIRTUAL_LACKS);
}

#[test]
fn virtual_verbs_at_a_pace_pass_every_case() {
    let job = job(paced(10), paced(11));
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

/// A node that is reached over the network of this machine, as if it were another's.
fn far(lid: u16) -> soft::Options {
    static KEY: Once = Once::new();
    KEY.call_once(|| {
        let key = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance-job.key");
        let _ = std::fs::remove_file(&key);
        JobKey::generate().and_then(|new| new.write(&key)).expect("a key");
        // SAFETY: the environment is read through the standard library only, which locks.
        unsafe { std::env::set_var(KEY_FILE, &key) };
    });
    let addr = Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    soft::Options { lid, addr, ..soft::Options::default() }
}

/// Each datagram carries a GRH there.
const TCP_LACKS: &str = "ud.without_grh";

#[test]
fn two_nodes_pass_every_case_over_tcp() {
    let lacks = [RAW_LACKS, &[TCP_LACKS]].concat();
    all(&raw(open(far(101))), &raw(open(far(102))), &lacks);
}

#[test]
fn virtual_verbs_of_two_nodes_pass_every_case_over_tcp() {
    let job = job(far(103), far(104));
    all(&job.a, &job.b, &[VIRTUAL_LACKS, &[TCP_LACKS]].concat());
}
