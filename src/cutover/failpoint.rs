//! Failpoints: moments of a cutover at which a test makes its worker fail. Without
//! the cargo feature `failpoints` they are nothing.
//!
//! A test arms one from outside, with a file `reshard.failpoint` in the data
//! directory, which no crash of the server loses: `<step>.<moment> <action>`. The
//! worker that comes by renames it to `reshard.failpoint.hit`, so each is hit once,
//! and acts: `error` fails, `kill` ends its process with SIGKILL, `wait` waits
//! until the renamed file is gone.
use crate::cutover::Step;
use crate::error::Result;

/// Where in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
pub enum Moment {
    /// The step is written down, nothing of it is done.
    Written,
    /// Some of it is done.
    Partial,
    /// All of it is done, the next step isn't written down.
    Done,
}

/// A failpoint between two awaits.
///
/// # Errors
/// The one that a test asked for.
#[cfg(not(feature = "failpoints"))]
#[allow(clippy::unused_async)]
pub async fn reach(_: Step, _: Moment) -> Result<()> {
    Ok(())
}

/// A failpoint within a transaction of this server.
///
/// # Errors
/// As [`reach`].
#[cfg(not(feature = "failpoints"))]
pub fn reach_within(_: Step, _: Moment) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::{reach, reach_within};

/// A failpoint in what is done on several servers at the same time: hit by the
/// second of them, so that the first goes on.
///
/// # Errors
/// As [`reach`].
pub async fn reach_partly(step: Step, server: usize) -> Result<()> {
    match server {
        1 => reach(step, Moment::Partial).await,
        _ => Ok(()),
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::io::ErrorKind;
    use std::path::Path;
    use std::time::Duration;

    use super::Moment;
    use crate::cutover::Step;
    use crate::error::{Error, Result};
    use crate::pg::interrupt;

    const ARMED: &str = "reshard.failpoint";
    const HIT: &str = "reshard.failpoint.hit";

    pub async fn reach(step: Step, moment: Moment) -> Result<()> {
        if hit(step, moment)? {
            while Path::new(HIT).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    pub fn reach_within(step: Step, moment: Moment) -> Result<()> {
        if hit(step, moment)? {
            while Path::new(HIT).exists() {
                interrupt::wait_latch(5);
            }
        }
        Ok(())
    }

    /// Whether the worker is to wait here.
    fn hit(step: Step, moment: Moment) -> Result<bool> {
        let text = match std::fs::read_to_string(ARMED) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::internal(format!("failpoint: {error}"))),
        };
        let moment = match moment {
            Moment::Written => "written",
            Moment::Partial => "partial",
            Moment::Done => "done",
        };
        let point = format!("{}.{moment}", step.as_str());
        let Some((armed, action)) = text.trim().split_once(' ') else { return Ok(false) };
        if armed != point {
            return Ok(false);
        }
        std::fs::rename(ARMED, HIT)
            .map_err(|error| Error::internal(format!("failpoint: {error}")))?;
        match action {
            "wait" => Ok(true),
            "kill" => {
                interrupt::kill_this_process();
                Ok(false)
            }
            _ => Err(Error::internal(format!("failpoint \"{point}\""))),
        }
    }
}
