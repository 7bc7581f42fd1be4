//! The control path as its users see it: services that join a directory and fetch from each other,
//! in one process (`service`, `hostile`) and in several (`processes`).

mod hostile;
mod processes;
mod service;
mod support;
