//! Looks at flows: how far they are, what they keep, what is wrong with them.
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;

use futures::future::try_join_all;
use futures::join;

use crate::cluster::{ShardNo, Side};
use crate::error::Result;
use crate::remote::{Connection, Links};
use crate::state::flow::{Flow, Observation};

#[derive(Default)]
struct Slot {
    active: bool,
    confirmed: Option<String>,
    lag: Option<i64>,
    retained: Option<i64>,
    wal_status: Option<String>,
}

struct Subscription {
    enabled: bool,
    running: bool,
    errors: i64,
    /// What its apply worker failed with last, where this server knows.
    last_error: Option<String>,
}

/// What both ends of each flow say, in the order of `flows`.
///
/// # Errors
/// A server can't be reached.
pub async fn observe(links: &Links, flows: &[Flow]) -> Result<Vec<Observation>> {
    let (slots, subscriptions) = join!(everywhere(links, slots), everywhere(links, subscriptions));
    let (slots, subscriptions) = (slots?, subscriptions?);
    Ok(flows
        .iter()
        .map(|flow| {
            let publisher = flow.direction.publisher();
            let subscriber = flow.direction.subscriber();
            let slot = slots.get(&key(publisher, flow.shard_on(publisher), &flow.slot_name));
            let subscription = subscriptions.get(&key(
                subscriber,
                flow.shard_on(subscriber),
                &flow.subscription_name,
            ));
            judge(flow, slot, subscription)
        })
        .collect())
}

type Key = (bool, ShardNo, String);

fn key(side: Side, shard: ShardNo, name: &str) -> Key {
    (side == Side::Source, shard, name.to_owned())
}

fn judge(flow: &Flow, slot: Option<&Slot>, subscription: Option<&Subscription>) -> Observation {
    let mut error = None;
    match slot {
        None => error = Some("the replication slot is missing".to_owned()),
        Some(slot) if slot.wal_status.as_deref() == Some("lost") => {
            error = Some(
                "the replication slot has lost WAL that it needs (max_slot_wal_keep_size)"
                    .to_owned(),
            );
        }
        Some(slot) if slot.wal_status.as_deref() == Some("unreserved") => {
            error = Some(
                "the replication slot is about to lose WAL (max_slot_wal_keep_size)".to_owned(),
            );
        }
        Some(_) => {}
    }
    if let (None, true) = (&error, flow.live) {
        error = match subscription {
            None => Some("the subscription is missing".to_owned()),
            Some(s) if !s.enabled => Some("the subscription is disabled".to_owned()),
            Some(s) if !s.running && s.errors > 0 => Some(match &s.last_error {
                Some(text) => {
                    format!("the apply worker fails ({} errors so far): {text}", s.errors)
                }
                None => format!(
                    "the apply worker fails ({} errors so far); the subscriber's log says why",
                    s.errors
                ),
            }),
            Some(_) => None,
        };
    }
    Observation {
        active: slot.is_some_and(|s| s.active),
        confirmed_lsn: slot.and_then(|s| s.confirmed.clone()),
        lag_bytes: slot.and_then(|s| s.lag),
        retained_bytes: slot.and_then(|s| s.retained),
        wal_status: slot.and_then(|s| s.wal_status.clone()),
        apply_errors: subscription.map(|s| s.errors),
        error,
    }
}

/// What `look` finds on every server of both clusters, by side, shard and name.
async fn everywhere<T, Fut>(
    links: &Links,
    look: impl Fn(Rc<Connection>, Side) -> Fut,
) -> Result<HashMap<Key, T>>
where
    Fut: Future<Output = Result<Vec<(String, T)>>>,
{
    let mut out = HashMap::new();
    for side in [Side::Source, Side::Destination] {
        let sessions = links.sessions(side).await?;
        let found = try_join_all(sessions.iter().map(|(_, s)| look(Rc::clone(s), side))).await?;
        for ((shard, _), found) in sessions.iter().zip(found) {
            out.extend(found.into_iter().map(|(name, one)| (key(side, *shard, &name), one)));
        }
    }
    Ok(out)
}

async fn slots(session: Rc<Connection>, _: Side) -> Result<Vec<(String, Slot)>> {
    let rows = session
        .query(
            "SELECT slot_name::text, active, confirmed_flush_lsn::text, \
                    pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint, \
                    pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, wal_status \
               FROM pg_replication_slots WHERE slot_name ~ '^reshard_'",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let get = |e: tokio_postgres::Error| session.error(&e);
            Ok((
                row.try_get(0).map_err(get)?,
                Slot {
                    active: row.try_get(1).map_err(get)?,
                    confirmed: row.try_get(2).map_err(get)?,
                    lag: row.try_get(3).map_err(get)?,
                    retained: row.try_get(4).map_err(get)?,
                    wal_status: row.try_get(5).map_err(get)?,
                },
            ))
        })
        .collect()
}

async fn subscriptions(session: Rc<Connection>, side: Side) -> Result<Vec<(String, Subscription)>> {
    // The extension, which listens to errors, is on the source's shards.
    let last_error = match side {
        Side::Source => "CASE WHEN w.pid IS NULL THEN reshard_apply_error(s.oid) END",
        Side::Destination => "NULL::text",
    };
    let rows = session
        .query(
            &format!(
                "SELECT s.subname::text, s.subenabled, w.pid IS NOT NULL, \
                    coalesce(e.apply_error_count, 0), {last_error} \
               FROM pg_subscription AS s \
               JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database() \
               LEFT JOIN pg_stat_subscription AS w ON w.subid = s.oid AND w.relid IS NULL \
               LEFT JOIN pg_stat_subscription_stats AS e ON e.subid = s.oid \
              WHERE s.subname ~ '^reshard_'"
            ),
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let get = |e: tokio_postgres::Error| session.error(&e);
            Ok((
                row.try_get(0).map_err(get)?,
                Subscription {
                    enabled: row.try_get(1).map_err(get)?,
                    running: row.try_get(2).map_err(get)?,
                    errors: row.try_get(3).map_err(get)?,
                    last_error: row.try_get(4).map_err(get)?,
                },
            ))
        })
        .collect()
}
