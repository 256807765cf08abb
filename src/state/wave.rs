//! Waves: tables copied under one snapshot and one set of slots.
use serde::Deserialize;

use crate::error::Result;
use crate::pg::db::{self, Arg};

/// A row of `reshard.wave`.
#[derive(Debug, Clone, Deserialize)]
pub struct Wave {
    /// Its number, from 1.
    pub wave: i32,
    /// Name of the exported snapshot; `None` once it is gone.
    pub snapshot: Option<String>,
}

/// The newest wave of a migration.
pub fn latest(task: i64) -> Result<Option<Wave>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(w) FROM reshard.wave AS w WHERE w.task_id = $1 \
          ORDER BY w.wave DESC LIMIT 1",
        &[Arg::I64(task)],
    )
}

/// Begins a wave, before anything of it exists on a server.
pub fn begin(task: i64, wave: i32) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.wave (task_id, wave, source_shard) VALUES ($1, $2, 0) \
         ON CONFLICT DO NOTHING",
        &[Arg::I64(task), Arg::I32(wave)],
    )
    .map(|_| ())
}

/// Keeps the snapshot and the position that a wave starts from.
pub fn set_snapshot(task: i64, wave: i32, snapshot: &str, lsn: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.wave SET snapshot = $3, lsn = $4::pg_catalog.pg_lsn \
          WHERE task_id = $1 AND wave = $2",
        &[Arg::I64(task), Arg::I32(wave), Arg::Text(snapshot), Arg::Text(lsn)],
    )
    .map(|_| ())
}

/// Notes that a wave's snapshot is gone.
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

/// How many waves of a migration were given up.
pub fn abandoned(task: i64) -> Result<i64> {
    db::bigint(
        "SELECT count(*) FROM reshard.wave AS w WHERE w.task_id = $1 AND w.abandoned",
        &[Arg::I64(task)],
    )
    .map(|count| count.unwrap_or(0))
}
