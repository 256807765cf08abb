//! The flow of the other direction: made before a cutover, kept close to the
//! present while it waits, and set to begin exactly at the handoff.
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::literal;
use crate::remote::{Connection, Links};
use crate::replication::filter::{self, FiltersOf};
use crate::replication::{publication, slot, subscription, trial};
use crate::state::flow::Flow;
use crate::state::table::Table;

/// How long a worker that has been told to end may still use its flow's origin.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Makes publications, slots and disabled subscriptions of the reverse
/// direction. Omni tables flow back from one shard alone, to every source shard that is
/// not in the destination itself. New slots wait for open transactions no longer than `timeout`.
///
/// # Errors
/// The servers'; those of [`renew_slots`].
pub async fn prepare_reverse(
    links: &Links,
    flows: &[Flow],
    tables: &[Table],
    timeout: Duration,
) -> Result<()> {
    let (publisher, subscriber) = (Direction::Reverse.publisher(), Direction::Reverse.subscriber());
    let placed_on = links.cluster(subscriber);
    let omni_shard = flows.iter().map(|flow| flow.shard_on(publisher)).min();
    let apart = links.apart(subscriber);
    let own = |flow: &Flow| {
        let brings_omni = omni_shard == Some(flow.shard_on(publisher))
            && apart.contains(&flow.shard_on(subscriber));
        let of = tables.iter().filter(move |table| brings_omni || table.is_sharded(publisher));
        of.cloned().collect::<Vec<Table>>()
    };
    let mut filters = FiltersOf::new();
    for (shard, session) in links.sessions_at_ends(publisher).await? {
        let here = if links.cluster(publisher).stays(shard) { subscriber } else { publisher };
        let found = filter::filters(&session, here, tables, subscriber, placed_on).await?;
        filters.insert(shard, found);
    }
    try_join_all(flows.iter().map(|flow| {
        let (own, filters) = (&own, &filters);
        async move {
            let shard = flow.shard_on(publisher);
            let session = links.session(publisher, shard).await?;
            let filters = filter::of_publisher(filters, shard)?;
            let to = flow.shard_on(subscriber);
            publication::create(&session, flow, &own(flow), filters, to).await?;
            match slot::exists(&session, &flow.slot_name).await? {
                true => Ok(()),
                false => trial::publish(&session, flow).await,
            }
        }
    }))
    .await?;
    renew_slots(links, flows, timeout).await?;
    for flow in flows {
        let shard = flow.shard_on(publisher);
        let session = links.session(publisher, shard).await?;
        let untried = trial::is_published(&session, flow).await?;
        let more = if untried { trial::pending(flow) } else { String::new() };
        let session = links.session(subscriber, flow.shard_on(subscriber)).await?;
        let publisher = links.endpoint(publisher, shard)?;
        subscription::drop_outdated(&session, flow, &own(flow)).await?;
        subscription::create(&session, publisher, flow, false, &more).await?;
    }
    Ok(())
}

/// Makes the slots of flows that wait where they are missing, or have lost WAL:
/// nothing before the handoff is wanted from them.
///
/// # Errors
/// The servers'; 53400 where one has no free slot; 55P03 where open transactions
/// on one don't end.
pub async fn renew_slots(links: &Links, flows: &[Flow], timeout: Duration) -> Result<()> {
    try_join_all(flows.iter().map(|flow| async move {
        let side = flow.direction.publisher();
        let session = links.session(side, flow.shard_on(side)).await?;
        slot::drop_lost(&session, &flow.slot_name).await?;
        slot::create(&session, &flow.slot_name, timeout).await
    }))
    .await
    .map(drop)
}

/// Moves the slots of flows that wait, and their subscribers' origins, to the end
/// of what is on disk, so that they keep little WAL.
///
/// # Errors
/// The servers'; 55006 where a slot is in use.
pub async fn advance(links: &Links, flows: &[Flow]) -> Result<()> {
    let positions = positions(links, flows).await?;
    let publishers = group(flows, |f| f.shard_on(f.direction.publisher()));
    try_join_all(publishers.into_iter().map(|(shard, flows)| {
        let positions = &positions;
        async move {
            let Some(side) = flows.first().map(|f| f.direction.publisher()) else { return Ok(()) };
            let session = links.session(side, shard).await?;
            advance_slots(&session, &flows, positions).await
        }
    }))
    .await?;
    begin_at(links, flows, &positions).await
}

/// Where the flows of each shard are to begin.
pub type Positions = BTreeMap<ShardNo, String>;

/// The end of what is on disk on each publisher, behind all that can be seen there.
///
/// Apply workers commit asynchronously: rows already visible may lie beyond what
/// is on disk. A synchronous commit comes first, so that the position is behind
/// all of them.
///
/// # Errors
/// The servers'.
pub async fn positions(links: &Links, flows: &[Flow]) -> Result<Positions> {
    let publishers = group(flows, |f| f.shard_on(f.direction.publisher()));
    let positions = try_join_all(publishers.into_iter().map(|(shard, flows)| async move {
        let side = flows.first().map_or(Side::Source, |f| f.direction.publisher());
        let session = links.session(side, shard).await?;
        let rows = session
            .text_rows(
                "BEGIN; SELECT pg_logical_emit_message(true, 'reshard', 'handoff'); COMMIT; \
                 SELECT pg_current_wal_flush_lsn()",
            )
            .await?;
        let position = rows.last().and_then(|row| row.first().cloned().flatten());
        let position = position.ok_or_else(|| Error::internal("a server has no WAL position"))?;
        Ok::<_, Error>((shard, position))
    }))
    .await?;
    Ok(positions.into_iter().collect())
}

/// Has the flows begin at these positions: moves what their subscribers ask for.
///
/// The slots themselves need not be there yet: a walsender starts at the later one
/// of the two (`CreateDecodingContext` in src/backend/replication/logical/logical.c).
/// And a slot's position goes to disk with the next checkpoint only: after a crash
/// of the publisher it may be an earlier one. The origin is in the subscriber's
/// WAL, and on disk with the next synchronous commit there.
///
/// # Errors
/// The servers'; 55006 where a subscription is enabled.
pub async fn begin_at(links: &Links, flows: &[Flow], positions: &Positions) -> Result<()> {
    let subscribers = group(flows, |f| f.shard_on(f.direction.subscriber()));
    try_join_all(subscribers.into_iter().map(|(shard, flows)| async move {
        let Some(side) = flows.first().map(|f| f.direction.subscriber()) else { return Ok(()) };
        let session = links.session(side, shard).await?;
        advance_origins(&session, &flows, positions).await
    }))
    .await?;
    Ok(())
}

fn group(flows: &[Flow], shard: impl Fn(&Flow) -> ShardNo) -> BTreeMap<ShardNo, Vec<&Flow>> {
    let mut groups: BTreeMap<ShardNo, Vec<&Flow>> = BTreeMap::new();
    for flow in flows {
        groups.entry(shard(flow)).or_default().push(flow);
    }
    groups
}

fn position<'a>(flow: &Flow, positions: &'a Positions) -> Result<&'a String> {
    positions
        .get(&flow.shard_on(flow.direction.publisher()))
        .ok_or_else(|| Error::internal(format!("no position for slot \"{}\"", flow.slot_name)))
}

/// Moves the slots of one publisher.
async fn advance_slots(
    session: &Rc<Connection>,
    flows: &[&Flow],
    positions: &Positions,
) -> Result<()> {
    let mut statements = Vec::with_capacity(flows.len());
    for flow in flows {
        let (slot, position) = (literal(&flow.slot_name), literal(position(flow, positions)?));
        statements.push(format!(
            "SELECT pg_replication_slot_advance({slot}, {position}) FROM pg_replication_slots \
              WHERE slot_name = {slot} AND confirmed_flush_lsn < {position}::pg_lsn"
        ));
    }
    session.batch(&statements.join("; ")).await
}

/// Moves the origins of one subscriber.
async fn advance_origins(
    session: &Rc<Connection>,
    flows: &[&Flow],
    positions: &Positions,
) -> Result<()> {
    let mut statements = Vec::with_capacity(flows.len());
    for flow in flows {
        statements.push(format!(
            "SELECT pg_replication_origin_advance('pg_' || s.oid, {}::pg_lsn) \
               FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid \
              WHERE d.datname = current_database() AND s.subname = {}",
            literal(position(flow, positions)?),
            literal(&flow.subscription_name)
        ));
    }
    let sql = statements.join("; ");
    let began = Instant::now();
    loop {
        match session.batch(&sql).await {
            // The last of its worker.
            Err(error) if error.sqlstate() == "55006" && began.elapsed() < WORKER_TIMEOUT => {
                tokio::time::sleep(POLL).await;
            }
            outcome => return outcome,
        }
    }
}
