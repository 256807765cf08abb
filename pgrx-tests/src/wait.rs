//! Waiting for conditions: polling with a deadline, never a fixed sleep.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// What a look at a condition found.
pub enum Seen<T> {
    /// It came true.
    Done(T),
    /// Not yet; the text says how things stand and ends up in the timeout's message.
    NotYet(String),
}

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `look` is done, its error is final, or `deadline` has passed.
pub async fn wait_for<T, F, Fut>(deadline: Duration, what: impl Display, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let begin = Instant::now();
    loop {
        match look().await? {
            Seen::Done(value) => return Ok(value),
            Seen::NotYet(last_seen) => {
                if begin.elapsed() >= deadline {
                    return Err(Error::Timeout {
                        what: what.to_string(),
                        waited: begin.elapsed(),
                        last_seen,
                    });
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Like [`wait_for`], for a plain yes or no.
pub async fn wait_until<F, Fut>(deadline: Duration, what: impl Display, mut holds: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    wait_for(deadline, what, || {
        let look = holds();
        async move {
            Ok(match look.await? {
                true => Seen::Done(()),
                false => Seen::NotYet("false".to_owned()),
            })
        }
    })
    .await
}
