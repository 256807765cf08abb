//! Checks before a run.
