//! RDMA programs that can be checkpointed, recovered and moved while they run.
//!
//! A program links this crate and uses [`verbs`] through it: contexts, queue pairs, memory regions
//! as the verbs have them, over any device of libibverbs, or over the soft device that every
//! machine has. Every LID, GID, queue pair number and key that it sees is *virtual*: fixed for life,
//! whatever stands behind it.
//!
//! `sojourn run -n 4 -- program` starts the processes of a job; a [`Job`] tells each its rank, and
//! brings them together. A program that was started without the launcher is a job of one.
//!
//! ```
//! use sojourn::verbs::{ConnectOptions, Endpoint, Op, QpOptions, SendRequest};
//! use sojourn::{Job, abi};
//! use std::time::Duration;
//!
//! // Every rank sends its number to the next one, around a ring.
//! fn main() -> sojourn::Result<()> {
//!     let job = Job::from_env()?;
//!     let context = job.context()?;
//!     let pd = context.alloc_pd()?;
//!     let cq = context.create_cq(16)?;
//!     let (to, from) = (pd.create_qp(&QpOptions::rc(&cq))?, pd.create_qp(&QpOptions::rc(&cq))?);
//!     let memory = pd.register(4096, abi::access::LOCAL_WRITE)?;
//!
//!     let connect = ConnectOptions::default();
//!     let (next, last) = ((job.rank() + 1) % job.size(), (job.rank() + job.size() - 1) % job.size());
//!     job.publish("to", &to.endpoint()?.to_bytes())?;
//!     job.publish("from", &from.endpoint()?.to_bytes())?;
//!     from.init(&connect)?;
//!     from.post_recv(0, &[memory.slice(0..8)])?;
//!     from.connect(&Endpoint::from_bytes(&job.fetch(last, "to")?)?, &connect)?;
//!     to.connect(&Endpoint::from_bytes(&job.fetch(next, "from")?)?, &connect)?;
//!     job.barrier()?; // All are ready to receive.
//!
//!     to.post_send(&SendRequest::inline(1, Op::Send, &u64::from(job.rank()).to_ne_bytes()))?;
//!     for _ in 0..2 {
//!         let wc = cq.expect(Duration::from_secs(10))?;
//!         if wc.opcode == abi::wc_opcode::RECV {
//!             let mut number = [0; 8];
//!             memory.read(0, &mut number);
//!             println!("rank {} says hello", u64::from_ne_bytes(number));
//!         }
//!     }
//!     job.barrier() // Nobody leaves while another still sends.
//! }
//! ```
//!
//! Errors are [`Error`]s: an errno, as the verbs' manual pages name it, and one sentence. The crate
//! logs by `tracing`, and installs no subscriber.

mod choice;
mod job;

pub mod snapshot;
pub mod stream;

pub use choice::best_device;
pub use job::Job;
pub use sojourn_fabric::{Error, Result, abi, device, trial};

/// The safe verbs API.
pub mod verbs {
    pub use sojourn_fabric::virt::{
        AddressHandle, CapturedRegion, Cause, CompletionChannel, CompletionQueue, ConnectOptions,
        Context, Data, Datagram, Endpoint, Failover, MemoryRegion, Op, Phase, ProtectionDomain,
        QpOptions, QueuePair, Relocation, Remote, Restored, SendRequest, SharedReceiveQueue,
    };
}
