//! Cutovers and their steps.
use serde::Deserialize;

use crate::cluster::Direction;
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};

/// A row of `reshard.cutover`.
#[derive(Debug, Clone, Deserialize)]
pub struct Cutover {
    /// Its number.
    pub id: i64,
    /// Which way traffic moves: along this flow.
    pub direction: Direction,
    /// The cluster that is to be active.
    pub to_cluster: String,
    /// Nothing was to be switched.
    pub dry_run: bool,
    /// `running`, `succeeded` or `aborted`.
    pub status: String,
    /// What it was aborted for.
    pub error: Option<String>,
    /// That error's SQLSTATE.
    pub sqlstate: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Writes a cutover that begins, with its first step.
pub fn begin(
    task: i64,
    direction: Direction,
    from: &str,
    to: &str,
    dry_run: bool,
    first: &str,
) -> Result<i64> {
    let id = db::bigint(
        "INSERT INTO reshard.cutover (task_id, direction, from_cluster, to_cluster, dry_run) \
         VALUES ($1, $2, $3, $4, $5) RETURNING id",
        &[
            Arg::I64(task),
            Arg::Text(direction.as_str()),
            Arg::Text(from),
            Arg::Text(to),
            Arg::Bool(dry_run),
        ],
    )?
    .ok_or_else(|| Error::internal("the new cutover has no id"))?;
    step(id, first)?;
    Ok(id)
}

/// The newest cutover of a migration, if there is one.
pub fn latest(task: i64) -> Result<Option<Cutover>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(c) FROM reshard.cutover AS c WHERE c.task_id = $1 \
          ORDER BY c.id DESC LIMIT 1",
        &[Arg::I64(task)],
    )
}

/// Whether a migration has ever switched traffic.
pub fn has_switched(task: i64) -> Result<bool> {
    db::truth(
        "SELECT EXISTS (SELECT FROM reshard.cutover AS c WHERE c.task_id = $1 AND c.epoch IS NOT NULL)",
        &[Arg::I64(task)],
    )
}

/// Begins a step: ends the one before.
pub fn step(cutover: i64, name: &str) -> Result<()> {
    // In one statement: writers wait for it.
    db::execute(
        "WITH ended AS (UPDATE reshard.cutover_step SET finished_at = clock_timestamp() \
                         WHERE cutover_id = $1 AND finished_at IS NULL) \
         INSERT INTO reshard.cutover_step (cutover_id, step_no, step, started_at) \
         SELECT $1, coalesce(max(step_no), 0) + 1, $2, clock_timestamp() \
           FROM reshard.cutover_step WHERE cutover_id = $1",
        &[Arg::I64(cutover), Arg::Text(name)],
    )
    .map(|_| ())
}

fn end_steps(cutover: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.cutover_step SET finished_at = clock_timestamp() \
          WHERE cutover_id = $1 AND finished_at IS NULL",
        &[Arg::I64(cutover)],
    )
    .map(|_| ())
}

/// Keeps the epoch that a cutover set at its commit point.
pub fn set_epoch(cutover: i64, epoch: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.cutover SET epoch = $2 WHERE id = $1",
        &[Arg::I64(cutover), Arg::I64(epoch)],
    )
    .map(|_| ())
}

/// Ends a cutover that switched traffic; `pause_ms` is how long no cluster took writes.
pub fn succeed(cutover: i64, pause_ms: Option<f64>) -> Result<()> {
    end_steps(cutover)?;
    db::execute(
        "UPDATE reshard.cutover SET status = 'succeeded', finished_at = clock_timestamp(), \
                pause_ms = $2 WHERE id = $1",
        &[Arg::I64(cutover), Arg::OptF64(pause_ms)],
    )
    .map(|_| ())
}

/// Ends a cutover that switched nothing.
pub fn abort(cutover: i64, error: &Error) -> Result<()> {
    end_steps(cutover)?;
    db::execute(
        "UPDATE reshard.cutover SET status = 'aborted', finished_at = clock_timestamp(), \
                error = $2, sqlstate = $3, hint = $4 WHERE id = $1",
        &[
            Arg::I64(cutover),
            Arg::Text(&error.one_line()),
            Arg::Text(error.sqlstate()),
            Arg::OptText(error.hint.as_deref()),
        ],
    )
    .map(|_| ())
}
