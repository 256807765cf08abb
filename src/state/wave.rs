//! Waves: tables copied under one snapshot of each source shard.
use serde::Deserialize;

use crate::cluster::ShardNo;
use crate::error::Result;
use crate::pg::db::{self, Arg};

/// A wave of a migration.
#[derive(Debug, Clone, Deserialize)]
pub struct Wave {
    /// Its number, from 1.
    pub wave: i32,
    /// Whether the snapshots of all source shards are still there, by the tables.
    pub has_snapshots: bool,
    /// Whether it ever had all of them: else nothing was copied.
    pub had_snapshots: bool,
}

/// The waves of a migration, by number.
pub fn load(task: i64) -> Result<Vec<Wave>> {
    db::rows(
        "SELECT pg_catalog.jsonb_build_object('wave', w.wave, \
                'has_snapshots', bool_and(w.snapshot IS NOT NULL), \
                'had_snapshots', bool_and(w.lsn IS NOT NULL)) \
           FROM reshard.wave AS w WHERE w.task_id = $1 \
          GROUP BY w.wave ORDER BY w.wave",
        &[Arg::I64(task)],
    )
}

/// Begins a wave, before anything of it exists on a server.
pub fn begin(task: i64, wave: i32, nodes: impl Iterator<Item = ShardNo>) -> Result<()> {
    for node in nodes {
        db::execute(
            "INSERT INTO reshard.wave (task_id, wave, source_shard) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING",
            &[Arg::I64(task), Arg::I32(wave), Arg::I32(node.as_i32())],
        )?;
    }
    Ok(())
}

/// Keeps the snapshot of one source shard and the position that it starts from.
pub fn set_snapshot(task: i64, wave: i32, node: ShardNo, snapshot: &str, lsn: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.wave SET snapshot = $4, lsn = $5::pg_catalog.pg_lsn \
          WHERE task_id = $1 AND wave = $2 AND source_shard = $3",
        &[
            Arg::I64(task),
            Arg::I32(wave),
            Arg::I32(node.as_i32()),
            Arg::Text(snapshot),
            Arg::Text(lsn),
        ],
    )
    .map(|_| ())
}

/// Name of the exported snapshot of one source shard; none once it is gone.
pub fn snapshot(task: i64, wave: i32, node: ShardNo) -> Result<Option<String>> {
    db::text(
        "SELECT w.snapshot FROM reshard.wave AS w \
          WHERE w.task_id = $1 AND w.wave = $2 AND w.source_shard = $3",
        &[Arg::I64(task), Arg::I32(wave), Arg::I32(node.as_i32())],
    )
}

/// Notes that a snapshot of a wave is gone, which ends the wave on all source shards.
pub fn snapshot_gone(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.wave SET snapshot = NULL WHERE task_id = $1 AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

/// Notes that a wave was given up before all of its tables were copied.
pub fn abandon(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "UPDATE reshard.wave SET snapshot = NULL, abandoned = true \
          WHERE task_id = $1 AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

/// Forgets a wave that never had its snapshots; its number is free again.
pub fn delete(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "DELETE FROM reshard.wave WHERE task_id = $1 AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

/// How many waves of a migration were given up.
pub fn abandoned(task: i64) -> Result<i64> {
    db::bigint(
        "SELECT count(DISTINCT w.wave) FROM reshard.wave AS w WHERE w.task_id = $1 AND w.abandoned",
        &[Arg::I64(task)],
    )
    .map(|count| count.unwrap_or(0))
}
