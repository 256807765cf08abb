//! The only room with unsafe code: everything that touches the server's C side.
//! Nothing here knows of tasks, copies or cutovers.
#![allow(unsafe_code)]

pub mod databases;
pub mod db;
pub mod interrupt;
pub mod report;
pub mod runtime;
pub mod shmem;
pub mod subprocess;
pub mod xact;
