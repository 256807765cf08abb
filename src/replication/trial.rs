//! The way back is tried before anybody needs it: each flow that has never run
//! carries one marker, with its own slot, subscription and worker, before a cutover
//! may begin. Nothing else travels: meanwhile it subscribes to a publication of
//! markers alone.
//!
//! A new subscription is made with that publication; when it has the real one the
//! trial has been passed. So a trial that was interrupted is begun again.
use std::time::Duration;

use crate::cluster::Side;
use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::{Connection, Links};
use crate::replication::{handoff, marker, monitor, subscription};
use crate::state::flow::Flow;

/// How long a marker may take: a worker is started only some seconds after another.
const PATIENCE: Duration = Duration::from_secs(30);

/// Name of the publication of markers of a flow.
fn publication(flow: &Flow) -> String {
    format!("{}_trial", flow.publication_name)
}

/// Makes the publication of markers of a flow, where it is missing. Before its slot: a
/// transaction that was open then would be decoded without it, and the making of the
/// slot waits for those.
///
/// # Errors
/// The server's.
pub async fn publish(publisher: &Connection, flow: &Flow) -> Result<()> {
    publisher
        .batch(&format!(
            "DO $trial$ BEGIN \
               CREATE PUBLICATION {} FOR TABLE reshard.marker WHERE (id = {}); \
             EXCEPTION WHEN duplicate_object THEN NULL; END $trial$",
            ident(&publication(flow)),
            literal(&flow.marker_id())
        ))
        .await
}

/// Whether a flow has its publication of markers, as it has until its trial is passed.
///
/// # Errors
/// The server's.
pub async fn is_published(publisher: &Connection, flow: &Flow) -> Result<bool> {
    publisher
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1)",
            &[&publication(flow)],
        )
        .await
}

/// Has a subscription wait for its trial; within the transaction that made it.
pub fn pending(flow: &Flow) -> String {
    set_publication(flow, &publication(flow))
}

fn set_publication(flow: &Flow, publication: &str) -> String {
    // Without a refresh: it keeps its tables.
    format!(
        "ALTER SUBSCRIPTION {} SET PUBLICATION {} WITH (refresh = false)",
        ident(&flow.subscription_name),
        ident(publication)
    )
}

/// Tries those of the flows that have not passed yet; they are disabled before and
/// after it.
///
/// # Errors
/// 55P03 where a marker did not arrive, with what the flows say; the servers'.
pub async fn run(links: &Links, flows: &[Flow]) -> Result<()> {
    let flows = untried(links, flows).await?;
    let Some(first) = flows.first() else { return Ok(()) };
    let (publisher, subscriber) = (first.direction.publisher(), first.direction.subscriber());
    for flow in &flows {
        for side in [publisher, subscriber] {
            marker::remove(&*links.session(side, flow.shard_on(side)).await?, flow).await?;
        }
    }
    handoff::advance(links, &flows).await?;
    enable(links, &flows, subscriber, true).await?;
    let outcome = match marker::round_trip(links, &flows, PATIENCE).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failure(links, &flows, error).await?),
    };
    enable(links, &flows, subscriber, false).await?;
    // An idle worker sees it sooner when something arrives.
    marker::send(links, &flows).await?;
    for (shard, session) in links.sessions_at_ends(publisher).await? {
        let own: Vec<&Flow> = flows.iter().filter(|f| f.shard_on(publisher) == shard).collect();
        subscription::wait_until_idle(&session, &own).await?;
    }
    outcome?;
    for flow in &flows {
        let session = links.session(subscriber, flow.shard_on(subscriber)).await?;
        session.batch(&set_publication(flow, &flow.publication_name)).await?;
        let session = links.session(publisher, flow.shard_on(publisher)).await?;
        session.batch(&format!("DROP PUBLICATION {}", ident(&publication(flow)))).await?;
    }
    Ok(())
}

async fn enable(links: &Links, flows: &[Flow], side: Side, enabled: bool) -> Result<()> {
    for (shard, session) in links.sessions_at_ends(side).await? {
        let own: Vec<&Flow> = flows.iter().filter(|f| f.shard_on(side) == shard).collect();
        subscription::set_enabled(&session, &own, enabled).await?;
    }
    Ok(())
}

/// Flows whose subscriptions still have the publication of markers.
async fn untried(links: &Links, flows: &[Flow]) -> Result<Vec<Flow>> {
    let mut out = Vec::new();
    for flow in flows {
        let side = flow.direction.subscriber();
        let session = links.session(side, flow.shard_on(side)).await?;
        if subscribes_to(&session, flow, &publication(flow)).await? {
            out.push(flow.clone());
        }
    }
    Ok(out)
}

async fn subscribes_to(session: &Connection, flow: &Flow, publication: &str) -> Result<bool> {
    session
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_subscription AS s JOIN pg_database AS d \
                 ON d.oid = s.subdbid WHERE d.datname = current_database() AND s.subname = $1 \
                AND $2 = ANY (s.subpublications))",
            &[&flow.subscription_name, &publication],
        )
        .await
}

/// Why the way back does not work, as far as its flows say.
async fn failure(links: &Links, flows: &[Flow], error: Error) -> Result<Error> {
    if error.kind != Kind::LockNotAvailable {
        return Ok(error);
    }
    // As if they were live: then what is wrong with them is an error.
    let live: Vec<Flow> = flows.iter().map(|f| Flow { live: true, ..f.clone() }).collect();
    let (seen, missing) = monitor::observe(links, &live).await;
    if let Some(missing) = missing {
        return Err(missing);
    }
    let said: Vec<String> = live
        .iter()
        .zip(&seen)
        .filter(|(_, s)| s.error.is_some() || !s.active)
        .map(|(flow, seen)| {
            let failure = seen.worker.is_none().then(|| seen.apply_failure()).flatten();
            let what = seen.error.clone().or(failure);
            let what = what.unwrap_or_else(|| "no worker has begun with it".to_owned());
            format!("\"{}\": {what}", flow.slot_name)
        })
        .collect();
    Ok(Error::new(Kind::LockNotAvailable, "the way back does not work: its trial failed")
        .detail(format!("{} {}", error.one_line(), said.join("; ")))
        .hint(
            "Nothing was switched. The source needs a logical replication worker for each flow \
             (max_logical_replication_workers, max_worker_processes), each shard a walsender \
             (max_wal_senders). See the log of the source.",
        ))
}
