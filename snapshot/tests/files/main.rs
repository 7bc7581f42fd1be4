//! Epochs in a directory: what comes back, what is noticed, and what a killed writer leaves.

mod background;
mod crash;
mod damage;
mod epochs;
mod full;
mod keep;
mod world;
