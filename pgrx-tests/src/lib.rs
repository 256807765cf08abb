//! Real clusters for the scenarios: servers of their own, clients that write
//! and remember what was acknowledged, and the comparison of both.
//!
//! Nothing in here knows how `reshard` works inside. It uses what a DBA uses:
//! the SQL functions and views, and plain connections to the servers.

pub mod cluster;
pub mod demo;
pub mod error;
pub mod load;
pub mod migration;
pub mod oracle;
pub mod pause;
pub mod placement;
pub mod random;
pub mod scenario;
pub mod session;
pub mod wait;

pub use cluster::{Rig, RigOptions, Server, Share, Stop};
pub use error::{Error, Result, SqlError};
pub use migration::Migration;
pub use session::Session;
