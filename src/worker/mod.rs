//! Background workers: the launcher, one coordinator per database with work to
//! do, and the drivers that carry a task from phase to phase. This is the only
//! room that strings the stages together.
pub mod coordinator;
pub mod driver;
pub mod launcher;
mod phases;

/// Name of the library, for the postmaster.
pub const LIBRARY: &str = "reshard";
