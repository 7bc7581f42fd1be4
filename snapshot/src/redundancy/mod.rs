//! How committed epochs outlive nodes: copies on several peers, or parity over groups of processes.
//!
//! Nothing here does IO, and nothing waits; [`crate::parity`] does, around it. What it is asked, by whom:
//!
//! | part | asked by | says |
//! | --- | --- | --- |
//! | [`Scheme`] | the user | what is promised, in lost nodes |
//! | [`Placement`] | whoever starts a job, and whoever replaces a store | which store holds what |
//! | [`gather::Gather`] | the store that holds a share of parity | its parity, of one epoch or of none |
//! | [`share`] | the same | how a share of parity lies in a store, and that nothing of it is damaged |
//! | [`Plan`] | whoever restores | which images are read where, rebuilt of what, or missing |
//! | [`rebuild::Rebuild`] | the same | the bytes of an image, from shares of which some may be damaged |
//! | [`Code`] | the two that make and use parity | what bytes become of bytes |

pub mod code;
pub mod gather;
mod loss;
pub mod placement;
pub mod plan;
pub mod rebuild;
mod scheme;
pub mod share;

pub use code::Code;
pub use loss::{Absent, Missing, Why};
pub use placement::{Placement, Role, Share};
pub use plan::{Answer, Plan, Step};
pub use scheme::Scheme;
pub use share::Image;
