//! PageRank.
fn main() {}
