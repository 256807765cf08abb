//! The only room with unsafe code: everything that touches the server's C side.
//! Nothing here knows of tasks, copies or cutovers.
#![allow(unsafe_code)]

pub mod db;
pub mod dynamic_worker;
pub mod encode;
pub mod hash;
pub mod interrupt;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod scan;
pub mod xact;

/// Whether `shared_preload_libraries` are being loaded.
pub fn shared_libraries_loading() -> bool {
    unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress }
}
