//! reshard: online resharding for PostgreSQL, from inside the source database.
//!
//! This file only declares the modules and the library's entry.
mod cluster;
mod copy;
mod error;
mod gucs;
mod pg;
mod remote;
mod state;
mod worker;

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/bootstrap.sql", name = "bootstrap", bootstrap);

/// Called when the library is loaded.
#[pg_guard]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _PG_init() {
    gucs::register();
    if pg::shared_libraries_loading() {
        pg::progress::init();
    }
}
