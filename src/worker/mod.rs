//! Background workers: their entries. What they do is told by the stages.
pub mod copy_worker;
#[cfg(feature = "failpoints")]
pub mod copy_dev;
