//! The cutover that nobody has to ask for: when it is tried, and how often.
use std::time::{Duration, Instant};

use crate::cutover::switch::Extent;
use crate::error::{Error, Result};
use crate::pg::xact::transaction;
use crate::state::event::{self, Severity};
use crate::state::task::{self, Phase, Task};
use crate::worker::traffic;

/// Pause between two of them, and how many are tried.
const RETRY: Duration = Duration::from_secs(5);
const TRIES: u32 = 6;

/// Automatic cutovers of one migration, since its driver began.
pub struct Auto {
    tries: u32,
    next: Instant,
}

impl Auto {
    /// None was tried yet.
    pub fn new() -> Self {
        Self { tries: 0, next: Instant::now() }
    }

    /// Whether it is time for one.
    pub fn is_due(&self, task: &Task) -> bool {
        task.options.auto_cutover
            && task.phase == Phase::Replicating
            && self.tries < TRIES
            && Instant::now() >= self.next
    }

    /// Tries one. That it is aborted is no error.
    ///
    /// # Errors
    /// One behind the commit point, and those of the state tables.
    pub async fn cut_over(&mut self, task: Task) -> Result<()> {
        let id = task.id;
        self.tries += 1;
        let Err(error) = traffic::cut_over(task, Extent::Whole).await else { return Ok(()) };
        if transaction(|| task::load(id))?.phase == Phase::Cutover {
            return Err(error);
        }
        self.next = Instant::now() + RETRY;
        self.note_abort(id, &error)
    }

    fn note_abort(&self, id: i64, error: &Error) -> Result<()> {
        let tries = self.tries;
        transaction(|| {
            task::note_error(id, Some(error))?;
            if tries >= TRIES {
                // Who waits for the switch has to know that it does not come by itself.
                task::forget_auto_cutover(id)?;
            }
            let message = match tries < TRIES {
                true => format!("automatic cutover {tries} was aborted and is tried again"),
                false => {
                    format!(
                        "automatic cutover was aborted {tries} times; call reshard_cutover({id})"
                    )
                }
            };
            event::write(
                Some(id),
                Severity::Warning,
                "auto_cutover",
                &message,
                serde_json::json!({ "error": error.one_line(), "hint": error.hint }),
            )
        })
    }
}
