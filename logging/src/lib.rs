//! Windows of RDMA work requests, as state machines without IO.
#![forbid(unsafe_code)]
