//! Rows that came twice: a client moved them from one shard of the source to another, and to
//! another key, after the snapshot of the one and before that of the other. Both are on one
//! shard of the destination then, and a key of their table can't be built. The table is copied
//! anew, under later snapshots: the flows would delete and insert in either order.
use crate::cluster::Side;
use crate::error::{Error, Result, UNIQUE_VIOLATION};
use crate::pg::xact::transaction;
use crate::state::event::{self, Severity};
use crate::state::table::{self, Table};
use crate::worker::coordinator::Shared;
use crate::worker::migration::Migration;

/// How often a table is copied anew before somebody is asked to look.
const ANEW: u32 = 2;

/// Has a table whose key could not be built copied anew, if that may help.
///
/// # Errors
/// `error` itself, where it is another one, the source has one shard, or the table was copied
/// anew before.
pub fn copy_anew(
    migration: &Migration,
    shared: &Shared,
    table: &Table,
    error: Error,
) -> Result<()> {
    let nodes = migration.links.cluster(Side::Source).size();
    if error.sqlstate() != UNIQUE_VIOLATION || nodes == 1 {
        return Err(error);
    }
    let id = migration.id();
    let mut doubled = shared.doubled.borrow_mut();
    let times = doubled.entry((id, table.table_id)).or_default();
    if *times >= ANEW {
        return Err(error.hint(format!(
            "The table was copied {ANEW} times more, so shards of the source have rows of one key: \
             give one of them another, then SELECT reshard_resume({id});"
        )));
    }
    *times += 1;
    transaction(|| {
        let cause = "rows moved between shards of the source while the snapshots were taken";
        table::set_rewritten(id, table.table_id, cause)?;
        let message = format!("table {} is copied anew: {cause}", table.qualified());
        let detail = serde_json::json!({ "table_id": table.table_id, "error": error.one_line() });
        event::write(Some(id), Severity::Warning, "copied_anew", &message, detail)
    })
}
