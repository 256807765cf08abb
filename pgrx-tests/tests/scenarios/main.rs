//! All scenarios, one module per subject; each test is named by the promise it checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod copied_data;
mod cutover;
mod harness;
mod load;
mod mistakes;
mod restarts;
mod rows;
mod secrets;
mod stop_and_cancel;
mod whole_run;
