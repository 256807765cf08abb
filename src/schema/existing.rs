//! What a shard has already, made by others: the same definition is passed over,
//! a different one is an error that shows both.
//!
//! It is looked at only when a statement fails because of it. Definitions are
//! compared as the source's are planned: the shard is dumped, and a statement
//! that its plan has as well, word for word, has taken effect there.
use std::collections::HashSet;
use std::future::Future;

use crate::error::{Error, Kind, Result};
use crate::pg::xact;
use crate::schema::dump::{self, Planned};
use crate::schema::stage::{Phase, Shard, Stage};
use crate::schema::{failure, inverse, routine};
use crate::state;
use crate::state::event::Severity;
use crate::state::schema::Statement;

/// SQLSTATEs of what is there already: schemas, relations, other objects,
/// functions, columns, a second primary key, a partition that is one.
const DUPLICATE: &[&str] =
    &["42P06", "42P07", "42710", "42723", "42701", "42P16", "42809", "23505"];
/// Objects that an event names; the rest is counted.
const NAMED: usize = 50;

/// Runs statements of a phase; passes over what is there as it shall be.
///
/// # Errors
/// Those of `run`; 42710 where an object has another definition on the shard.
pub async fn passing_over<F, Fut>(stage: &Stage, shard: &Shard, phase: Phase, run: F) -> Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    loop {
        match run().await {
            Err(error) if DUPLICATE.contains(&error.sqlstate()) => {
                if !pass_over(stage, shard, phase, &error).await? {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

/// Marks what a shard has already; whether it is worth another try.
async fn pass_over(stage: &Stage, shard: &Shard, phase: Phase, error: &Error) -> Result<bool> {
    let _one_at_a_time = shard.comparing.lock().await;
    let task = stage.owner.task;
    let there = dump::plan_of(&shard.endpoint, &stage.options).await?.statements;
    let open = xact::transaction(|| state::schema::open(task, shard.no(), phase.as_str()))?;
    let (same, others) = split(open, &there);
    let ordinals: Vec<i32> = same.iter().map(|s| s.ordinal).collect();
    if !ordinals.is_empty() {
        let names: Vec<String> = same.iter().take(NAMED).map(failure::object).collect();
        xact::transaction(|| {
            state::schema::skipped(task, shard.no(), &ordinals)?;
            state::event::write(
                Some(task),
                Severity::Info,
                "schema_existing",
                &format!(
                    "{} schema statements had taken effect on {} before",
                    same.len(),
                    shard.endpoint
                ),
                serde_json::json!({ "count": same.len(), "objects": names }),
            )
        })?;
    }
    // The one that failed is noted as such, unless others failed meanwhile. A view that could
    // not be filled has stopped nothing.
    for failed in xact::transaction(|| state::schema::failed_of(task, shard.no(), phase.as_str()))?
    {
        if let Some(other) = others
            .iter()
            .find(|s| s.ordinal == failed && s.kind != "refresh")
            .and_then(|s| of_name(s, &there).map(|t| (s, t)))
        {
            return Err(different(shard, other.0, other.1, error));
        }
    }
    Ok(!ordinals.is_empty())
}

/// Statements that a shard's own plan has as well, and the others.
fn split(open: Vec<Statement>, there: &[Planned]) -> (Vec<Statement>, Vec<Statement>) {
    let known: HashSet<(&[String], &str)> =
        there.iter().map(|s| (s.settings.as_slice(), s.sql.as_str())).collect();
    // Filling a view again does no harm, and is never in a dump.
    open.into_iter().partition(|s| {
        s.kind != "refresh" && known.contains(&(s.settings.as_slice(), s.sql.as_str()))
    })
}

/// What a shard's plan makes of the same kind and name; of routines with one name,
/// that with the same arguments if there is one.
fn of_name<'p>(statement: &Statement, there: &'p [Planned]) -> Option<&'p Planned> {
    let same_name = |s: &&Planned| {
        s.kind == statement.kind
            && s.schema_name == statement.schema_name
            && s.object_name == statement.object_name
            && s.table_name == statement.table_name
    };
    let arguments = routine::arguments(&statement.sql);
    let same = |s: &&Planned| same_name(s) && routine::arguments(&s.sql) == arguments;
    there.iter().find(same).or_else(|| there.iter().find(same_name))
}

fn different(shard: &Shard, here: &Statement, there: &Planned, error: &Error) -> Error {
    Error::new(
        Kind::DuplicateObject,
        format!("{} has another definition on {}", failure::object(here), shard.endpoint),
    )
    .detail(format!(
        "The source has: {}; the shard has: {}.",
        failure::shown(here),
        failure::cut(there.shown.as_deref().unwrap_or(&there.sql))
    ))
    .hint(match (inverse::of(here), &error.hint) {
        (Some(drop), _) => format!(
            "Make it the same there, or drop it: {drop}; then SELECT reshard_resume({});",
            here.task_id
        ),
        (None, Some(hint)) => hint.clone(),
        (None, None) => {
            format!("Make it the same there; then SELECT reshard_resume({});", here.task_id)
        }
    })
}
