//! Cutover: moves traffic from one cluster to the other without losing a write.
//!
//! `switch` is the procedure, `fence` the lock and the latch that keep writers
//! off, `sequences` what numbers come next, `recover` what happens after a crash
//! in the middle. A rollback is the same procedure the other way.
//!
//! Invariants:
//! * never are both clusters open for writes: the new one's latch opens only
//!   after the old one's was shut and the switch was committed;
//! * the commit point is one row of `reshard.traffic`: before it every failure
//!   ends with the old cluster open, after it with the new one open.
pub mod bounds;
pub mod check;
pub mod failpoint;
pub mod fence;
pub mod hold;
pub mod lanes;
pub mod recover;
pub mod sequences;
pub mod step;
pub mod switch;

pub use step::Step;
