//! A source that was put back in time: a standby that lagged when it was promoted, or a
//! restored backup, knows nothing of a switch that the other servers know of. The flag with
//! the highest epoch holds; it is on all of them.
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::Side;
use crate::cutover::fence;
use crate::error::{Error, Result};
use crate::pg::xact::transaction;
use crate::remote::{Connection, Links};
use crate::replication::cleanup;
use crate::state::cutover;
use crate::state::event::{self, Severity};
use crate::state::task::{self, Phase, Task};
use crate::state::traffic::{self, Traffic};
use crate::worker::migration::Migration;

/// How long a server may take to say what it knows.
const ANSWER: Duration = Duration::from_secs(2);

/// Where another server knows of a later switch, closes the cluster that it says is not
/// active, takes away the flows, whose positions no longer hold, and fails the task. True
/// where that was so.
///
/// # Errors
/// The servers', but not that one can't be reached to be asked; repeatable.
pub async fn follow(task: &Task) -> Result<bool> {
    let Some(own) = transaction(|| traffic::find(&task.source))? else { return Ok(false) };
    let migration = Migration::load(task.clone())?;
    let links = &migration.links;
    let Some(newest) = newest(links, &task.source, own.epoch).await? else { return Ok(false) };
    let (active, closed) = match newest.active_cluster == task.source {
        true => (Side::Source, Side::Destination),
        false => (Side::Destination, Side::Source),
    };
    fence::shut_latch(links, closed).await?;
    cleanup::remove_flows(links, &migration.prefix()).await?;
    fence::open_latch(links, active).await?;
    let error = error(task, &newest);
    transaction(|| {
        traffic::follow(&task.source, &newest)?;
        if let Some(running) = cutover::latest(task.id)?.filter(|c| c.status == "running") {
            cutover::abort(running.id, &error)?;
        }
        let phase = if active == Side::Source { Phase::RolledBack } else { Phase::Switched };
        task::set_phase(task.id, phase)?;
        task::fail(task.id, &error)?;
        event::write_error(task.id, Severity::Error, "overtaken", &error)
    })?;
    Ok(true)
}

/// The flag with the highest epoch beyond `epoch` on any server that answers soon: what
/// comes next may have to let writers go. Others are asked the next time.
async fn newest(links: &Links, name: &str, epoch: i64) -> Result<Option<Traffic>> {
    let asked = links.all().map(|(side, shard)| async move {
        let answer = async { flag(&*links.session(side, shard).await?, name).await };
        match tokio::time::timeout(ANSWER, answer).await {
            Err(_) => Ok(None),
            Ok(Err(error)) if error.is_absence() || error.is_refused_login() => Ok(None),
            Ok(answer) => answer,
        }
    });
    let known = try_join_all(asked).await?;
    Ok(known.into_iter().flatten().filter(|f| f.epoch > epoch).max_by_key(|f| f.epoch))
}

async fn flag(session: &Connection, name: &str) -> Result<Option<Traffic>> {
    let present: bool =
        session.value("SELECT to_regclass('reshard.traffic') IS NOT NULL", &[]).await?;
    if !present {
        return Ok(None);
    }
    let rows = session
        .query("SELECT active_cluster, epoch FROM reshard.traffic WHERE name = $1", &[&name])
        .await?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    rows.first()
        .map(|row| {
            Ok(Traffic {
                active_cluster: row.try_get(0).map_err(get)?,
                epoch: row.try_get(1).map_err(get)?,
            })
        })
        .transpose()
}

fn error(task: &Task, newest: &Traffic) -> Error {
    let Task { id, source, destination, .. } = task;
    let way_on = match newest.active_cluster == *source {
        true => format!("SELECT reshard_cancel({id}); ends the migration."),
        false => format!(
            "SELECT reshard_complete({id}); ends the migration. Compare both clusters before the old \
             one is dropped."
        ),
    };
    Error::state(format!(
        "this database is older than a switch of traffic to \"{}\" in epoch {}",
        newest.active_cluster, newest.epoch
    ))
    .detail(format!(
        "The switch is known to other servers of \"{source}\" and \"{destination}\": this one was \
         promoted while it lagged behind, or was restored. It follows them; but what is missing \
         here can't be brought by replication, so the flows are ended."
    ))
    .hint(way_on)
}
