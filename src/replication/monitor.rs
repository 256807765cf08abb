//! Looks at flows: how far they are, what they keep, what is wrong with them.
use std::collections::HashMap;

use futures::future::join_all;
use futures::try_join;

use crate::cluster::{ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::{Connection, Links};
use crate::state::flow::{Flow, Observation};

struct Slot {
    active: bool,
    confirmed: Option<String>,
    lag: Option<i64>,
    retained: Option<i64>,
    wal_status: Option<String>,
}

struct Subscription {
    enabled: bool,
    worker: Option<i32>,
    errors: i64,
    /// What its apply worker failed with last, where this server knows.
    last_error: Option<String>,
}

/// What one server says, by name.
struct Server {
    slots: HashMap<String, Slot>,
    subscriptions: HashMap<String, Subscription>,
}

/// What both ends of each flow say, in the order of `flows`; and why a server could not be
/// looked at, if one could not: the others are all the same.
pub async fn observe(links: &Links, flows: &[Flow]) -> (Vec<Observation>, Option<Error>) {
    let looks = join_all(
        links
            .all_ends()
            .map(|(side, shard)| async move { ((side, shard), server(links, side, shard).await) }),
    )
    .await;
    let missing = looks.iter().find_map(|(_, look)| look.as_ref().err().cloned());
    let looks: HashMap<(Side, ShardNo), Result<Server>> = looks.into_iter().collect();
    let at = |flow: &Flow, side| looks.get(&(side, flow.shard_on(side)));
    let seen = flows
        .iter()
        .map(|flow| {
            let publisher = at(flow, flow.direction.publisher());
            let subscriber = at(flow, flow.direction.subscriber());
            match (publisher, subscriber) {
                (Some(publisher), Some(subscriber)) => judge(flow, publisher, subscriber),
                _ => Observation::default(),
            }
        })
        .collect();
    (seen, missing)
}

async fn server(links: &Links, side: Side, shard: ShardNo) -> Result<Server> {
    let session = links.session(side, shard).await?;
    let has_extension = side == Side::Source || links.cluster(side).stays(shard);
    let (slots, subscriptions) =
        try_join!(slots(&session), subscriptions(&session, has_extension))?;
    Ok(Server { slots, subscriptions })
}

fn judge(flow: &Flow, publisher: &Result<Server>, subscriber: &Result<Server>) -> Observation {
    let slot = publisher.as_ref().ok().and_then(|s| s.slots.get(&flow.slot_name));
    let subscription =
        subscriber.as_ref().ok().and_then(|s| s.subscriptions.get(&flow.subscription_name));
    let lacks_subscription = flow.live && subscriber.is_ok() && subscription.is_none();
    let missing = [publisher, subscriber].into_iter().find_map(|s| s.as_ref().err());
    Observation {
        active: slot.is_some_and(|s| s.active),
        confirmed_lsn: slot.and_then(|s| s.confirmed.clone()),
        lag_bytes: slot.and_then(|s| s.lag),
        retained_bytes: slot.and_then(|s| s.retained),
        wal_status: slot.and_then(|s| s.wal_status.clone()),
        apply_errors: subscription.map(|s| s.errors),
        apply_error: subscription.and_then(|s| s.last_error.clone()),
        worker: subscription.and_then(|s| s.worker),
        disabled: subscription.is_some_and(|s| !s.enabled),
        error: publisher
            .as_ref()
            .ok()
            .and_then(|_| slot_error(slot))
            .or_else(|| lacks_subscription.then_some("the subscription is missing"))
            .map(str::to_owned),
        missing: missing.map(Error::one_line),
        slot_known: publisher.is_ok(),
    }
}

fn slot_error(slot: Option<&Slot>) -> Option<&'static str> {
    let Some(slot) = slot else { return Some("the replication slot is missing") };
    match slot.wal_status.as_deref() {
        Some("lost") => {
            Some("the replication slot has lost WAL that it needs (max_slot_wal_keep_size)")
        }
        Some("unreserved") => {
            Some("the replication slot is about to lose WAL (max_slot_wal_keep_size)")
        }
        _ => None,
    }
}

async fn slots(session: &Connection) -> Result<HashMap<String, Slot>> {
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

async fn subscriptions(
    session: &Connection,
    has_extension: bool,
) -> Result<HashMap<String, Subscription>> {
    // The extension listens to errors.
    let last_error = match has_extension {
        true => "reshard_apply_error(s.oid)",
        false => "NULL::text",
    };
    let rows = session
        .query(
            &format!(
                "SELECT s.subname::text, s.subenabled, w.pid, \
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
                    worker: row.try_get(2).map_err(get)?,
                    errors: row.try_get(3).map_err(get)?,
                    last_error: row.try_get(4).map_err(get)?,
                },
            ))
        })
        .collect()
}
