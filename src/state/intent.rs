//! Intents: what a user asked of a task, in order.
use serde::{Deserialize, Serialize};

use crate::cluster::Direction;
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::state::cutover::Cutover;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Make the destination active.
    Cutover,
    /// Make the source active.
    Rollback,
    /// End the migration after the switch.
    Complete,
    /// End the migration before the switch.
    Cancel,
    /// Stop working.
    Stop,
    /// Go on.
    Resume,
}

impl Verb {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cutover => "cutover",
            Self::Rollback => "rollback",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Stop => "stop",
            Self::Resume => "resume",
        }
    }
}

/// Further choices of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Args {
    /// Check everything, switch nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// A dry run that doesn't hold writers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_fence: bool,
}

/// A row of `reshard.intent` that no worker has acted on.
#[derive(Debug, Clone, Deserialize)]
pub struct Intent {
    /// Its number.
    pub id: i64,
    /// What was asked for.
    pub verb: Verb,
    /// Further choices.
    pub args: Args,
}

/// Writes an intent; a worker acts on it after the commit.
pub fn insert(task: i64, verb: Verb, args: &Args) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.intent (task_id, verb, args) VALUES ($1, $2, $3)",
        &[Arg::I64(task), Arg::Text(verb.as_str()), Arg::Json(serde_json::to_value(args)?)],
    )
    .map(|_| ())
}

/// The intents on a task that no worker has acted on, in order.
pub fn waiting(task: i64) -> Result<Vec<Intent>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(i) FROM reshard.intent AS i \
          WHERE i.task_id = $1 AND i.handled_at IS NULL ORDER BY i.id",
        &[Arg::I64(task)],
    )
}

/// The oldest of them.
pub fn next(task: i64) -> Result<Option<Intent>> {
    Ok(waiting(task)?.into_iter().next())
}

/// Tasks that have intents which no worker has acted on.
pub fn tasks_with_pending() -> Result<Vec<i64>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t.task_id) FROM (SELECT DISTINCT task_id FROM reshard.intent \
          WHERE handled_at IS NULL) AS t",
        &[],
    )
}

/// Marks an intent as acted on, with what it failed with.
pub fn handled(id: i64, error: Option<&Error>) -> Result<()> {
    db::execute(
        "UPDATE reshard.intent SET handled_at = clock_timestamp(), error = $2 WHERE id = $1",
        &[Arg::I64(id), Arg::OptText(error.map(Error::one_line).as_deref())],
    )
    .map(|_| ())
}

/// Marks the intent behind an interrupted switch as acted on: it was undone, and
/// whoever asked for it is told, instead of being switched at a later time. What was
/// asked for after it still waits.
pub fn switch_was_interrupted(task: i64, interrupted: &Cutover, error: &Error) -> Result<()> {
    let verb = match interrupted.direction {
        Direction::Forward => Verb::Cutover,
        Direction::Reverse => Verb::Rollback,
    };
    db::execute(
        "UPDATE reshard.intent AS i SET handled_at = clock_timestamp(), error = $4 \
           FROM reshard.cutover AS c \
          WHERE c.id = $2 \
            AND i.id = (SELECT pg_catalog.min(o.id) FROM reshard.intent AS o \
                         WHERE o.task_id = $1 AND o.verb = $3 AND o.handled_at IS NULL \
                           AND coalesce((o.args ->> 'dry_run')::boolean, false) = c.dry_run \
                           AND o.requested_at <= c.started_at)",
        &[
            Arg::I64(task),
            Arg::I64(interrupted.id),
            Arg::Text(verb.as_str()),
            Arg::Text(&error.one_line()),
        ],
    )
    .map(|_| ())
}
