//! Tasks: what runs in the background, what kind it is, and how far it is.
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::state::options::Options;
use crate::state::{event, verification};

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// Everything, from the schema to the switch: `reshard_start()`.
    Reshard,
    /// One phase of the schema: `reshard_schema_sync()`.
    SchemaSync,
    /// Copy, then replication: `reshard_copy_data()`.
    CopyData,
    /// Replication alone: `reshard_replicate()`.
    Replicate,
    /// One direction of a migration's replication; a child.
    Replication,
    /// One switch of traffic; a child.
    Cutover,
    /// A comparison of both clusters: `reshard_verify()`; a child that runs, stops and fails by itself.
    Verify,
}

impl Type {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reshard => "reshard",
            Self::SchemaSync => "schema_sync",
            Self::CopyData => "copy_data",
            Self::Replicate => "replicate",
            Self::Replication => "replication",
            Self::Cutover => "cutover",
            Self::Verify => "verify",
        }
    }

    /// Whether tasks of this type have flows and can be cut over.
    pub fn is_migration(self) -> bool {
        matches!(self, Self::Reshard | Self::CopyData | Self::Replicate)
    }

    /// The first phase of a task of this type.
    pub fn first_phase(self) -> Phase {
        match self {
            Self::Reshard | Self::SchemaSync => Phase::SchemaPre,
            Self::CopyData => Phase::Copy,
            Self::Replicate | Self::Replication => Phase::CatchUp,
            Self::Cutover => Phase::Cutover,
            Self::Verify => Phase::Verify,
        }
    }
}

/// Whether a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for a worker; set by the verb.
    Pending,
    /// A worker is on it; set by the coordinator.
    Running,
    /// Done; set by the coordinator.
    Succeeded,
    /// Stopped by an error or by `reshard_stop_task()`; `reshard_resume()` goes on.
    Failed,
    /// Ended by `reshard_cancel()`; nothing is left of it.
    Cancelled,
}

impl Status {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the task has ended for good.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Cancelled)
    }
}

/// How far a migration is, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Schemas, types, tables, functions on the shards.
    SchemaPre,
    /// Rows on their way under a snapshot.
    Copy,
    /// Keys, indexes, constraints, triggers on the shards.
    SchemaPost,
    /// Subscriptions apply what was written since the snapshot.
    CatchUp,
    /// Every flow is live and close.
    Replicating,
    /// Traffic is being switched.
    Cutover,
    /// The destination is active; the reverse flow is live.
    Switched,
    /// The source is active again; the forward flow is live.
    RolledBack,
    /// Ended by `reshard_complete()`.
    Complete,
    /// The only phase of a comparison.
    Verify,
}

impl Phase {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SchemaPre => "schema_pre",
            Self::Copy => "copy",
            Self::SchemaPost => "schema_post",
            Self::CatchUp => "catch_up",
            Self::Replicating => "replicating",
            Self::Cutover => "cutover",
            Self::Switched => "switched",
            Self::RolledBack => "rolled_back",
            Self::Complete => "complete",
            Self::Verify => "verify",
        }
    }

    /// Reads what a user wrote.
    ///
    /// # Errors
    /// 22023 with the known phases.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
            Error::argument(format!("unknown phase \"{text}\"")).hint(
                "Phases are schema_pre, copy, schema_post, catch_up, replicating, cutover, \
                 switched, rolled_back, complete, verify and, for the end of the task, done.",
            )
        })
    }

    /// Whether the destination has taken over.
    pub fn is_after_switch(self) -> bool {
        matches!(self, Self::Switched | Self::Complete)
    }

    /// Whether both clusters have the data and changes flow.
    pub fn is_flowing(self) -> bool {
        matches!(self, Self::Replicating | Self::Switched | Self::RolledBack)
    }
}

/// A row of `reshard.task`.
#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    /// Its number.
    pub id: i64,
    /// The task that it belongs to.
    pub parent_id: Option<i64>,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Whether it runs.
    pub status: Status,
    /// How far it is.
    pub phase: Phase,
    /// Name of the source cluster.
    pub source: String,
    /// Name of the destination cluster.
    pub destination: String,
    /// The user's publication.
    pub publication: String,
    /// Choices of this run.
    pub options: Options,
    /// Stopped by the user.
    pub stopped: bool,
    /// The user cancelled it.
    pub cancelling: bool,
    /// Its error's SQLSTATE.
    pub sqlstate: Option<String>,
    /// What it failed with.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Task {
    /// Whether nothing is done any more but to cancel it. One that turns out to be switched
    /// can't be cancelled.
    pub fn is_ending(&self) -> bool {
        self.cancelling && !self.status.is_final() && !self.phase.is_after_switch()
    }

    /// What is said to whoever asks such a task for something else.
    pub fn was_cancelled(&self) -> Error {
        let id = self.id;
        let says = self.error.as_ref().map_or_else(String::new, |e| format!(" It says: {e}."));
        Error::state(format!("task {id} was asked to end"))
            .detail(format!("It is being cancelled.{says}"))
            .hint(format!("It does nothing else any more: SELECT reshard_cancel({id});"))
    }
}

/// What a starting verb asks for.
#[derive(Debug)]
pub struct NewTask<'a> {
    /// What it does.
    pub kind: Type,
    /// The task that it belongs to.
    pub parent_id: Option<i64>,
    /// Where it begins.
    pub phase: Phase,
    /// Name of the source cluster.
    pub source: &'a str,
    /// Name of the destination cluster.
    pub destination: &'a str,
    /// The user's publication.
    pub publication: &'a str,
    /// Choices of this run.
    pub options: Options,
}

/// Writes a task, status `pending`; a worker takes it up after the commit.
pub fn insert(new: &NewTask<'_>) -> Result<i64> {
    begin(new)?.ok_or_else(|| Error::internal("the new task has no id"))
}

/// Writes a new task; none where it is a migration and the database has one that has not
/// ended. Waits for a transaction that is about to write one.
pub fn begin(new: &NewTask<'_>) -> Result<Option<i64>> {
    db::bigint(
        "INSERT INTO reshard.task (parent_id, type, phase, source, destination, publication, options) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING id",
        &[
            Arg::OptI64(new.parent_id),
            Arg::Text(new.kind.as_str()),
            Arg::Text(new.phase.as_str()),
            Arg::Text(new.source),
            Arg::Text(new.destination),
            Arg::Text(new.publication),
            Arg::Json(serde_json::to_value(&new.options)?),
        ],
    )
}

/// The task of that number.
///
/// # Errors
/// 42704 where there is none.
pub fn load(id: i64) -> Result<Task> {
    db::row(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.task AS t WHERE t.id = $1",
        &[Arg::I64(id)],
    )?
    .ok_or_else(|| {
        Error::missing(format!("task {id} does not exist"))
            .hint("SELECT id, type, status, phase FROM reshard.tasks lists all tasks.")
    })
}

/// The task of that number, or the migration that it is a part of. A comparison stands
/// for itself.
///
/// # Errors
/// As [`load`].
pub fn load_root(id: i64) -> Result<Task> {
    let task = load(id)?;
    match task.parent_id {
        Some(parent) if task.kind != Type::Verify => load(parent),
        _ => Ok(task),
    }
}

/// Tasks that a worker has to look after by themselves, oldest first.
pub fn unfinished_roots() -> Result<Vec<Task>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.task AS t \
          WHERE (t.parent_id IS NULL OR t.type = 'verify') \
            AND t.status IN ('pending', 'running') ORDER BY t.id",
        &[],
    )
}

/// Migrations that have not ended, failed ones included, newest first.
pub fn live_migrations() -> Result<Vec<Task>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.task AS t \
          WHERE t.parent_id IS NULL AND t.type IN ('reshard', 'copy_data', 'replicate') \
            AND t.status IN ('pending', 'running', 'failed') ORDER BY t.id DESC",
        &[],
    )
}

/// Child tasks of one type, oldest first.
pub fn children(parent: i64, kind: Type) -> Result<Vec<Task>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.task AS t \
          WHERE t.parent_id = $1 AND t.type = $2 ORDER BY t.id",
        &[Arg::I64(parent), Arg::Text(kind.as_str())],
    )
}

/// Moves a task to a phase; sets `running` and clears a former error.
pub fn set_phase(id: i64, phase: Phase) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET phase = $2, status = 'running', error = NULL, hint = NULL, \
                sqlstate = NULL, started_at = coalesce(started_at, clock_timestamp()), \
                updated_at = clock_timestamp() WHERE id = $1",
        &[Arg::I64(id), Arg::Text(phase.as_str())],
    )
    .map(|_| ())
}

/// Sets the status of one task alone.
pub fn set_status(id: i64, status: Status) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET status = $2, updated_at = clock_timestamp(), \
                started_at = coalesce(started_at, clock_timestamp()) WHERE id = $1 AND status <> $2",
        &[Arg::I64(id), Arg::Text(status.as_str())],
    )
    .map(|_| ())
}

/// Ends a task, and its children that have not ended, in the given status. What
/// comparisons have found stays; those that still run are [cancelled](cancel_comparisons).
pub fn finish(id: i64, status: Status) -> Result<()> {
    cancel_comparisons(id)?;
    db::execute(
        "UPDATE reshard.task SET status = $2, finished_at = clock_timestamp(), \
                updated_at = clock_timestamp() \
          WHERE (id = $1 OR (parent_id = $1 AND type <> 'verify')) \
            AND status NOT IN ('succeeded', 'cancelled')",
        &[Arg::I64(id), Arg::Text(status.as_str())],
    )
    .map(|_| ())
}

/// Ends the comparisons of a migration that have not come to an end.
pub fn cancel_comparisons(migration: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET status = 'cancelled', finished_at = clock_timestamp(), \
                updated_at = clock_timestamp() \
          WHERE parent_id = $1 AND type = 'verify' AND status IN ('pending', 'running')",
        &[Arg::I64(migration)],
    )
    .map(|_| ())
}

/// Marks a task, and its children that run, as failed with this error. Comparisons
/// notice by themselves.
pub fn fail(id: i64, error: &Error) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET status = 'failed', error = $2, hint = $3, sqlstate = $4, \
                updated_at = clock_timestamp() \
          WHERE id = $1 OR (parent_id = $1 AND type <> 'verify' \
                            AND status IN ('pending', 'running'))",
        &[
            Arg::I64(id),
            Arg::Text(&error.one_line()),
            Arg::OptText(error.hint.as_deref()),
            Arg::Text(error.sqlstate()),
        ],
    )
    .map(|_| ())
}

/// Shows an error on a task that goes on all the same.
pub fn note_error(id: i64, error: Option<&Error>) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET error = $2, hint = $3, sqlstate = $4, \
                updated_at = clock_timestamp() WHERE id = $1",
        &[
            Arg::I64(id),
            Arg::OptText(error.map(Error::one_line).as_deref()),
            Arg::OptText(error.and_then(|e| e.hint.as_deref())),
            Arg::OptText(error.map(Error::sqlstate)),
        ],
    )
    .map(|_| ())
}

/// Takes an error back, unless another one is shown by now.
pub fn forget_error(id: i64, error: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET error = NULL, hint = NULL, sqlstate = NULL, \
                updated_at = clock_timestamp() WHERE id = $1 AND error = $2",
        &[Arg::I64(id), Arg::Text(error)],
    )
    .map(|_| ())
}

/// Leaves the switch to the user from here on.
pub fn forget_auto_cutover(id: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET options = options - 'auto_cutover', \
                updated_at = clock_timestamp() WHERE id = $1",
        &[Arg::I64(id)],
    )
    .map(|_| ())
}

/// Sets or clears the mark of `reshard_stop_task()`.
pub fn set_stopped(id: i64, stopped: bool) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET stopped = $2, updated_at = clock_timestamp() WHERE id = $1",
        &[Arg::I64(id), Arg::Bool(stopped)],
    )
    .map(|_| ())
}

/// Sets the mark of `reshard_cancel()`. The task runs until it has ended, also one that had
/// failed, and after a crash.
pub fn begin_cancel(id: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.task SET cancelling = true, status = 'running', stopped = false, \
                error = NULL, hint = NULL, sqlstate = NULL, updated_at = clock_timestamp() \
          WHERE id = $1 AND status NOT IN ('succeeded', 'cancelled')",
        &[Arg::I64(id)],
    )
    .map(|_| ())
}

/// Puts a failed task, and its failed children, back to `pending`, and tells so. What a
/// comparison did not find equal is looked at again.
pub fn reopen(task: &Task) -> Result<()> {
    let id = task.id;
    let reopened = db::execute(
        "UPDATE reshard.task SET status = 'pending', stopped = false, error = NULL, hint = NULL, \
                sqlstate = NULL, updated_at = clock_timestamp() \
          WHERE (id = $1 OR (parent_id = $1 AND type <> 'verify')) AND status = 'failed'",
        &[Arg::I64(id)],
    )?;
    if reopened == 0 {
        return Ok(());
    }
    if task.kind == Type::Verify {
        verification::reopen(id)?;
    }
    event::info(id, "resumed", "the task goes on")
}
