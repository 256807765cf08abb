//! Sorts the statements of `pg_dump --schema-only` into the phases of a
//! resharding run.
//!
//! Text goes in, a [`Plan`] comes out; nothing here talks to a server. Each
//! statement is told apart by its parse tree (libpg_query), never by looking
//! at its text, and a statement that isn't known is an error. The order of
//! pg_dump is kept within each step, since it carries the dependencies.
//!
//! With the feature `planner` off, only the types of the plan are left, for
//! programs that read plans and mustn't link libpg_query.

mod contract;
mod kind;
mod render;

#[cfg(feature = "planner")]
mod attribute_version;
#[cfg(feature = "planner")]
mod classify;
#[cfg(feature = "planner")]
mod error;
#[cfg(feature = "planner")]
mod leave_out;
#[cfg(feature = "planner")]
mod lexer;
#[cfg(feature = "planner")]
mod order;
#[cfg(feature = "planner")]
mod planner;
#[cfg(feature = "planner")]
mod session;
#[cfg(feature = "planner")]
mod split;

pub use contract::{LeftOut, Phase, Plan, Statement, Step, CONTRACT_VERSION};
pub use kind::Kind;
pub use render::{reset_of, to_script};

#[cfg(feature = "planner")]
pub use error::PlanError;
#[cfg(feature = "planner")]
pub use leave_out::Options;
#[cfg(feature = "planner")]
pub use planner::plan;
