//! All scenarios, one module per subject; each test is named by the promise it checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod harness;
mod load;
