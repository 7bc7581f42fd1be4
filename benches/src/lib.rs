//! What the benchmarks share.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`null`] | a device that completes at once: what stands above a device is all that costs |
//! | [`hot`] | the hot loops over it, raw and virtual |
//! | [`memory`] | what queue pairs take of the heap |
//! | [`moves`] | a context that goes from device to device, with a peer that follows |
//! | [`retention`] | payloads that are kept until an epoch covers them |
//! | [`epochs`] | memory that is snapshot into a store in another process, and the device's own WRITEs there |
//! | [`parity`] | parity over the images of a group |
//! | [`peer`] | a second process to measure against: bare system calls, shared memory, soft verbs |

pub mod epochs;
pub mod hot;
pub mod memory;
pub mod moves;
pub mod null;
pub mod parity;
pub mod peer;
pub mod retention;
