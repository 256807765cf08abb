//! A task as it will be: workers act on what is asked of it in order, so a verb is
//! judged by what the verbs before it will make of the task.
use crate::error::Result;
use crate::state::intent::{self, Intent, Verb};
use crate::state::task::{Phase, Status, Task};

/// A task as it will be after all that was asked of it, where that goes well.
///
/// # Errors
/// SPI's.
pub fn of(task: Task) -> Result<Task> {
    let waiting = intent::waiting(task.id)?;
    Ok(after_all(task, &waiting))
}

fn after_all(task: Task, waiting: &[Intent]) -> Task {
    let is_ending = task.is_ending();
    let mut task = waiting.iter().filter(|i| !i.args.dry_run).fold(task, after);
    if is_ending {
        task.status = Status::Cancelled;
    }
    task
}

fn after(mut task: Task, asked: &Intent) -> Task {
    match asked.verb {
        Verb::Cutover => task.phase = Phase::Switched,
        Verb::Rollback => task.phase = Phase::RolledBack,
        Verb::Complete => {
            task.phase = Phase::Complete;
            task.status = Status::Succeeded;
        }
        Verb::Cancel => task.status = Status::Cancelled,
        Verb::Stop => {
            task.status = Status::Failed;
            task.stopped = true;
            task.error = Some("It was asked to stop.".to_owned());
        }
        Verb::Resume => {
            task.status = Status::Pending;
            task.stopped = false;
        }
    }
    task
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::state::intent::Args;

    fn task() -> Task {
        serde_json::from_value(serde_json::json!({
            "id": 1, "parent_id": null, "type": "reshard", "status": "running",
            "phase": "switched", "source": "a", "destination": "b", "publication": "p",
            "options": {}, "stopped": false, "cancelling": false, "sqlstate": null, "error": null, "hint": null
        }))
        .unwrap()
    }

    fn of_task(task: Task, verbs: &[Verb]) -> Task {
        let asked = |verb: &Verb| Intent { id: 1, verb: *verb, args: Args::default() };
        after_all(task, &verbs.iter().map(asked).collect::<Vec<_>>())
    }

    fn after(verbs: &[Verb]) -> Task {
        of_task(task(), verbs)
    }

    #[test]
    fn the_last_switch_that_was_asked_for_counts() {
        assert_eq!(after(&[]).phase, Phase::Switched);
        assert_eq!(after(&[Verb::Rollback]).phase, Phase::RolledBack);
        assert_eq!(after(&[Verb::Rollback, Verb::Cutover]).phase, Phase::Switched);
    }

    #[test]
    fn a_stop_counts_until_a_resume() {
        assert!(after(&[Verb::Stop]).stopped);
        let resumed = after(&[Verb::Stop, Verb::Resume]);
        assert!(!resumed.stopped);
        assert_eq!(resumed.status, Status::Pending);
    }

    #[test]
    fn nothing_but_the_switch_keeps_a_cancelled_task_from_its_end() {
        let of = |phase, verbs: &[Verb]| {
            of_task(Task { cancelling: true, phase, ..task() }, verbs).status
        };
        assert_eq!(of(Phase::Copy, &[]), Status::Cancelled);
        assert_eq!(of(Phase::Copy, &[Verb::Resume]), Status::Cancelled);
        assert_eq!(of(Phase::Switched, &[]), Status::Running);
    }
}
