//! The comparison of both clusters of a migration, row by row, while both are live.
//!
//! [`work`] is what a verify worker does for a task: it cuts the task's tables into
//! chunks, compares these, and writes what it finds to `reshard.verification_chunk` and
//! `reshard.verification_difference`. It can be ended and begun again at any time. Why
//! nothing is reported that does not differ is told in `verdict`.
mod chunk;
mod compare;
mod cut;
mod placement;
mod reading;
mod rows;
mod server;
mod shape;
mod timeline;
mod verdict;
mod work;

pub use work::work;
