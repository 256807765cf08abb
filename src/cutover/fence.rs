//! The fence: the lease, an advisory lock that drains and holds writers as long
//! as its session lives, and the latch, a sequence that holds for good.
//!
//! The trigger's side of both is `reshard.fence()` in sql/fence.sql.
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::{ShardNo, Side};
use crate::cutover::bounds::Bounds;
use crate::cutover::hold::Hold;
use crate::cutover::{failpoint, Step};
use crate::error::{Error, Kind, Result};
use crate::gucs::DrainAction;
use crate::remote::quote::literal;
use crate::remote::{blockers, connect, end_sessions, Connection, Links, Purpose};

/// The advisory lock's key, the same as in `reshard.fence()`.
const KEY: (i64, i64) = (1_919_251_304, 0);

/// `last_value` of `reshard.latch` on a cluster that takes writes.
const OPEN: i32 = 1;
/// `last_value` of `reshard.latch` on one that doesn't.
const SHUT: i32 = 2;
/// The same on a shard of both clusters while the destination is active: it takes writes
/// of its rows there.
const OPEN_AS_BOTH: i32 = 3;

/// How long a shard may take to open or shut its latch before the others are told
/// that it does not answer.
const ANSWER: Duration = Duration::from_secs(12);

/// Sessions that can hold the lease: opened before, since opening takes time.
pub struct Lease {
    sessions: Vec<Connection>,
    _hold: Hold,
}

impl Lease {
    /// Opens a session on each shard of a side; holds nothing yet.
    ///
    /// # Errors
    /// A server can't be reached.
    pub async fn open(links: &Links, side: Side) -> Result<Self> {
        let shards = &links.cluster(side).shards;
        let hold = Hold::begin();
        let sessions = try_join_all(shards.iter().map(|shard| async move {
            let session = connect(shard, Purpose::Fence).await?;
            // A server that waits for the lock has to notice that nobody waits with it.
            session.batch("SET client_connection_check_interval = 200").await?;
            Ok::<_, Error>(session)
        }))
        .await?;
        Ok(Self { sessions, _hold: hold })
    }

    /// Waits until all transactions that have written have ended, and holds those
    /// that are about to write, on all shards at the same time, for at most so long:
    /// then the server itself ends a session that says nothing. Returns whom it
    /// had to end.
    ///
    /// # Errors
    /// 55P03 when they did not end in time, with the transactions in the way.
    pub async fn take(&self, bounds: &Bounds) -> Result<Vec<String>> {
        let ended =
            try_join_all(self.sessions.iter().enumerate().map(|(nr, session)| async move {
                failpoint::reach_partly(Step::Lease, nr).await?;
                take_on(session, bounds).await
            }))
            .await?;
        Ok(ended.into_iter().flatten().collect())
    }

    /// Shuts the latch, in the very session that holds the lease: that it succeeds
    /// proves that the lease was held without a gap.
    ///
    /// # Errors
    /// The servers'; 55000 where the lease was lost.
    pub async fn shut(&self) -> Result<()> {
        try_join_all(self.sessions.iter().enumerate().map(|(nr, session)| async move {
            failpoint::reach_partly(Step::Latch, nr).await?;
            let shut = session
                .text_row(&format!(
                    "{} WHERE EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' \
                        AND pid = pg_backend_pid() AND classid = {} AND objid = {} \
                        AND mode = 'ExclusiveLock' AND granted)",
                    latch(SHUT),
                    KEY.0,
                    KEY.1
                ))
                .await?;
            match shut {
                Some(_) => Ok(()),
                None => Err(Error::state(format!("the lease on {} was lost", session.label()))),
            }
        }))
        .await?;
        Ok(())
    }
}

async fn take_on(session: &Connection, bounds: &Bounds) -> Result<Vec<String>> {
    let timeout = bounds.drain;
    let sql = format!(
        "SET lock_timeout = {}; SELECT pg_advisory_lock({}, {}); SET lock_timeout = 0; \
         SET idle_session_timeout = {}",
        timeout.as_millis().max(1),
        KEY.0,
        KEY.1,
        bounds.lease().as_millis()
    );
    match session.batch(&sql).await {
        Ok(()) => return Ok(Vec::new()),
        Err(error) if error.sqlstate() != "55P03" => return Err(error),
        Err(_) => {}
    }
    let mut ended = Vec::new();
    if bounds.action == DrainAction::Terminate {
        ended = blockers::end_advisory(session, KEY, timeout).await?;
        match session.batch(&sql).await {
            Ok(()) => return Ok(ended),
            Err(error) if error.sqlstate() != "55P03" => return Err(error),
            Err(_) => {}
        }
    }
    Err(blocked(session, timeout, &ended).await?)
}

/// The error that names who kept the lease from being granted.
async fn blocked(session: &Connection, timeout: Duration, ended: &[String]) -> Result<Error> {
    let who = blockers::of_advisory(session, KEY).await?;
    let who = if who.is_empty() { "none any more".to_owned() } else { who.join("; ") };
    let mut detail =
        format!("They have written and were still open after {} ms: {who}.", timeout.as_millis());
    if !ended.is_empty() {
        detail.push_str(&format!(" These were ended: {}.", ended.join("; ")));
    }
    Ok(Error::new(
        Kind::LockNotAvailable,
        format!("open transactions on {} did not end in time", session.label()),
    )
    .detail(detail)
    .hint("End them, raise reshard.drain_timeout, or set reshard.drain_action to terminate; then call reshard_cutover() again."))
}

fn latch(value: i32) -> String {
    // setval writes WAL; the session's synchronous commit puts it on disk.
    format!("SELECT pg_catalog.setval('reshard.latch', {value}, true)")
}

/// What a shard's latch stands at while its cluster is active.
fn open(links: &Links, side: Side, shard: ShardNo) -> String {
    latch(match links.cluster(side).stays(shard) {
        true => OPEN_AS_BOTH,
        false => OPEN,
    })
}

/// All shards of a cluster, those that are in both included.
fn members(links: &Links, side: Side) -> Vec<ShardNo> {
    links.cluster(side).numbers().collect()
}

/// Opens a cluster's latch, once no session of a lease is left there: one that
/// is about to shut the latch must not be overtaken. A shard that does not answer
/// does not keep the others shut.
///
/// # Errors
/// The servers'; 55P03 where such a session does not end.
pub async fn open_latch(links: &Links, side: Side) -> Result<()> {
    links
        .each(side, members(links, side), |shard, session| async move {
            answers(&session, async {
                end_sessions(&session, Purpose::Fence).await?;
                session.batch(&open(links, side, shard)).await
            })
            .await
        })
        .await
}

async fn answers(session: &Connection, work: impl Future<Output = Result<()>>) -> Result<()> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Error::new(Kind::ConnectionLost, format!("{} does not answer", session.label()))
                .detail(format!("A statement on it took longer than {} s.", ANSWER.as_secs())))
        }
    }
}

/// Opens the latch of shards that stay for all rows: nothing has moved away any more.
///
/// # Errors
/// The servers'.
pub async fn release_staying(links: &Links) -> Result<()> {
    let staying = links.cluster(Side::Destination).staying.shards.values().copied().collect();
    links.each(Side::Source, staying, |_, s| async move { s.batch(&latch(OPEN)).await }).await
}

/// Shuts a cluster's latch without a lease: for a cluster that has no writers, but for
/// those on shards that are in the active one too.
///
/// # Errors
/// The servers'.
pub async fn shut_latch(links: &Links, side: Side) -> Result<()> {
    let shut = |_, session: Rc<Connection>| async move { session.batch(&latch(SHUT)).await };
    links.each(side, links.apart(side), shut).await
}

/// Shuts a cluster's latch once more after the commit point. It was shut on disk
/// before that, so servers that can't be reached are left alone.
///
/// # Errors
/// The servers', but not that one can't be reached.
pub async fn shut_latch_again(links: &Links, side: Side) -> Result<()> {
    let shut = links.each(side, links.apart(side), |_, session| async move {
        answers(&session, session.batch(&latch(SHUT))).await
    });
    match shut.await {
        Err(error) if error.is_absence() => Ok(()),
        outcome => outcome,
    }
}

/// Opens a cluster's latch and writes the flag on its shards, in one go; `before` is what
/// some do first, in PL/pgSQL, unless they are open already. A shard that is away does not
/// keep the others shut.
///
/// # Errors
/// The servers', once all have been asked.
pub async fn open_with_flag(
    links: &Links,
    side: Side,
    (name, active, epoch): (&str, &str, i64),
    before: &BTreeMap<ShardNo, String>,
) -> Result<()> {
    let flag = flag(name, active, epoch);
    let flag = flag.as_str();
    links
        .each(side, members(links, side), |shard, session| async move {
            failpoint::reach_partly(Step::Open, shard.index()).await?;
            let before = before.get(&shard).map_or(String::new(), |work| while_shut(work));
            let sql = format!("{before}{flag}; {}", open(links, side, shard));
            answers(&session, session.batch(&sql)).await
        })
        .await
}

/// Statements of PL/pgSQL that a shard runs as long as its latch is shut.
fn while_shut(work: &str) -> String {
    let body = format!(
        "BEGIN IF (SELECT s.last_value FROM reshard.latch AS s) = {SHUT} THEN {work} END IF; END"
    );
    format!("DO {}; ", literal(&body))
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
          WHERE t.epoch < excluded.epoch OR t.epoch = excluded.epoch AND t.state <> 'open'",
        literal(name),
        literal(active),
    )
}
