//! The driver of one task: carries it from phase to phase, acts on intents, and
//! decides what an error means. Ends when there is nothing to do; the
//! coordinator starts it again when a user asks for something.
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cutover::switch::Extent;
use crate::error::{Error, Kind, Policy, Result};
use crate::pg::xact::transaction;
use crate::state::event::{self, Severity};
use crate::state::intent::{self, Args, Intent, Verb};
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::worker::auto::Auto;
use crate::worker::coordinator::Shared;
use crate::worker::phases::{self, Next};
use crate::worker::watch::Watch;
use crate::worker::{ending, overtaken, traffic};

/// Tries of a phase that fails for reasons that may pass, before the task fails.
const TRIES: u32 = 8;
/// How long a server may be away before the task fails: a restart, a failover.
const ABSENCE: Duration = Duration::from_secs(300);
/// A try that went on for so long got somewhere.
const PROGRESS: Duration = Duration::from_secs(60);
/// How often the table of intents is looked at when nobody woke the driver.
const PERIOD: Duration = Duration::from_millis(500);

/// Drives a task to where it waits for nothing but a user.
pub async fn run(id: i64, shared: Rc<Shared>) {
    let mut tries = Tries::default();
    let mut auto = Auto::new();
    let mut watch = Watch::default();
    shared.doubled.borrow_mut().retain(|(task, _), _| *task != id);
    loop {
        let began = Instant::now();
        let outcome = turn(id, &shared, &mut auto, &mut watch).await;
        match outcome {
            Ok(Turn::Again) => tries = Tries::default(),
            Ok(Turn::Interrupted) => {}
            Ok(Turn::End) => return,
            Err(error) => {
                if began.elapsed() > PROGRESS {
                    tries = Tries::default();
                }
                tries.count(&error, Instant::now());
                if !retry(id, &error, &mut tries, &shared).await {
                    return;
                }
                watch.is_shown(&error);
            }
        }
    }
}

/// Tries that failed since a phase got on last.
#[derive(Default)]
struct Tries {
    /// All of them.
    all: u32,
    /// Those that failed though all servers were there.
    failures: u32,
    /// Since when each try has found a server away.
    away_since: Option<Instant>,
    /// What the last event said.
    written: Option<String>,
}

impl Tries {
    fn count(&mut self, error: &Error, now: Instant) {
        self.all += 1;
        match is_away(error) {
            true => self.away_since = self.away_since.or(Some(now)),
            false => {
                self.away_since = None;
                self.failures += 1;
            }
        }
    }

    fn are_used_up(&self, now: Instant) -> bool {
        match self.away_since {
            Some(since) => now - since >= ABSENCE,
            None => self.failures >= TRIES,
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(250) * 2_u32.pow(self.all.min(4))
    }
}

/// Whether a server is down, starts, or can't be reached.
fn is_away(error: &Error) -> bool {
    let code = error.sqlstate();
    error.policy() == Policy::Retry && (code.starts_with("08") || code.starts_with("57P"))
}

/// Whether an error may pass by itself while flows go on: also a login that is refused,
/// while somebody changes a password and then the declaration.
fn may_pass(error: &Error) -> bool {
    error.policy() == Policy::Retry || error.is_refused_login()
}

enum Turn {
    /// Something was done; there may be more.
    Again,
    /// An intent came up; nothing was done.
    Interrupted,
    /// There is nothing more to do.
    End,
}

async fn turn(id: i64, shared: &Rc<Shared>, auto: &mut Auto, watch: &mut Watch) -> Result<Turn> {
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
        done = phases::run(task.clone(), shared, auto, watch) => done?,
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
async fn retry(id: i64, error: &Error, tries: &mut Tries, shared: &Shared) -> bool {
    let give_up = error.policy() == Policy::Fail || tries.are_used_up(Instant::now());
    let text = error.one_line();
    let is_news = tries.written.as_ref() != Some(&text);
    let written = transaction(|| {
        let task = task::load(id)?;
        // Flows go on without us: a migration that only watches never gives up, and
        // a cutover that was interrupted has to end on one side or the other.
        let watching = task.kind != Type::SchemaSync
            && match task.phase {
                Phase::Cutover => true,
                phase => (phase == Phase::CatchUp || phase.is_flowing()) && may_pass(error),
            };
        // Nor does a cancel: a shard that is away may take as long as it likes.
        let waiting = task.is_ending() && may_pass(error);
        if give_up && !watching && !waiting {
            let error = with_way_on(error.clone(), &task);
            task::fail(id, &error)?;
            event::write_error(id, Severity::Error, "failed", &error)?;
            return Ok(false);
        }
        task::note_error(id, Some(error))?;
        if is_news {
            event::write_error(id, Severity::Warning, "retry", error)?;
        }
        Ok(true)
    });
    match written {
        Ok(true) => tries.written = Some(text),
        Ok(false) => return false,
        Err(lost) => {
            pgrx::warning!("reshard could not note an error: {}", lost.one_line());
            return false;
        }
    }
    tokio::select! {
        () = tokio::time::sleep(tries.pause()) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Error {
        Error::new(Kind::Unreachable, "could not connect")
    }

    #[test]
    fn a_server_may_be_away_for_minutes() {
        let (mut tries, begin) = (Tries::default(), Instant::now());
        for second in (0..ABSENCE.as_secs()).step_by(4) {
            let now = begin + Duration::from_secs(second);
            tries.count(&away(), now);
            assert!(!tries.are_used_up(now));
        }
        assert!(tries.are_used_up(begin + ABSENCE));
    }

    #[test]
    fn other_errors_are_counted_and_absences_are_not() {
        let (mut tries, now) = (Tries::default(), Instant::now());
        let deadlock = Error::new(Kind::Server("40P01".to_owned()), "deadlock detected");
        for _ in 0..TRIES {
            assert!(!tries.are_used_up(now));
            tries.count(&away(), now);
            tries.count(&deadlock, now);
        }
        assert!(tries.are_used_up(now));
    }

    #[test]
    fn a_refused_login_passes_while_flows_go_on_and_a_bug_does_not() {
        let refused = Error::new(Kind::Server("28P01".to_owned()), "could not connect");
        assert!(may_pass(&refused) && refused.policy() == Policy::Fail);
        assert!(!may_pass(&Error::internal("lost")));
    }
}
