//! The flow of the other direction: made before a cutover, kept close to the
//! present while it waits, and set to begin exactly at the handoff.
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo};
use crate::error::{Error, Result};
use crate::remote::quote::literal;
use crate::remote::{Connection, Links};
use crate::replication::{publication, slot, subscription};
use crate::state::flow::Flow;
use crate::state::table::Table;

/// Makes publications, slots and disabled subscriptions of the reverse
/// direction. Omni tables flow back from shard 0 alone.
///
/// # Errors
/// The servers'; 53400 where a shard has no free slot.
pub async fn prepare_reverse(
    links: &Links,
    flows: &[Flow],
    tables: &[Table],
    binary: bool,
) -> Result<()> {
    let parents = publication::Parents::new();
    try_join_all(flows.iter().map(|flow| {
        let parents = &parents;
        async move {
            let publisher = Direction::Reverse.publisher();
            let shard = flow.shard_on(publisher);
            let session = links.session(publisher, shard).await?;
            let own: Vec<Table> = tables
                .iter()
                .filter(|t| t.key_column.is_some() || shard == ShardNo(0))
                .cloned()
                .collect();
            publication::create(&session, flow, &own, parents, ShardNo(flow.source_shard), 1)
                .await?;
            slot::create(&session, &flow.slot_name).await
        }
    }))
    .await?;
    for flow in flows {
        let publisher = links.endpoint(
            Direction::Reverse.publisher(),
            flow.shard_on(Direction::Reverse.publisher()),
        )?;
        let subscriber = Direction::Reverse.subscriber();
        let session = links.session(subscriber, flow.shard_on(subscriber)).await?;
        subscription::create(&session, publisher, flow, binary).await?;
    }
    Ok(())
}

/// Moves the slots of flows that wait, and their subscribers' origins, to the end
/// of what is on disk, so that nothing before it is ever sent, nor after a crash.
///
/// Apply workers commit asynchronously: rows already visible may lie beyond what
/// is on disk. A synchronous commit comes first, so that the position is behind
/// all of them.
///
/// # Errors
/// The servers'; 55006 where a slot is in use.
pub async fn advance(links: &Links, flows: &[Flow]) -> Result<()> {
    let mut by_shard: BTreeMap<ShardNo, Vec<&Flow>> = BTreeMap::new();
    let Some(side) = flows.first().map(|f| f.direction.publisher()) else { return Ok(()) };
    for flow in flows {
        by_shard.entry(flow.shard_on(side)).or_default().push(flow);
    }
    let positions = try_join_all(by_shard.into_iter().map(|(shard, flows)| async move {
        let session = links.session(side, shard).await?;
        let position = advance_on(&session, &flows).await?;
        Ok::<_, Error>(flows.into_iter().map(move |f| (f, position.clone())).collect::<Vec<_>>())
    }))
    .await?;
    let subscriber = side.other();
    let mut by_subscriber: BTreeMap<ShardNo, Vec<(&Flow, String)>> = BTreeMap::new();
    for (flow, position) in positions.into_iter().flatten() {
        by_subscriber.entry(flow.shard_on(subscriber)).or_default().push((flow, position));
    }
    try_join_all(by_subscriber.into_iter().map(|(shard, flows)| async move {
        let session = links.session(subscriber, shard).await?;
        advance_origins(&session, &flows).await
    }))
    .await?;
    Ok(())
}

/// Moves the slots of one publisher; returns the position they are at.
async fn advance_on(session: &Rc<Connection>, flows: &[&Flow]) -> Result<String> {
    session.batch("SELECT pg_logical_emit_message(true, 'reshard', 'handoff')").await?;
    let position: String = session.value("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    let statements: Vec<String> = flows
        .iter()
        .map(|flow| {
            format!(
                "SELECT pg_replication_slot_advance({}, {}) FROM pg_replication_slots \
                  WHERE slot_name = {} AND confirmed_flush_lsn < {}::pg_lsn",
                literal(&flow.slot_name),
                literal(&position),
                literal(&flow.slot_name),
                literal(&position)
            )
        })
        .collect();
    session.batch(&statements.join("; ")).await?;
    Ok(position)
}

/// Moves what the subscriber asks for to the same position.
///
/// A slot's position goes to disk with the next checkpoint only: after a crash of
/// the publisher it may be an earlier one (manual section "Replication Management
/// Functions", pg_replication_slot_advance). The subscriber's origin is in its
/// WAL, and a walsender starts at the later one of the two.
async fn advance_origins(session: &Rc<Connection>, flows: &[(&Flow, String)]) -> Result<()> {
    let statements: Vec<String> = flows
        .iter()
        .map(|(flow, position)| {
            format!(
                "SELECT pg_replication_origin_advance('pg_' || s.oid, {}::pg_lsn) \
                   FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid \
                  WHERE d.datname = current_database() AND s.subname = {}",
                literal(position),
                literal(&flow.subscription_name)
            )
        })
        .collect();
    session.batch(&statements.join("; ")).await
}
