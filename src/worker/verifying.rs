//! Comparisons: keeps a verify worker running until all chunks are compared, and says
//! what came of them.
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::pg::dynamic_worker::{self, DynamicWorker, WorkerStatus};
use crate::pg::xact::transaction;
use crate::state::event;
use crate::state::task::{self, Status, Task};
use crate::state::verification::{self, Summary};

/// How often the worker is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often the task is looked at.
const LOOK_AT_TASK: Duration = Duration::from_millis(500);
/// How long a worker may take to end.
const END: Duration = Duration::from_secs(10);
/// Tables that an error names.
const NAMED: usize = 5;

/// Compares what is left, and ends the task.
///
/// # Errors
/// 23000 where rows differ or kept changing; what stopped the worker; 53400 where none
/// can be started.
pub async fn run(task: &Task) -> Result<()> {
    let id = task.id;
    if transaction(|| verification::summary(id))?.is_none_or(|s| s.open > 0) {
        transaction(|| task::note_error(id, None))?;
        if !work(id).await? {
            return Ok(());
        }
    }
    let (task, summary) = transaction(|| Ok((task::load(id)?, verification::summary(id)?)))?;
    let Some(summary) = summary.filter(|s| s.open == 0) else {
        return Err(ended(&task));
    };
    if summary.differences + summary.in_flux > 0 {
        return Err(unequal(id, &summary));
    }
    transaction(|| {
        task::note_error(id, None)?;
        task::finish(id, Status::Succeeded)?;
        event::info(
            id,
            "verified",
            &format!("{} rows of {} tables are equal", summary.rows, summary.tables),
        )
    })
}

/// Runs a worker to its end; false where the task was ended meanwhile.
async fn work(id: i64) -> Result<bool> {
    let worker = DynamicWorker::start(
        &format!("reshard verify worker for task {id}"),
        "reshard verify worker",
        "reshard_verify_worker_main",
        &format!("{} {id}", dynamic_worker::current_database()),
    )
    .ok_or_else(|| {
        Error::new(Kind::Resources, "could not start a verify worker")
            .detail("All places for background workers are taken.")
            .hint("Raise max_worker_processes and restart the server.")
    })?;
    let mut looked = Instant::now();
    while worker.status() != WorkerStatus::Stopped {
        if looked.elapsed() > LOOK_AT_TASK {
            looked = Instant::now();
            if transaction(|| task::load(id))?.status.is_final() {
                return Ok(false);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(true)
}

/// What a worker ended with that has not compared everything.
fn ended(task: &Task) -> Error {
    let code = task.sqlstate.clone().unwrap_or_else(|| "57P02".to_owned());
    let message = task.error.clone().unwrap_or_else(|| "the verify worker ended".to_owned());
    let mut error = Error::new(Kind::Server(code), message);
    error.hint = task.hint.clone();
    error
}

fn unequal(id: i64, summary: &Summary) -> Error {
    let mut names = summary.unequal.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if summary.unequal.len() > NAMED {
        names.push_str(&format!(" and {} more", summary.unequal.len() - NAMED));
    }
    let detail = format!(
        "Of {} tables with {} rows these are not equal: {names}.",
        summary.tables, summary.rows
    );
    if summary.differences > 0 {
        return Error::new(Kind::Mismatch, "the clusters differ").detail(detail).hint(format!(
            "SELECT * FROM reshard.differences WHERE task_id = {id}; names the rows. Mend them on the shard \
             that it names (SET application_name = 'reshard repair' lets a session write to the closed cluster), \
             then SELECT reshard_resume({id}); compares them again."
        ));
    }
    Error::new(Kind::Mismatch, "rows kept changing and could not be verified").detail(detail).hint(
        format!("No row is known to differ. SELECT reshard_resume({id}); looks at them again."),
    )
}

/// Ends the comparisons of a migration that is about to end, and waits until no worker
/// of them writes markers any more.
///
/// # Errors
/// 55P03 where a worker does not end.
pub async fn end_all(migration: i64) -> Result<()> {
    transaction(|| task::cancel_comparisons(migration))?;
    let deadline = Instant::now() + END;
    while transaction(|| verification::has_worker(migration))? {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::LockNotAvailable, "a verify worker does not end")
                .hint("See pg_stat_activity for backend_type \"reshard verify worker\"."));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
