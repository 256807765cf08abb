//! Typed access to the state tables. Runs inside of the caller's transaction;
//! decides nothing.
pub mod cluster;
pub mod cutover;
pub mod event;
pub mod flow;
pub mod intent;
pub mod mapping;
pub mod options;
pub mod schema;
pub mod table;
pub mod task;
pub mod traffic;
pub mod verification;
pub mod wait;
pub mod wave;

use crate::error::{Error, Result};
use crate::pg::db;

/// Tells this database from every other one, in names of objects on other
/// servers: six hexadecimal digits of the server's and the database's identity.
///
/// # Errors
/// SPI's.
pub fn token() -> Result<String> {
    db::text(
        "SELECT pg_catalog.left(pg_catalog.md5(pg_catalog.concat_ws('/', \
             (pg_catalog.pg_control_system()).system_identifier, d.oid)), 6) \
           FROM pg_catalog.pg_database AS d \
          WHERE d.datname = pg_catalog.current_database()",
        &[],
    )?
    .ok_or_else(|| Error::internal("the current database has no row in pg_database"))
}

/// A migration of this database that another shard of its cluster coordinates.
///
/// # Errors
/// SPI's.
pub fn joined() -> Result<Option<String>> {
    db::text(
        "SELECT min(pg_catalog.format('task %s, from cluster \"%s\" to \"%s\"', j.task_id, j.source, \
                j.destination)) FROM reshard.joined_task AS j",
        &[],
    )
}
