//! Another connection string for a shard that migrations use: its password was changed, or
//! a standby of it was promoted.
use pgrx::prelude::*;

use crate::api::shards::{in_use, probe, Found};
use crate::api::{control, foreseen};
use crate::error::{Error, Result};
use crate::pg::runtime;
use crate::remote::{connect, identity, Endpoint, Purpose};
use crate::state::intent::{Args, Verb};
use crate::state::task::{Phase, Status, Task};
use crate::state::{cluster, event};

/// Gives the migrations that use a shard another connection string to it.
///
/// # Errors
/// 55000 where the shard is not declared or was found to be another database; 22023 where
/// it is another shard; those of [`probe`].
pub(super) fn redeclare(endpoint: &Endpoint, user: &Task, others: &[Task]) -> Result<()> {
    let name = &endpoint.cluster;
    let Some(declared) = cluster::find(name, endpoint.shard)? else {
        return Err(in_use(name, user));
    };
    let found = runtime::run(probe(endpoint))?;
    if declared.conninfo == endpoint.conninfo {
        notice!("{endpoint} is declared so already");
        return Ok(());
    }
    if cluster::database_of(&declared)?.as_ref() != Some(&found.database) {
        return Err(in_use(name, user).detail(format!(
            "The connection string leads to another database than the one that {endpoint} is."
        )));
    }
    let twins = twins(endpoint, &found.database)?;
    runtime::run(refuse_twin(endpoint, &found, &twins))?;
    cluster::replace(&declared, &endpoint.conninfo)?;
    notice!("the connection string of {endpoint} is replaced");
    std::iter::once(user).chain(others).try_for_each(|task| tell(task, endpoint))
}

/// Has a migration use a connection string that was replaced. Phases that take their time
/// keep their sessions; once they lose them they begin anew, with what is declared then.
fn tell(task: &Task, endpoint: &Endpoint) -> Result<()> {
    let id = task.id;
    let message = format!("the connection string of {endpoint} was replaced");
    event::info(id, "redeclared", &message)?;
    let task = foreseen::of(task.clone())?;
    let is_watching = task.phase == Phase::CatchUp || task.phase.is_flowing();
    match task.status {
        Status::Failed => {
            notice!("task {id} does not run: SELECT reshard_resume({id}) goes on with it");
            Ok(())
        }
        Status::Pending | Status::Running if is_watching => {
            control::ask(id, Verb::Resume, &Args::default())
        }
        _ => Ok(()),
    }
}

/// Other shards of the cluster that are clones of the same server: found to be the same
/// database when they were declared.
fn twins(endpoint: &Endpoint, database: &str) -> Result<Vec<Endpoint>> {
    let mut twins = Vec::new();
    for other in cluster::endpoints(&endpoint.cluster)? {
        let is_other = other.shard != endpoint.shard;
        if is_other && cluster::database_of(&other)?.as_deref() == Some(database) {
            twins.push(other);
        }
    }
    Ok(twins)
}

/// Clones are told apart by when they were started.
///
/// # Errors
/// 22023 where the connection string leads to another shard.
async fn refuse_twin(endpoint: &Endpoint, found: &Found, twins: &[Endpoint]) -> Result<()> {
    for twin in twins {
        // One that can't be reached may be next to get another connection string.
        let Ok(session) = connect(twin, Purpose::Preflight).await else { continue };
        if session.value::<String>(identity::SERVER, &[]).await? == found.server {
            return Err(Error::argument(format!("{endpoint} would be the same as {twin}"))
                .hint("Give the connection string of the shard itself."));
        }
    }
    Ok(())
}
