//! The copy: tables into parts, parts to shards, each exactly once.
//!
//! What the coordinator calls, in this order:
//! - [`plan`]`(task_id, publication, destination)`, in a transaction: one row of
//!   `reshard.copy_table` for each table. Repeating it adds new tables only. Where the
//!   source has several shards, [`plan_source_keys`]`(task_id, source)` and
//!   [`assign_nodes`]`(task_id, nodes)` say which of them each table comes from.
//! - [`next_wave`]`(tables)` says which tables go next; then rows of `reshard.wave`
//!   with the exported snapshots, [`measure`] on each source shard, and
//!   [`plan_parts`]`(task_id, wave, measured)`, in a transaction: the parts of the
//!   wave's tables that are `pending`.
//! - [`run`]`(task_id, wave, ...).await`, between transactions, on the coordinator's
//!   runtime: copies, and says with [`Finished`] whether tables are left over.
//!   Tables become `copied` one by one. Drop the future to stop.
//! - for tables that are left over, [`reset_tables`]`(task_id, tables,
//!   shards).await`, then the next wave as above.
//!
//! Progress: `reshard.copy_part.rows`, `.bytes`, `.blocks_done` (never goes
//! back), written at least each second while a part runs; a table's share is
//! `sum(blocks_done) / copy_table.blocks`.
//!
//! `pg::progress::init()` has to be called from `_PG_init` while
//! `shared_preload_libraries` are loaded.
mod assigned;
mod buffers;
mod copier;
mod courier;
mod crew;
mod load;
mod measure;
mod nodes;
mod omni;
mod part;
mod plan;
mod pool;
pub mod removal;
mod reset;
mod work;

pub use assigned::copy_assigned;
pub use measure::measure;
pub use nodes::{end_backends, Node};
pub use omni::assign_nodes;
pub use part::{met_unplaced, reopen_failed};
pub use plan::{next_wave, plan, plan_parts, plan_source_keys, waves};
pub use pool::{run, Finished};
pub use reset::{empty_extension_tables, forget_parts, remove_arrivals, reset_tables};
pub use work::work;
