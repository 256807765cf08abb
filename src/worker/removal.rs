//! The last thing that a migration does to shards that are in both clusters: rows that have
//! moved away are deleted there, or, where it is cancelled, those that have come.
use std::time::Instant;

use futures::future::try_join_all;

use crate::cluster::{ShardNo, Side};
use crate::copy;
use crate::error::Result;
use crate::pg::xact::transaction;
use crate::replication::staying;
use crate::state::{event, removal};
use crate::worker::migration::Migration;

/// Deletes rows that are not a shard's own in the cluster of a side, on all such shards at the
/// same time. Goes on where it was.
///
/// # Errors
/// The servers'.
pub async fn run(migration: &Migration, side: Side) -> Result<()> {
    let id = migration.id();
    let shards = &migration.links.cluster(Side::Destination).staying.shards;
    try_join_all(shards.iter().map(|(shard, node)| from(migration, side, (*shard, *node)))).await?;
    let rows = transaction(|| removal::rows(id))?;
    let what = match side {
        Side::Destination => "rows were deleted where they had moved away",
        Side::Source => "rows were deleted where they had come to",
    };
    transaction(|| event::info(id, "removed", &format!("{rows} {what}")))
}

/// Deletes them on one shard, by its numbers in both clusters.
async fn from(migration: &Migration, side: Side, shard: (ShardNo, ShardNo)) -> Result<()> {
    let (id, links, node) = (migration.id(), &migration.links, shard.1);
    let session = links.session(Side::Source, node).await?;
    let tables = migration.tables()?;
    for (table, condition) in staying::not_own(&session, links, side, shard, &tables).await? {
        let (table_id, name) = (table.table_id, table.qualified());
        let blocks = copy::removal::blocks(&session, &name).await?;
        transaction(|| removal::begin(id, node, table_id, blocks))?;
        while let Some(range) = transaction(|| removal::next(id, node, table_id))? {
            let began = Instant::now();
            let (to, rows) =
                copy::removal::remove_batch(&session, &name, &condition, range).await?;
            transaction(|| removal::done(id, node, table_id, to, rows))?;
            copy::removal::pause(began, to - range.0).await;
        }
    }
    Ok(())
}
