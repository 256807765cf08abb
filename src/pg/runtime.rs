//! A tokio runtime inside of a PostgreSQL process.
//!
//! The runtime has one thread, the process' main thread, so futures may call
//! the server between two awaits. A ticker lets the server handle signals and
//! the process' latch while the runtime waits for the network.
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};
use crate::pg::interrupt;

/// How often the server's interrupts and this process' latch are looked at.
const TICK: Duration = Duration::from_millis(10);

/// Builds the runtime of this process.
///
/// # Errors
/// The operating system refused an epoll instance.
pub fn build() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_start(block_signals)
        .max_blocking_threads(1)
        .build()
        .map_err(|error| Error::internal(format!("could not start the runtime: {error}")))
}

/// Drives `future` to its end while interrupts are handled; `woken` is called
/// whenever this process' latch was set.
pub fn block_on<T>(runtime: &Runtime, future: impl Future<Output = T>, woken: impl Fn()) -> T {
    runtime.block_on(async {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        tokio::pin!(future);
        loop {
            tokio::select! {
                value = &mut future => return value,
                _ = ticker.tick() => {
                    if interrupt::take_latch() {
                        woken();
                    }
                    interrupt::check();
                    interrupt::exit_without_postmaster();
                    interrupt::reload_configuration_if_asked();
                }
            }
        }
    })
}

/// Drives a future from a SQL function: the statement can be cancelled.
///
/// # Errors
/// The future's own, or no runtime.
pub fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = build()?;
    let value = block_on(&runtime, future, || ());
    runtime.shutdown_background();
    value
}

/// Keeps the server's signals on the main thread: tokio's resolver thread must
/// never run a PostgreSQL signal handler.
fn block_signals() {
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}
