//! reshard: online resharding for PostgreSQL, from inside the source database.
//!
//! This file only declares the modules and the library's entry.
mod cluster;
mod cutover;
mod error;
mod gucs;
mod pg;
mod preflight;
mod remote;
mod replication;
mod schema;
mod state;

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/bootstrap.sql", name = "bootstrap", bootstrap);
