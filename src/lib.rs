//! reshard: online resharding for PostgreSQL, from inside the source database.
//!
//! This file only declares the modules and the library's entry.
mod api;
mod cluster;
mod copy;
mod cutover;
mod error;
mod gucs;
mod pg;
mod preflight;
mod remote;
mod replication;
mod schema;
mod state;
mod verify;
mod worker;

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/bootstrap.sql", name = "bootstrap", bootstrap);
extension_sql_file!("../sql/every_server.sql", name = "every_server", requires = ["bootstrap"]);
extension_sql_file!("../sql/fence.sql", name = "fence", requires = ["every_server"]);
extension_sql_file!("../sql/staying.sql", name = "staying", requires = ["fence"]);
extension_sql_file!("../sql/replay.sql", name = "replay", requires = ["staying"]);
extension_sql_file!("../sql/replay_table.sql", name = "replay_table", requires = ["replay"]);
extension_sql_file!("../sql/ddl.sql", name = "ddl", requires = ["replay_table"]);
extension_sql_file!("../sql/views.sql", name = "views", requires = ["ddl"]);
extension_sql_file!("../sql/verify.sql", name = "verify", requires = ["views"]);
extension_sql_file!("../sql/event_triggers.sql", name = "event_triggers", requires = ["verify"]);
extension_sql_file!("../sql/comments.sql", name = "comments", finalize);

/// The library's entry: settings always, workers and shared memory only where
/// the library is preloaded.
#[pg_guard]
#[allow(unsafe_code)]
pub extern "C-unwind" fn _PG_init() {
    gucs::register();
    if pg::shmem::preloading() {
        pg::shmem::init();
        pg::progress::init();
        pg::apply_errors::init();
        worker::launcher::register();
    }
}
