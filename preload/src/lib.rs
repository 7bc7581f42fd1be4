//! Virtual verbs under programs that know nothing of Sojourn:
//!
//! ```sh
//! sojourn run -n 2 -- env LD_PRELOAD=/path/to/libsojourn_preload.so ./program
//! ```
//!
//! It exports every public function of libibverbs ([`NAMES`]), so that the dynamic linker lets the
//! program call ours. The objects that the program holds are ours, laid out as its headers say, and
//! each stands for an object of virtual verbs ([`sojourn_fabric::virt::core`]): every LID, GID, queue
//! pair number and key that the program sees is virtual.
//!
//! | file | what |
//! | --- | --- |
//! | `table` | the exported functions: served, refused, or passed on |
//! | `registry` | this process in its job, and all open contexts |
//! | `devices`, `context`, `gid`, `memory`, `cq`, `qp`, `srq`, `ah` | the objects |
//! | `object` | how an object of the program and what stands behind it are one |
//! | `events` | which object an event is about; waiting, acknowledging |
//! | `answer` | errno |
//! | `real` | the real libibverbs, for what is not ours |
//!
//! # What programs get
//!
//! In a job, devices are virtual verbs over `SOJOURN_DEVICE` or any other device of the machine. A
//! process of no job may look (`ibv_devinfo`), but create no queue pair: its peers could not find
//! it. The job is joined when a device is opened first, so a script may run several programs one after
//! the other; two at a time cannot both be the same rank, and the second is told so.
//!
//! # What is not covered
//!
//! - After `fork` a child must not use what its parent opened (a child that calls `exec` at once is
//!   fine). A program that replaces itself by `exec` leaves its job, and joins again as the new
//!   program; its connections are gone.
//! - Programs that look up verbs with `dlvsym` in a library that they open themselves bypass
//!   `LD_PRELOAD`, and so do those with set-user-id bits.
//! - The RDMA connection manager (`rdma_*`), extended CQs and QPs (`ibv_start_poll`, `ibv_wr_*`), thread
//!   domains, memory windows, XRC, multicast, flows, device memory: refused with `EOPNOTSUPP`, but for
//!   the first, which is not ours and would ask the kernel about a device that it does not have.
//! - Programs built before 2008 (symbol version `IBVERBS_1.0`), whose structs were others.
//! - `ibv_close_device` does not destroy what was created from the context: it goes when the program
//!   destroys it.

mod ah;
mod answer;
mod context;
mod cq;
mod devices;
mod events;
mod gid;
mod memory;
mod object;
mod qp;
mod real;
mod registry;
mod srq;
mod table;

pub use table::NAMES;
