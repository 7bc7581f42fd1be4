//! For tests of the core: a small device in memory, and a job whose names come on command.

mod device;
mod job;

pub(super) use device::{Fabric, Port};
pub(super) use job::Job;
