//! The fence: the lease, an advisory lock that drains and holds writers as long
//! as its session lives, and the latch, a sequence that holds for good.
//!
//! The trigger's side of both is `reshard.fence()` in sql/fence.sql.
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::Side;
use crate::error::{Error, Kind, Result};
use crate::remote::quote::literal;
use crate::remote::{connect, Connection, Links, Purpose};

/// The advisory lock's key, the same as in `reshard.fence()`.
const KEY: &str = "1919251304, 0";

/// `last_value` of `reshard.latch` on a cluster that takes writes.
const OPEN: i32 = 1;
/// `last_value` of `reshard.latch` on one that doesn't.
const SHUT: i32 = 2;

/// Sessions that can hold the lease: opened before, since opening takes time.
pub struct Lease {
    sessions: Vec<Connection>,
}

impl Lease {
    /// Opens a session on each shard of a side; holds nothing yet.
    ///
    /// # Errors
    /// A server can't be reached.
    pub async fn open(links: &Links, side: Side) -> Result<Self> {
        let shards = &links.cluster(side).shards;
        let sessions = try_join_all(shards.iter().map(|s| connect(s, Purpose::Fence))).await?;
        Ok(Self { sessions })
    }

    /// Waits until all transactions that have written have ended, and holds those
    /// that are about to write, on all shards at the same time.
    ///
    /// # Errors
    /// 55P03 after `timeout`, with the transactions in the way.
    pub async fn take(&self, timeout: Duration) -> Result<()> {
        let milliseconds = timeout.as_millis();
        try_join_all(self.sessions.iter().map(|session| async move {
            let sql = format!(
                "SET lock_timeout = {milliseconds}; SELECT pg_advisory_lock({KEY}); \
                 SET lock_timeout = 0"
            );
            match session.batch(&sql).await {
                Ok(()) => Ok(()),
                Err(error) if error.sqlstate() == "55P03" => Err(blocked(session, timeout).await?),
                Err(error) => Err(error),
            }
        }))
        .await?;
        Ok(())
    }

    /// Shuts the latch, in the very session that holds the lease: that it succeeds
    /// proves that the lease was held without a gap.
    ///
    /// # Errors
    /// The servers'; 55000 where the lease was lost.
    pub async fn shut(&self) -> Result<()> {
        try_join_all(self.sessions.iter().map(|session| async move {
            let held: bool = session
                .value(
                    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' \
                        AND pid = pg_backend_pid() AND mode = 'ExclusiveLock' AND granted)",
                    &[],
                )
                .await?;
            if !held {
                return Err(Error::state(format!("the lease on {} was lost", session.label())));
            }
            session.batch(&latch(SHUT)).await
        }))
        .await?;
        Ok(())
    }
}

fn latch(value: i32) -> String {
    // setval writes WAL; the session's synchronous commit puts it on disk.
    format!("SELECT pg_catalog.setval('reshard.latch', {value}, true)")
}

/// Opens a cluster's latch, once no session of a lease is left there: one that
/// is about to shut the latch must not be overtaken.
///
/// # Errors
/// The servers'; 55P03 where such a session does not end.
pub async fn open_latch(links: &Links, side: Side) -> Result<()> {
    let sessions = links.sessions(side).await?;
    try_join_all(sessions.iter().map(|(_, session)| async move {
        let ended: bool = session
            .value(
                "SELECT coalesce(bool_and(pg_terminate_backend(pid, 10000)), true) \
                   FROM pg_stat_activity WHERE application_name = $1 \
                    AND datname = current_database() AND pid <> pg_backend_pid()",
                &[&Purpose::Fence.application_name()],
            )
            .await?;
        if !ended {
            return Err(Error::new(
                Kind::LockNotAvailable,
                format!("a session of the fence on {} does not end", session.label()),
            )
            .hint("See pg_stat_activity there for application_name \"reshard fence\"."));
        }
        session.batch(&latch(OPEN)).await
    }))
    .await?;
    Ok(())
}

/// Shuts a cluster's latch without a lease: for a cluster that has no writers.
///
/// # Errors
/// The servers'.
pub async fn shut_latch(links: &Links, side: Side) -> Result<()> {
    links.batch(side, &latch(SHUT)).await
}

/// Opens a cluster's latch and writes the flag on its shards, in one go.
///
/// # Errors
/// The servers'.
pub async fn open_with_flag(
    links: &Links,
    side: Side,
    name: &str,
    active: &str,
    epoch: i64,
) -> Result<()> {
    links.batch(side, &format!("{}; {}", flag(name, active, epoch), latch(OPEN))).await
}

/// Writes the flag on all shards of a side; a newer epoch is not overwritten.
///
/// # Errors
/// The servers'.
pub async fn write_flag(
    links: &Links,
    side: Side,
    name: &str,
    active: &str,
    epoch: i64,
) -> Result<()> {
    links.batch(side, &flag(name, active, epoch)).await
}

fn flag(name: &str, active: &str, epoch: i64) -> String {
    format!(
        "INSERT INTO reshard.traffic AS t (name, active_cluster, state, epoch) \
         VALUES ({}, {}, 'open', {epoch}) ON CONFLICT (name) DO UPDATE \
            SET active_cluster = excluded.active_cluster, state = 'open', \
                epoch = excluded.epoch, changed_at = clock_timestamp() \
          WHERE t.epoch <= excluded.epoch",
        literal(name),
        literal(active),
    )
}

/// The error that names who kept the lease from being granted.
async fn blocked(session: &Connection, timeout: Duration) -> Result<Error> {
    let who: Option<String> = session
        .value(
            "SELECT string_agg(coalesce(format('pid %s (user \"%s\", application \"%s\", %s for %s, \
                        last query: %s)', a.pid, a.usename, a.application_name, a.state, \
                        date_trunc('second', now() - a.xact_start), left(a.query, 100)), \
                        'a prepared transaction, see pg_prepared_xacts'), '; ') \
               FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
              WHERE l.locktype = 'advisory' AND l.classid = 1919251304 AND l.objid = 0 \
                AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() \
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[],
        )
        .await?;
    Ok(Error::new(
        Kind::LockNotAvailable,
        format!("open transactions on {} did not end in time", session.label()),
    )
    .detail(format!(
        "They have written and were still open after {} ms: {}.",
        timeout.as_millis(),
        who.unwrap_or_else(|| "none any more".to_owned())
    ))
    .hint("End them, or raise reshard.drain_timeout, and call reshard_cutover() again."))
}
