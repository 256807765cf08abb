//! What the DDL guard asks.
use pgrx::prelude::*;

use crate::api::admin;
use crate::copy;
use crate::error::Result;
use crate::pg::ddl;
use crate::pg::report::or_raise;
use crate::replication::adopt;
use crate::state::{self, cluster, table, task};

/// Names of the columns that a statement adds to a table; null where it does
/// anything else.
#[pg_extern(immutable, strict, parallel_safe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_added_columns(statement: &str) -> Option<Vec<String>> {
    ddl::added_columns(statement)
}

/// What a statement with CONCURRENTLY is about, by the caller's search path: the table of
/// the index that it builds, the index that it drops, the table that it detaches a partition
/// from; null where it does anything else.
#[pg_extern(stable, strict, parallel_unsafe)]
fn reshard_concurrently_changed(statement: &str) -> Option<pg_sys::Oid> {
    ddl::concurrently_changed(statement)
}

/// Whether a statement commits before its end, or ends one that did: refused then, it
/// would stay half done.
#[pg_extern(stable, strict, parallel_safe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_commits_early(statement: &str) -> bool {
    ddl::commits_early(statement)
}

/// Has a new table take part in the flows of a migration; the statements that the
/// shards need for it, null where it can't. For the DDL guard: 42501 for anyone but
/// superusers.
#[pg_extern(volatile, strict, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_join_table(task_id: i64, relation: pg_sys::Oid) -> Option<String> {
    or_raise(admin::require_superuser().and_then(|()| join_table(task_id, relation)))
}

fn join_table(task_id: i64, relation: pg_sys::Oid) -> Result<Option<String>> {
    let relation = i64::from(relation.to_u32());
    let task = task::load(task_id)?;
    let listed = table::last_id(task_id)?;
    copy::plan(task_id, &task.publication, &task.destination)?;
    // What else came up while the guard was off is for who turned it off.
    table::forget_others(task_id, listed, relation)?;
    let (source, destination) = cluster::of_task(&task)?;
    adopt::adopt(&task, &state::token()?, &source, &destination, relation)
}
