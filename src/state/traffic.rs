//! The cutover flag.
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};

/// A row of `reshard.traffic`.
#[derive(Debug, Clone, Deserialize)]
pub struct Traffic {
    /// The cluster that takes writes.
    pub active_cluster: String,
    /// Grows with every switch.
    pub epoch: i64,
}

/// Makes the row of a migrated database, with the source active.
pub fn ensure(name: &str) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.traffic (name, active_cluster, state, epoch) VALUES ($1, $1, 'open', 0) \
         ON CONFLICT DO NOTHING",
        &[Arg::Text(name)],
    )
    .map(|_| ())
}

/// The flag of a migrated database.
///
/// # Errors
/// 42704 where it has none.
pub fn load(name: &str) -> Result<Traffic> {
    find(name)?.ok_or_else(|| Error::missing(format!("no traffic is known for \"{name}\"")))
}

/// The flag of a migrated database, if it has one.
pub fn find(name: &str) -> Result<Option<Traffic>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.traffic AS t WHERE t.name = $1",
        &[Arg::Text(name)],
    )
}

/// Takes over what another server knows.
pub fn follow(name: &str, newer: &Traffic) -> Result<()> {
    db::execute(
        "UPDATE reshard.traffic SET active_cluster = $2, epoch = $3, state = 'open', \
                changed_at = clock_timestamp() WHERE name = $1",
        &[Arg::Text(name), Arg::Text(&newer.active_cluster), Arg::I64(newer.epoch)],
    )?;
    notify(name)
}

/// Announces a pause, or its end without a switch.
pub fn set_state(name: &str, state: &str) -> Result<()> {
    db::execute(
        "UPDATE reshard.traffic SET state = $2, changed_at = clock_timestamp() \
          WHERE name = $1 AND state <> $2",
        &[Arg::Text(name), Arg::Text(state)],
    )?;
    notify(name)
}

/// The commit point of a cutover: another cluster is active from here on. The
/// flag stays `paused` until that cluster takes writes. Writers are held meanwhile:
/// no lock is waited for longer than that.
///
/// # Errors
/// 55P03 where somebody holds the flag's row.
pub fn switch(name: &str, active_cluster: &str, wait: Duration) -> Result<i64> {
    db::run(&format!("SET LOCAL lock_timeout = {}", wait.as_millis().max(1)))?;
    // The commit has to be on disk, whatever the server's default is.
    db::run(
        "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) \
          WHERE pg_catalog.current_setting('synchronous_commit') = 'off'",
    )?;
    let epoch = db::bigint(
        "UPDATE reshard.traffic SET active_cluster = $2, epoch = epoch + 1, \
                changed_at = clock_timestamp() WHERE name = $1 RETURNING epoch",
        &[Arg::Text(name), Arg::Text(active_cluster)],
    )?
    .ok_or_else(|| Error::internal(format!("traffic of \"{name}\" has no row")))?;
    notify(name)?;
    Ok(epoch)
}

fn notify(name: &str) -> Result<()> {
    db::execute(
        "SELECT pg_catalog.pg_notify('reshard', pg_catalog.to_jsonb(t)::text) \
           FROM reshard.traffic AS t WHERE t.name = $1",
        &[Arg::Text(name)],
    )
    .map(|_| ())
}

/// Poolers that have not acknowledged that `name` is paused in its present epoch.
pub fn poolers_not_paused(name: &str) -> Result<Vec<String>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(p.name) FROM reshard.pooler AS p, reshard.traffic AS t \
          WHERE t.name = $1 AND NOT (p.epoch = t.epoch AND p.state = 'paused') ORDER BY p.name",
        &[Arg::Text(name)],
    )
}
