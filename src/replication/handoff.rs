//! The flow of the other direction: made before a cutover, kept close to the
//! present while it waits, and set to begin exactly at the handoff.
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo};
use crate::error::Result;
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

/// Moves the slots of flows that wait to the end of what is on disk, so that
/// nothing before it is ever sent.
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
    try_join_all(by_shard.into_iter().map(|(shard, flows)| async move {
        let session = links.session(side, shard).await?;
        advance_on(&session, &flows).await
    }))
    .await?;
    Ok(())
}

async fn advance_on(session: &Rc<Connection>, flows: &[&Flow]) -> Result<()> {
    let mut sql = String::from("SELECT pg_logical_emit_message(true, 'reshard', 'handoff');");
    for flow in flows {
        sql.push_str(&format!(
            "SELECT pg_replication_slot_advance({}, pg_current_wal_flush_lsn());",
            literal(&flow.slot_name)
        ));
    }
    // Statements of one simple query are one transaction unless told otherwise;
    // the message must be committed before the position is read.
    let sql = sql.replacen(';', "; COMMIT;", 1);
    session.batch(&format!("BEGIN; {sql}")).await
}
