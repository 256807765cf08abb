//! The schema stage: makes the shards' schema that of the source.
//!
//! Responsible for the plan (`pg_dump` and the planner `reshard-schema`), for
//! running its statements on every shard, each of them exactly once, and for
//! their rows in `reshard.schema_statement`. It knows nothing of copies, flows
//! or cutovers, and never touches the source but by `pg_dump`.
//!
//! What the coordinator calls, in a worker (futures that use the local database
//! between awaits):
//! - [`install_helpers`] brings `sql/shard.sql` and what every server has onto the shards; before all else.
//! - [`plan()`] fills the plan of a task; nothing where it has one.
//! - [`Stage::open`] takes a planned task to its shards: it waits for statements
//!   of an earlier worker that still run there, and learns what has been applied.
//! - [`Stage::run_phase`] runs what is open of a phase, on all shards at the same
//!   time. Done already: nothing happens.
//! - [`Stage::run_table`] runs one table's keys and indexes, as soon as its rows
//!   are there; several calls on the same `Stage` may run concurrently and share
//!   its bound on sessions (`reshard.max_index_builds` on each shard).
//! - [`Stage::run_identity_keys`] runs what replication needs to find rows.
//!
//! - [`refuse_drift`] compares once more before a cutover, [`refuse_other_columns`] before
//!   the way back.
//!
//! A statement's transaction on the shard also writes its digest into
//! `reshard.applied_statement` there. So a statement whose success was not noted
//! by the worker isn't run twice, and one that an earlier task ran (schema sync
//! before copy data) counts as applied as long as the object that it made is the same one.
//! What somebody else made on a shard counts as applied where its definition is
//! the same, statement by statement; see `existing.rs`.
mod claim;
mod drift;
mod dump;
mod existing;
mod failure;
mod inverse;
mod noted;
mod parallel;
mod planned;
mod progress;
mod routine;
mod selection;
mod sequence;
mod session;
mod stage;
mod text;
mod undo;

pub use drift::{refuse_drift, refuse_other_columns};
pub use planned::plan;
pub use stage::{Phase, Stage};
pub use undo::drop_created;

use futures::future::try_join_all;

use crate::cluster::Side;
use crate::error::{Context, Result};
use crate::remote::Links;

/// All that a shard gets, as plain SQL that can be run again. The bodies of functions are not
/// checked once more there: that takes half of the time.
const SHARD_SQL: &str = concat!(
    "SET LOCAL check_function_bodies = off;\n",
    include_str!("../../sql/shard.sql"),
    "\n",
    include_str!("../../sql/every_server.sql"),
    "\n",
    include_str!("../../sql/fence.sql")
);

/// Brings the helper objects of reshard onto the shards of a destination that join it;
/// harmless where they are.
///
/// # Errors
/// A shard's, or no connection.
pub async fn install_helpers(links: &Links) -> Result<()> {
    let shards = links.sessions(Side::Destination).await?;
    try_join_all(shards.iter().map(|(_, session)| async {
        session
            .batch(SHARD_SQL)
            .await
            .context(format!("could not create the helper objects on {}", session.label()))
    }))
    .await
    .map(drop)
}
