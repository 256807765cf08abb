//! Schema statements: one row per statement and destination shard.
use serde::Deserialize;

use crate::cluster::ShardNo;
use crate::error::Result;
use crate::pg::db::{self, Arg};

/// A row of `reshard.schema_statement`.
#[derive(Debug, Clone, Deserialize)]
pub struct Statement {
    /// Its task.
    pub task_id: i64,
    /// Its shard.
    pub shard: u32,
    /// Its place in the plan.
    pub ordinal: i32,
    /// `pre`, `post`, ...
    pub phase: String,
    /// `pre`, `keys`, `indexes`, `attach`, `foreign_keys`, `rest`.
    pub step: String,
    /// What it makes: `table`, `index`, ...
    pub kind: String,
    /// Schema of what it makes.
    pub schema_name: Option<String>,
    /// Name of what it makes.
    pub object_name: Option<String>,
    /// Schema of the table that it belongs to.
    pub table_schema: Option<String>,
    /// Name of the table that it belongs to.
    pub table_name: Option<String>,
    /// Settings that hold for it alone.
    pub settings: Vec<String>,
    /// Its text.
    pub sql: String,
    /// `pending`, `running`, `succeeded`, `failed`, `skipped`.
    pub status: String,
}

/// Writes a plan, for every shard. `plan` is an array of the planner's statements.
pub fn insert_plan(task: i64, shards: u32, plan: &serde_json::Value) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.schema_statement (task_id, shard, ordinal, phase, step, kind, \
                schema_name, object_name, table_schema, table_name, sql, settings) \
         SELECT $1, shard, s.ordinal, s.phase, s.step, s.kind, s.schema_name, s.object_name, \
                s.table_schema, s.table_name, s.sql, coalesce(s.settings, '{}') \
           FROM pg_catalog.jsonb_to_recordset($3) AS s (ordinal int, phase text, step text, \
                kind text, schema_name text, object_name text, table_schema text, \
                table_name text, sql text, settings text[]), \
                pg_catalog.generate_series(0, $2 - 1) AS shard",
        &[Arg::I64(task), Arg::I32(shards as i32), Arg::Json(plan.clone())],
    )
    .map(|_| ())
}

/// Whether a task has its plan.
pub fn has_plan(task: i64) -> Result<bool> {
    db::truth(
        "SELECT true FROM reshard.schema_statement WHERE task_id = $1 LIMIT 1",
        &[Arg::I64(task)],
    )
}

/// Statements of a phase on one shard that have not taken effect, in order.
pub fn open(task: i64, shard: ShardNo, phase: &str) -> Result<Vec<Statement>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s) FROM reshard.schema_statement AS s \
          WHERE s.task_id = $1 AND s.shard = $2 AND s.phase = $3 \
            AND s.status NOT IN ('succeeded', 'skipped') ORDER BY s.ordinal",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::Text(phase)],
    )
}

/// Marks statements as begun.
pub fn started(task: i64, shard: ShardNo, ordinals: &[i32]) -> Result<()> {
    set(
        task,
        shard,
        ordinals,
        "status = 'running', error = NULL, started_at = clock_timestamp(), finished_at = NULL",
    )
}

/// Marks statements as having taken effect.
pub fn succeeded(task: i64, shard: ShardNo, ordinals: &[i32]) -> Result<()> {
    set(
        task,
        shard,
        ordinals,
        "status = 'succeeded', percent = 100, finished_at = clock_timestamp()",
    )
}

/// Puts statements back that were undone with a failed one.
pub fn undone(task: i64, shard: ShardNo, ordinals: &[i32]) -> Result<()> {
    set(task, shard, ordinals, "status = 'pending', started_at = NULL, finished_at = NULL")
}

/// Marks a statement as failed.
pub fn failed(task: i64, shard: ShardNo, ordinal: i32, error: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.schema_statement SET status = 'failed', error = $4, \
                finished_at = clock_timestamp() \
          WHERE task_id = $1 AND shard = $2 AND ordinal = $3",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::I32(ordinal), Arg::Text(error)],
    )
    .map(|_| ())
}

/// Keeps the progress of a CREATE INDEX, in percent.
pub fn progress(task: i64, shard: ShardNo, ordinal: i32, percent: f64) -> Result<()> {
    db::execute(
        "UPDATE reshard.schema_statement SET percent = $4 \
          WHERE task_id = $1 AND shard = $2 AND ordinal = $3 AND status = 'running'",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::I32(ordinal), Arg::F64(percent)],
    )
    .map(|_| ())
}

fn set(task: i64, shard: ShardNo, ordinals: &[i32], change: &str) -> Result<()> {
    let list: Vec<String> = ordinals.iter().map(ToString::to_string).collect();
    db::execute(
        &format!(
            "UPDATE reshard.schema_statement SET {change} \
              WHERE task_id = $1 AND shard = $2 AND ordinal = ANY ($3::int[])"
        ),
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::Texts(list)],
    )
    .map(|_| ())
}
