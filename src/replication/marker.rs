//! Markers: a row written on the publisher and seen on the subscriber proves
//! that all that was committed before it has been applied there, since one apply
//! worker applies a flow's transactions in the order of their commits.
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::cluster::ShardNo;
use crate::error::{Error, Kind, Result};
use crate::remote::quote::literal;
use crate::remote::{Connection, Links};
use crate::state::flow::Flow;

/// How often the subscribers are asked; less often after a second.
const POLL: Duration = Duration::from_millis(2);
const LATE_POLL: Duration = Duration::from_millis(50);

/// Writes a marker into every flow and waits until each has arrived.
///
/// # Errors
/// 55P03 after `timeout`, with the flows that did not answer; the servers'.
pub async fn round_trip(links: &Links, flows: &[Flow], timeout: Duration) -> Result<Duration> {
    let sent = send(links, flows).await?;
    sent.arrive(links, flows, timeout).await
}

/// Markers on their way: the value that was written for each.
pub struct Sent {
    at: Instant,
    written: Values,
}

/// Writes a marker into every flow.
///
/// # Errors
/// The servers'.
pub async fn send(links: &Links, flows: &[Flow]) -> Result<Sent> {
    let Some(direction) = flows.first().map(|f| f.direction) else {
        return Err(Error::internal("a marker needs a flow"));
    };
    let at = Instant::now();
    let publishers = group(links, flows, direction.publisher()).await?;
    Ok(Sent { at, written: write(&publishers).await? })
}

impl Sent {
    /// Waits until each has arrived; how long they took.
    ///
    /// # Errors
    /// As [`round_trip`]; the time counts from when they were written.
    pub async fn arrive(
        &self,
        links: &Links,
        flows: &[Flow],
        timeout: Duration,
    ) -> Result<Duration> {
        let Some(direction) = flows.first().map(|f| f.direction) else {
            return Err(Error::internal("a marker needs a flow"));
        };
        let subscribers = group(links, flows, direction.subscriber()).await?;
        try_join_all(
            subscribers
                .iter()
                .map(|(session, flows)| arrive(session, flows, &self.written, self.at, timeout)),
        )
        .await?;
        Ok(self.at.elapsed())
    }
}

type Values = BTreeMap<String, i64>;

type Group<'a> = Vec<(Rc<Connection>, Vec<&'a Flow>)>;

async fn group<'a>(
    links: &Links,
    flows: &'a [Flow],
    side: crate::cluster::Side,
) -> Result<Group<'a>> {
    let mut by_shard: BTreeMap<ShardNo, Vec<&Flow>> = BTreeMap::new();
    for flow in flows {
        by_shard.entry(flow.shard_on(side)).or_default().push(flow);
    }
    try_join_all(
        by_shard
            .into_iter()
            .map(|(shard, flows)| async move { Ok((links.session(side, shard).await?, flows)) }),
    )
    .await
}

/// Writes a value, larger than all before, for every flow of each publisher.
async fn write(publishers: &Group<'_>) -> Result<Values> {
    let written = try_join_all(publishers.iter().map(|(session, flows)| async move {
        let ids: Vec<String> = flows.iter().map(|f| literal(&f.marker_id())).collect();
        let rows = session
            .text_rows(&format!(
                "INSERT INTO reshard.marker AS m (id, value) \
                 SELECT id, 1 FROM unnest(ARRAY[{}]) AS id \
                 ON CONFLICT (id) DO UPDATE SET value = m.value + 1 RETURNING id, value",
                ids.join(", ")
            ))
            .await?;
        rows.into_iter()
            .map(|row| match row.as_slice() {
                [Some(id), Some(value)] => match value.parse() {
                    Ok(value) => Ok((id.clone(), value)),
                    Err(_) => Err(Error::internal(format!("marker with value \"{value}\""))),
                },
                _ => Err(Error::internal("a marker without a value")),
            })
            .collect::<Result<Vec<(String, i64)>>>()
    }))
    .await?;
    Ok(written.into_iter().flatten().collect())
}

async fn arrive(
    session: &Connection,
    flows: &[&Flow],
    written: &Values,
    began: Instant,
    timeout: Duration,
) -> Result<()> {
    let wanted: Vec<String> = flows
        .iter()
        .map(|f| f.marker_id())
        .filter_map(|id| written.get(&id).map(|value| format!("({}, {value})", literal(&id))))
        .collect();
    let sql = format!(
        "SELECT w.id FROM (VALUES {}) AS w (id, value) \
          WHERE NOT EXISTS (SELECT 1 FROM reshard.marker AS m \
                             WHERE m.id = w.id AND m.value >= w.value)",
        wanted.join(", ")
    );
    loop {
        let missing: Vec<String> =
            session.text_rows(&sql).await?.into_iter().flatten().flatten().collect();
        if missing.is_empty() {
            return Ok(());
        }
        if began.elapsed() > timeout {
            return Err(Error::new(
                Kind::LockNotAvailable,
                format!("changes did not arrive on {} in time", session.label()),
            )
            .detail(format!(
                "After {} ms these flows had not answered: {}.",
                began.elapsed().as_millis(),
                missing.join(", ")
            ))
            .hint("See reshard.replication_slots for their lag and errors."));
        }
        let late = began.elapsed() > Duration::from_secs(1);
        tokio::time::sleep(if late { LATE_POLL } else { POLL }).await;
    }
}

/// Removes the marker of a flow that has never run, so that the next one is an INSERT: an
/// UPDATE of a row that the subscriber lacks would be passed over there.
///
/// # Errors
/// The server's.
pub async fn remove(session: &Connection, flow: &Flow) -> Result<()> {
    session
        .execute("DELETE FROM reshard.marker WHERE id = $1", &[&flow.marker_id()])
        .await
        .map(|_| ())
}

/// Removes the markers of a migration from every shard of a side.
///
/// # Errors
/// The servers'.
pub async fn forget(session: &Connection, prefix: &str) -> Result<()> {
    session
        .execute("DELETE FROM reshard.marker WHERE pg_catalog.starts_with(id, $1)", &[&prefix])
        .await
        .map(|_| ())
}
