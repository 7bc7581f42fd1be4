//! (abi)
