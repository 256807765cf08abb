//! What the DDL guard asks.
use pgrx::prelude::*;

use crate::pg::ddl;

/// Names of the columns that a statement adds to a table; null where it does
/// anything else.
#[pg_extern(immutable, strict, parallel_safe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_added_columns(statement: &str) -> Option<Vec<String>> {
    ddl::added_columns(statement)
}
