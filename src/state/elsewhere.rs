//! Tasks that this database shows and that run on another shard of its cluster.
use serde::Deserialize;

use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::state::task::Status;

/// Such a task, as it was last sent here.
#[derive(Debug, Clone, Deserialize)]
pub struct Elsewhere {
    /// Its number there.
    pub id: i64,
    /// The cluster that it moves from.
    pub source: String,
    /// Whether it runs.
    pub status: Status,
    /// Number in that cluster of the shard that it runs on.
    pub shard: i32,
    /// Host, port and database of that shard.
    pub address: Option<String>,
}

/// The task of that number, unless this database has one that has not ended; one of its
/// own that has ended comes before one elsewhere that has, too.
pub fn find(id: i64) -> Result<Option<Elsewhere>> {
    first(
        "m.key = pg_catalog.jsonb_build_array($1) \
         AND NOT EXISTS (SELECT FROM reshard.task AS t \
                          WHERE t.id = $1 \
                            AND (t.status NOT IN ('succeeded', 'cancelled') \
                                 OR m.shown ->> 'status' IN ('succeeded', 'cancelled')))",
        &[Arg::I64(id)],
    )
}

/// A migration that has not ended, where this database has none.
pub fn migration() -> Result<Option<Elsewhere>> {
    first(
        "m.shown ->> 'type' IN ('reshard', 'copy_data', 'replicate') \
         AND m.shown ->> 'status' IN ('pending', 'running', 'failed') \
         AND NOT EXISTS (SELECT FROM reshard.task AS t \
                          WHERE t.type IN ('reshard', 'copy_data', 'replicate') \
                            AND t.status IN ('pending', 'running', 'failed'))",
        &[],
    )
}

/// Of such tasks one that has not ended, else the latest.
fn first(condition: &str, args: &[Arg<'_>]) -> Result<Option<Elsewhere>> {
    db::row(
        &format!(
            "SELECT pg_catalog.jsonb_build_object('id', m.shown -> 'id', \
                    'source', m.shown -> 'source', 'status', m.shown -> 'status', \
                    'shard', n.shard, 'address', n.address) \
               FROM reshard.mirrored_row AS m \
               JOIN reshard.coordinator AS n ON n.token = m.token \
              WHERE m.view_name = 'tasks' AND {condition} \
              ORDER BY m.shown ->> 'status' IN ('succeeded', 'cancelled'), \
                       (m.shown ->> 'updated_at')::timestamptz DESC LIMIT 1"
        ),
        args,
    )
}
