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
    /// Its place in the plan.
    pub ordinal: i32,
    /// `pre`, `keys`, `indexes`, `attach`, `foreign_keys`, `validate`, `rest`.
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
    /// Its text for people, where that differs.
    pub shown: Option<String>,
    /// Tells statements of different text or settings apart, in every task.
    pub digest: String,
}

#[cfg(test)]
impl Statement {
    /// One of a kind, of a task, about no object that is named.
    pub fn of(kind: &str, sql: &str) -> Self {
        Self {
            task_id: 1,
            ordinal: 1,
            step: "pre".into(),
            kind: kind.into(),
            schema_name: None,
            object_name: None,
            table_schema: None,
            table_name: None,
            settings: Vec::new(),
            sql: sql.into(),
            shown: None,
            digest: String::new(),
        }
    }
}

impl Statement {
    /// Whether it changes what every database begins with, and what no DROP takes back:
    /// schema `public`, default privileges.
    pub fn changes_shared(&self) -> bool {
        self.kind == "default_privileges"
            || matches!(self.kind.as_str(), "owner" | "comment" | "grant")
                && self.schema_name.is_none()
                && self.object_name.as_deref() == Some("public")
                && self.sql.contains(" SCHEMA public ")
    }
}

/// What a plan holds apart from its statements.
#[derive(Debug, Clone, Deserialize)]
pub struct Preamble {
    /// Version of the server that was dumped.
    pub server_version: Option<String>,
    /// Statements that each session runs before the first of the plan's.
    pub session: Vec<String>,
}

/// Writes a plan, for these shards. `statements` is the planner's array.
///
/// The digest numbers equal statements, so that each of them takes effect.
pub fn insert_plan(
    task: i64,
    shards: Vec<String>,
    preamble: &Preamble,
    statements: serde_json::Value,
) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.schema_plan (task_id, server_version, session) VALUES ($1, $2, $3)",
        &[
            Arg::I64(task),
            Arg::OptText(preamble.server_version.as_deref()),
            Arg::Texts(preamble.session.clone()),
        ],
    )?;
    db::execute(
        "INSERT INTO reshard.schema_statement (task_id, shard, ordinal, phase, step, kind, \
                schema_name, object_name, table_schema, table_name, sql, shown, settings, digest) \
         SELECT $1, shard, s.ordinal, s.phase, s.step, s.kind, s.schema_name, s.object_name, \
                s.table_schema, s.table_name, s.sql, s.shown, s.settings, \
                pg_catalog.md5(pg_catalog.jsonb_build_array(s.nth, s.settings, s.sql)::text) \
           FROM (SELECT r.*, coalesce(r.setting_list, '{}') AS settings, \
                        pg_catalog.row_number() OVER (PARTITION BY r.sql, r.setting_list \
                                                      ORDER BY r.ordinal) AS nth \
                   FROM (SELECT e.ordinal, e.phase, e.step, e.kind, e.schema_name, e.object_name, \
                                e.table_schema, e.table_name, e.sql, e.shown, e.settings AS setting_list \
                           FROM pg_catalog.jsonb_to_recordset($3) AS e (ordinal int, phase text, \
                                step text, kind text, schema_name text, object_name text, \
                                table_schema text, table_name text, sql text, shown text, settings text[]) \
                        ) AS r) AS s, \
                pg_catalog.unnest($2::int[]) AS shard",
        &[Arg::I64(task), Arg::Texts(shards), Arg::Json(statements)],
    )
    .map(|_| ())
}

/// Writes the values that sequences of one shard are set to, replacing those of an
/// earlier try: quoted names and statements.
pub fn insert_sequences(task: i64, shard: ShardNo, settings: &[(String, String)]) -> Result<()> {
    let task_and_shard = [Arg::I64(task), Arg::I32(shard.as_i32())];
    db::execute(
        "DELETE FROM reshard.schema_statement WHERE task_id = $1 AND shard = $2",
        &task_and_shard,
    )?;
    let [names, statements] = [0, 1].map(|part| {
        let of = settings.iter().map(|(name, sql)| if part == 0 { name } else { sql });
        Arg::Texts(of.cloned().collect())
    });
    let [task, shard] = task_and_shard;
    db::execute(
        "INSERT INTO reshard.schema_statement (task_id, shard, ordinal, phase, step, kind, \
                schema_name, object_name, sql, digest) \
         SELECT $1, $2, s.nr, 'cutover', 'sequences', 'sequence_value', n.parts[1], n.parts[2], \
                s.sql, pg_catalog.md5(s.sql) \
           FROM unnest($3, $4) WITH ORDINALITY AS s (name, sql, nr) \
          CROSS JOIN LATERAL pg_catalog.parse_ident(s.name) AS n (parts)",
        &[task, shard, names, statements],
    )
    .map(|_| ())
}

/// Marks all statements of a task as having taken effect.
pub fn all_succeeded(task: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.schema_statement SET status = 'succeeded', finished_at = clock_timestamp() \
          WHERE task_id = $1",
        &[Arg::I64(task)],
    )
    .map(|_| ())
}

/// What a task's plan holds apart from its statements; none without a plan.
pub fn preamble(task: i64) -> Result<Option<Preamble>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(p) FROM reshard.schema_plan AS p WHERE p.task_id = $1",
        &[Arg::I64(task)],
    )
}

/// Whether a task has its plan.
pub fn has_plan(task: i64) -> Result<bool> {
    Ok(preamble(task)?.is_some())
}

/// All statements of a task, in order, as for any shard.
pub fn planned(task: i64) -> Result<Vec<Statement>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s) FROM reshard.schema_statement AS s \
          WHERE s.task_id = $1 AND s.shard = 0 ORDER BY s.ordinal",
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

/// Ordinals of statements of a phase that failed on one shard.
pub fn failed_of(task: i64, shard: ShardNo, phase: &str) -> Result<Vec<i32>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s.ordinal) FROM reshard.schema_statement AS s \
          WHERE s.task_id = $1 AND s.shard = $2 AND s.phase = $3 AND s.status = 'failed' \
          ORDER BY s.ordinal",
        &[Arg::I64(task), Arg::I32(shard.as_i32()), Arg::Text(phase)],
    )
}

/// As [`open`], those of one table.
pub fn open_of_table(
    task: i64,
    shard: ShardNo,
    phase: &str,
    (schema, table): (&str, &str),
) -> Result<Vec<Statement>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s) FROM reshard.schema_statement AS s \
          WHERE s.task_id = $1 AND s.shard = $2 AND s.phase = $3 \
            AND s.table_schema = $4 AND s.table_name = $5 \
            AND s.status NOT IN ('succeeded', 'skipped') ORDER BY s.ordinal",
        &[
            Arg::I64(task),
            Arg::I32(shard.as_i32()),
            Arg::Text(phase),
            Arg::Text(schema),
            Arg::Text(table),
        ],
    )
}

/// A statement that a shard has noted as applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its digest.
    pub digest: String,
    /// Whether an earlier task ran it, and not this one.
    pub earlier: bool,
}

/// Marks what a shard has noted as applied: `succeeded` where this task ran it,
/// `skipped` where an earlier one did. What else was running is open again.
pub fn reconcile(task: i64, shard: ShardNo, phase: &str, applied: &[Applied]) -> Result<()> {
    let digests = |earlier| {
        let of = applied.iter().filter(|a| a.earlier == earlier);
        Arg::Texts(of.map(|a| a.digest.clone()).collect())
    };
    db::execute(
        "UPDATE reshard.schema_statement SET error = NULL, \
                status = CASE WHEN digest = ANY ($4) THEN 'succeeded' \
                              WHEN digest = ANY ($5) THEN 'skipped' ELSE 'pending' END, \
                finished_at = CASE WHEN digest = ANY ($4) OR digest = ANY ($5) \
                                   THEN clock_timestamp() END \
          WHERE task_id = $1 AND shard = $2 AND phase = $3 \
            AND (status = 'running' OR status IN ('pending', 'failed') \
                                       AND (digest = ANY ($4) OR digest = ANY ($5)))",
        &[
            Arg::I64(task),
            Arg::I32(shard.as_i32()),
            Arg::Text(phase),
            digests(false),
            digests(true),
        ],
    )
    .map(|_| ())
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
        "status = 'succeeded', percent = 100, build_phase = NULL, finished_at = clock_timestamp()",
    )
}

/// Marks statements whose objects were there before, as they shall be.
pub fn skipped(task: i64, shard: ShardNo, ordinals: &[i32]) -> Result<()> {
    set(task, shard, ordinals, "status = 'skipped', error = NULL, finished_at = clock_timestamp()")
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

/// Keeps the progress of a CREATE INDEX: percent, where the server can tell, and the
/// server's word for what it is doing.
pub fn progress(
    task: i64,
    shard: ShardNo,
    ordinal: i32,
    percent: Option<f64>,
    phase: &str,
) -> Result<()> {
    db::execute(
        "UPDATE reshard.schema_statement SET percent = coalesce($4, percent), build_phase = $5 \
          WHERE task_id = $1 AND shard = $2 AND ordinal = $3 AND status = 'running'",
        &[
            Arg::I64(task),
            Arg::I32(shard.as_i32()),
            Arg::I32(ordinal),
            Arg::OptF64(percent),
            Arg::Text(phase),
        ],
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

/// Statements that a task itself ran on a shard, in order.
pub fn made(task: i64, shard: u32) -> Result<Vec<Statement>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(s) FROM reshard.schema_statement AS s \
          WHERE s.task_id = $1 AND s.shard = $2 AND s.status = 'succeeded' \
          ORDER BY s.ordinal",
        &[Arg::I64(task), Arg::I32(shard as i32)],
    )
}
