//! Verbs devices, and virtual verbs over them.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`abi`] | the C ABI of libibverbs, checked in, and the table of its functions |
//! | [`device`] | the trait that every device implements, and the two devices: `hca` and `soft` |
//! | [`names`] | what a process publishes of itself, and the directory of a job |
//! | [`trial`] | whether a device's packet number is live |
//! | [`virt`] | virtual verbs: a window of work requests per queue pair, over any device |

pub mod abi;
pub mod device;
pub mod names;
pub mod trial;
pub mod virt;

mod error;
pub use error::{Error, Result};
