//! The driver of one task: carries it from phase to phase, acts on intents, and
//! decides what an error means. Ends when there is nothing to do; the
//! coordinator starts it again when a user asks for something.
use std::rc::Rc;
use std::time::Duration;

use crate::cutover::switch::Extent;
use crate::error::{Error, Kind, Policy, Result};
use crate::pg::xact::transaction;
use crate::state::event::{self, Severity};
use crate::state::intent::{self, Args, Intent, Verb};
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::worker::auto::Auto;
use crate::worker::coordinator::Shared;
use crate::worker::phases::{self, Next};
use crate::worker::{ending, overtaken, traffic};

/// Tries of a phase that fails for reasons that may pass, before the task fails.
const TRIES: u32 = 8;
/// How often the table of intents is looked at when nobody woke the driver.
const PERIOD: Duration = Duration::from_millis(500);

/// Drives a task to where it waits for nothing but a user.
pub async fn run(id: i64, shared: Rc<Shared>) {
    let mut failures = 0;
    let mut auto = Auto::new();
    loop {
        let outcome = turn(id, &shared, &mut auto).await;
        match outcome {
            Ok(Turn::Again) => failures = 0,
            Ok(Turn::Interrupted) => {}
            Ok(Turn::End) => return,
            Err(error) => {
                failures += 1;
                if !retry(id, &error, failures, &shared).await {
                    return;
                }
            }
        }
    }
}

enum Turn {
    /// Something was done; there may be more.
    Again,
    /// An intent came up; nothing was done.
    Interrupted,
    /// There is nothing more to do.
    End,
}

async fn turn(id: i64, shared: &Rc<Shared>, auto: &mut Auto) -> Result<Turn> {
    let (task, next) = transaction(|| Ok((task::load(id)?, intent::next(id)?)))?;
    let may_have_switched = task.phase.is_flowing() || task.phase == Phase::Cutover;
    if task.kind.is_migration() && may_have_switched && overtaken::follow(&task).await? {
        return Ok(Turn::Again);
    }
    if task.kind.is_migration() && traffic::recover(&task).await? {
        return Ok(Turn::Again);
    }
    if task.phase == Phase::Cutover {
        // It ended before it began: nothing was switched, nothing is to be undone.
        traffic::forget_unbegun(task)?;
        return Ok(Turn::Again);
    }
    if let Some(next) = next {
        act(task, &next).await?;
        return Ok(Turn::Again);
    }
    if task.status.is_final() || task.status == Status::Failed {
        return Ok(Turn::End);
    }
    if task.is_ending() {
        ending::cancel(task, shared).await?;
        return Ok(Turn::Again);
    }
    let next = tokio::select! {
        done = phases::run(task.clone(), shared, auto) => done?,
        seen = next_intent(id, shared) => return seen.map(|()| Turn::Interrupted),
    };
    if next == Next::CutOver {
        // Like one that was asked for, it is not interrupted.
        auto.cut_over(task).await?;
    }
    Ok(Turn::Again)
}

/// Returns once an intent waits.
async fn next_intent(id: i64, shared: &Shared) -> Result<()> {
    loop {
        let woken = shared.wake.notified();
        if transaction(|| intent::next(id))?.is_some() {
            return Ok(());
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Acts on an intent and writes down how that went. An intent that can't be
/// fulfilled is over all the same: the user reads why and asks again.
async fn act(task: Task, asked: &Intent) -> Result<()> {
    let id = task.id;
    let outcome = match asked.verb {
        Verb::Cancel => ending::begin_cancel(&task),
        _ if task.is_ending() => Err(task.was_cancelled()),
        Verb::Cutover => traffic::cut_over(task, extent(&asked.args)).await,
        Verb::Rollback => traffic::roll_back(task, extent(&asked.args)).await,
        Verb::Complete => ending::complete(task).await,
        Verb::Stop => ending::stop(task).await,
        Verb::Resume => transaction(|| task::reopen(&task)),
    };
    transaction(|| {
        intent::handled(asked.id, outcome.as_ref().err())?;
        if let Err(error) = &outcome {
            task::note_error(id, Some(error))?;
            event::write_error(id, Severity::Error, "refused", error)?;
        }
        Ok(())
    })
}

fn extent(args: &Args) -> Extent {
    match (args.dry_run, args.no_fence) {
        (false, _) => Extent::Whole,
        (true, false) => Extent::DryRun,
        (true, true) => Extent::Checks,
    }
}

/// Has the hint say how the task goes on, where it doesn't yet.
fn with_way_on(mut error: Error, task: &Task) -> Error {
    let verb = if task.is_ending() { "cancel" } else { "resume" };
    let hint = error.hint.as_deref().unwrap_or("Mend the cause.");
    if !hint.contains("SELECT reshard_") {
        error.hint = Some(format!("{hint} Then SELECT reshard_{verb}({});", task.id));
    }
    error
}

/// Waits before another try; false where there will be none.
async fn retry(id: i64, error: &Error, failures: u32, shared: &Shared) -> bool {
    let give_up = error.policy() == Policy::Fail || failures >= TRIES;
    let written = transaction(|| {
        let task = task::load(id)?;
        // Flows go on without us: a migration that only watches never gives up, and
        // a cutover that was interrupted has to end on one side or the other.
        let watching = task.kind != Type::SchemaSync
            && (task.phase == Phase::Cutover
                || task.phase.is_flowing() && error.policy() == Policy::Retry);
        // Nor does a cancel: a shard that is away may take as long as it likes.
        let waiting = task.is_ending() && error.policy() == Policy::Retry;
        if give_up && !watching && !waiting {
            let error = with_way_on(error.clone(), &task);
            task::fail(id, &error)?;
            event::write_error(id, Severity::Error, "failed", &error)?;
            return Ok(false);
        }
        task::note_error(id, Some(error))?;
        event::write_error(id, Severity::Warning, "retry", error)?;
        Ok(true)
    });
    match written {
        Ok(true) => {}
        Ok(false) => return false,
        Err(lost) => {
            pgrx::warning!("reshard could not note an error: {}", lost.one_line());
            return false;
        }
    }
    let pause = Duration::from_millis(250) * 2_u32.pow(failures.min(4));
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = next_intent(id, shared) => {}
    }
    true
}

/// The error of a task that a user stopped.
pub fn stopped(id: i64) -> Error {
    Error::new(Kind::Cancelled, "the task was stopped").hint(format!(
        "SELECT reshard_resume({id}); goes on, SELECT reshard_cancel({id}); ends it."
    ))
}
