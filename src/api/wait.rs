//! Waiting for a task.
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::api::admin;
use crate::api::argument::given;
use crate::error::{Error, Kind, Result};
use crate::pg::index_safe::IndexSafe;
use crate::pg::interrupt;
use crate::pg::report::or_raise;
use crate::pg::xact::with_new_snapshot;
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::state::{cutover, wait};

/// How often the task is looked at.
const PERIOD_MS: i64 = 50;

/// Blocks until a task reaches a phase, or its end; returns the phase it is in.
///
/// # Errors
/// The task's own, if it fails or is cancelled; that of a cutover that was
/// aborted; 57014 after `timeout`.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_wait(
    task_id: Option<i64>,
    until: default!(Option<&str>, "'done'"),
    timeout: default!(Option<Interval>, "NULL"),
) -> String {
    or_raise(wait_for(given(task_id, "task_id"), given(until, "until"), timeout))
}

fn wait_for(id: i64, until: &str, timeout: Option<Interval>) -> Result<String> {
    admin::require()?;
    if wait::snapshot_is_fixed()? {
        return Err(Error::state("reshard_wait() can't see changes in this transaction")
            .hint("Call it under READ COMMITTED."));
    }
    let target = match until {
        "done" => None,
        phase => Some(Phase::parse(phase)?),
    };
    if with_new_snapshot(|| wait::is_own(id))? {
        return Err(Error::state(format!("what was asked of task {id} is not committed yet"))
            .detail("A worker sees it after the commit of the transaction that asked for it.")
            .hint("Wait for it in a statement, and a transaction, of its own."));
    }
    let limit = timeout.map(duration).transpose()?;
    let began = Instant::now();
    let _no_build_waits_for_us = IndexSafe::begin();
    loop {
        let (task, is_there) = with_new_snapshot(|| {
            let (task, is_settled) = (task::load(id)?, !wait::has_intents(id)?);
            let is_there = reached(&task, target, is_settled);
            if !is_there {
                refuse_hopeless(&task, target, is_settled)?;
            }
            Ok((task, is_there))
        })?;
        if is_there {
            return Ok(task.phase.as_str().to_owned());
        }
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            return Err(Error::new(
                Kind::Cancelled,
                format!("task {id} did not reach \"{until}\" in time"),
            )
            .detail(format!(
                "Its status is {}, its phase {}.{}",
                task.status.as_str(),
                task.phase.as_str(),
                task.error.map_or_else(String::new, |e| format!(" It says: {e}."))
            )));
        }
        interrupt::wait_latch(PERIOD_MS);
    }
}

fn duration(interval: Interval) -> Result<Duration> {
    let microseconds = interval.as_micros();
    u64::try_from(microseconds)
        .map(Duration::from_micros)
        .map_err(|_| Error::argument("timeout must not be negative"))
}

/// Whether the task is where the caller waits for; settled is one that nothing was asked
/// of that it has not done yet.
fn reached(task: &Task, target: Option<Phase>, is_settled: bool) -> bool {
    let Some(target) = target else { return task.status == Status::Succeeded };
    if task.status == Status::Pending {
        return false;
    }
    match target {
        // Places that a task comes back to: only being there counts, and only where it
        // isn't asked away already.
        Phase::Switched => is_settled && matches!(task.phase, Phase::Switched | Phase::Complete),
        Phase::RolledBack => is_settled && task.phase == target,
        Phase::Cutover => task.phase == target,
        Phase::Replicating => task.phase >= target && task.phase != Phase::Cutover,
        _ => task.phase >= target,
    }
}

/// Raises the error of a task that won't get there.
fn refuse_hopeless(task: &Task, target: Option<Phase>, is_settled: bool) -> Result<()> {
    let id = task.id;
    match task.status {
        Status::Failed => {
            return Err(Error {
                kind: Kind::Server(task.sqlstate.clone().unwrap_or_else(|| "55000".to_owned())),
                message: format!("task {id} failed in phase {}", task.phase.as_str()),
                detail: task.error.clone(),
                hint: task.hint.clone(),
            });
        }
        Status::Cancelled => {
            return Err(Error::new(Kind::Cancelled, format!("task {id} was cancelled")));
        }
        Status::Succeeded => {
            return Err(Error::state(format!("task {id} ended in phase {}", task.phase.as_str())));
        }
        Status::Pending | Status::Running => {}
    }
    // An end that was asked for and refused: nothing more would come.
    if target.is_none() && is_settled && task.phase != Phase::Complete {
        if let Some(error) = wait::refused_end(id)? {
            return Err(
                Error::state(format!("task {id} did not end as it was asked to")).detail(error)
            );
        }
    }
    // A switch that was asked for and aborted: the one who waits for it must know.
    let wants_switch = matches!(target, Some(Phase::Switched | Phase::RolledBack));
    if !wants_switch || !task.kind.is_migration() || task.kind == Type::Cutover {
        return Ok(());
    }
    if task.options.auto_cutover && task.phase < Phase::Cutover {
        return Ok(());
    }
    let settled = task.phase.is_flowing() && is_settled;
    if let (true, Some(last)) = (settled, cutover::latest(id)?) {
        if last.status == "aborted" {
            return Err(Error {
                kind: Kind::Server(last.sqlstate.unwrap_or_else(|| "55000".to_owned())),
                message: format!("the cutover of task {id} was aborted"),
                detail: last.error,
                hint: last.hint,
            });
        }
    }
    Ok(())
}
