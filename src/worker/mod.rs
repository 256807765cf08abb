//! Background workers: the launcher, one coordinator per database with work to
//! do, and the drivers that carry a task from phase to phase. This is the only
//! room that strings the stages together.
mod arrivals;
mod auto;
pub mod coordinator;
pub mod copy_worker;
mod copying;
mod doubled;
mod driver;
mod ending;
mod flowing;
pub mod launcher;
mod migration;
mod mirroring;
mod overtaken;
mod phases;
mod removal;
mod traffic;
pub mod verify_worker;
mod verifying;
mod watch;
mod waves;

/// Name of the library, for the postmaster.
pub const LIBRARY: &str = "reshard";
