//! Typed access to the state tables. Runs inside of the caller's transaction;
//! decides nothing.
pub mod cluster;
pub mod cutover;
pub mod elsewhere;
pub mod event;
pub mod flow;
pub mod intent;
pub mod mapping;
pub mod mirror;
pub mod options;
pub mod removal;
pub mod schema;
pub mod staying;
pub mod table;
pub mod task;
pub mod traffic;
pub mod verification;
pub mod wait;
pub mod wave;

use crate::error::{Error, Result};
use crate::pg::db;

/// Tells this database from every other one, in names of objects on other
/// servers: six hexadecimal digits of the server's, the database's and the
/// extension's identity.
///
/// # Errors
/// SPI's.
pub fn token() -> Result<String> {
    db::text("SELECT reshard.token()", &[])?
        .ok_or_else(|| Error::internal("this database has no token"))
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
