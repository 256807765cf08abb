//! reshard: online resharding for PostgreSQL, from inside the source database.
//!
//! This file only declares the modules; `_PG_init` is the library's entry.
use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

#[pg_extern]
fn reshard_hello() -> &'static str {
    "hello"
}
