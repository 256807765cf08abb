//! The only room with unsafe code: everything that touches the server's C side.
//! Nothing here knows of tasks, copies or cutovers.
#![allow(unsafe_code)]

pub mod apply_errors;
pub mod databases;
pub mod db;
pub mod ddl;
pub mod dynamic_worker;
pub mod encode;
pub mod hash;
pub mod index_safe;
pub mod interrupt;
pub mod memory;
pub mod order;
pub mod owner;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod scan;
pub mod settings;
pub mod shmem;
pub mod subprocess;
pub mod toast;
pub mod value;
pub mod xact;
