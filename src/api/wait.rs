//! Waiting for a task.
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::api::argument::given;
use crate::api::{admin, elsewhere};
use crate::error::{Error, Kind, Result};
use crate::pg::index_safe::IndexSafe;
use crate::pg::report::{or_raise, warn};
use crate::pg::xact::with_new_snapshot;
use crate::pg::{interrupt, shmem};
use crate::state::intent::Verb;
use crate::state::task::{self, Phase, Status, Task};
use crate::state::{cutover, wait};

/// How often the task is looked at.
const PERIOD_MS: i64 = 50;
/// How long the start of a coordinator may be refused before who waits is told.
const PATIENCE: Duration = Duration::from_secs(3);

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
    elsewhere::refuse(Some(id))?;
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
    let mut attendance = Attendance::default();
    loop {
        let (task, is_there) = with_new_snapshot(|| {
            // In this order: what has been done is seen in the task.
            let is_settled = !wait::has_intents(id)?;
            let task = task::load(id)?;
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
        attendance.look(id, began.elapsed());
        interrupt::wait_latch(PERIOD_MS);
    }
}

/// Whether a coordinator can be started; who waits in vain is told once, and goes on
/// waiting, since a worker may come free.
#[derive(Default)]
struct Attendance {
    is_asked: bool,
    is_told: bool,
}

impl Attendance {
    fn look(&mut self, id: i64, waited: Duration) {
        if waited < PATIENCE {
            return;
        }
        if !self.is_asked {
            // After a start of the server the launcher looks into every database by itself,
            // and notes nothing.
            shmem::require_coordinator();
            self.is_asked = true;
        }
        if !self.is_told && shmem::refused_for().is_some_and(|refused| refused > PATIENCE) {
            warn(
                Error::new(Kind::Resources, "no coordinator could be started")
                    .detail(format!("Task {id} waits for one; the launcher goes on trying."))
                    .hint("Raise max_worker_processes and restart, or end other workers."),
            );
            self.is_told = true;
        }
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
        Phase::Switched => is_settled && task.phase.is_after_switch(),
        Phase::RolledBack => is_settled && task.phase == target,
        Phase::Cutover => task.phase == target,
        Phase::Replicating => task.phase >= target && task.phase != Phase::Cutover,
        _ => task.phase >= target,
    }
}

/// Raises the error of a task that won't get there.
fn refuse_hopeless(task: &Task, target: Option<Phase>, is_settled: bool) -> Result<()> {
    refuse_ended(task, is_settled)?;
    match target {
        _ if !is_settled => Ok(()),
        None if task.phase != Phase::Complete => {
            refuse_refused(task, &[Verb::Complete, Verb::Cancel], "did not end")
        }
        Some(Phase::Switched) => refuse_unswitched(task, Verb::Cutover),
        Some(Phase::RolledBack) => refuse_unswitched(task, Verb::Rollback),
        _ => Ok(()),
    }
}

/// The error of a task that does not run.
fn refuse_ended(task: &Task, is_settled: bool) -> Result<()> {
    let id = task.id;
    match task.status {
        // It may have been asked to go on.
        Status::Failed if !is_settled => Ok(()),
        Status::Failed => Err(Error {
            kind: Kind::Server(task.sqlstate.clone().unwrap_or_else(|| "55000".to_owned())),
            message: format!("task {id} failed in phase {}", task.phase.as_str()),
            detail: task.error.clone(),
            hint: task.hint.clone(),
        }),
        Status::Cancelled => Err(Error::new(Kind::Cancelled, format!("task {id} was cancelled"))),
        Status::Succeeded => {
            Err(Error::state(format!("task {id} ended in phase {}", task.phase.as_str())))
        }
        Status::Pending | Status::Running => Ok(()),
    }
}

/// A switch that was asked for and aborted, or did not even begin: the one who waits for
/// it must know.
fn refuse_unswitched(task: &Task, verb: Verb) -> Result<()> {
    let id = task.id;
    let comes_by_itself = task.options.auto_cutover && task.phase < Phase::Cutover;
    if !task.kind.is_migration() || !task.phase.is_flowing() || comes_by_itself {
        return Ok(());
    }
    match cutover::latest(id)?.filter(|last| last.status == "aborted") {
        Some(last) => Err(Error {
            kind: Kind::Server(last.sqlstate.unwrap_or_else(|| "55000".to_owned())),
            message: format!("the cutover of task {id} was aborted"),
            detail: last.error,
            hint: last.hint,
        }),
        None => refuse_refused(task, &[verb], "was not switched"),
    }
}

/// What was asked for last, and refused: nothing more would come.
fn refuse_refused(task: &Task, verbs: &[Verb], what: &str) -> Result<()> {
    match wait::refused(task.id, verbs)? {
        Some(error) => {
            Err(Error::state(format!("task {} {what} as it was asked to", task.id)).detail(error))
        }
        None => Ok(()),
    }
}
