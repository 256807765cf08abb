//! A migration as a DBA sees it: the SQL functions and the views, nothing else.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Rig, Server};
use crate::error::{Error, Result};
use crate::session::{literal, Session};
use crate::wait::{wait_for, Seen};

/// Name of the source cluster in all scenarios.
pub const SOURCE: &str = "prod";
/// Name of the destination cluster in all scenarios.
pub const DESTINATION: &str = "prod_sharded";
/// Name of the user's publication in all scenarios.
pub const PUBLICATION: &str = "all_tables";

/// CREATE EXTENSION, both clusters, the sharding key, a publication of all tables. A
/// source of several shards has the same sharding key.
pub async fn declare(rig: &Rig, sharding_key: &str) -> Result<()> {
    let sources: Vec<String> = rig.sources().into_iter().map(Server::conninfo).collect();
    let shards: Vec<String> = rig.destination().into_iter().map(Server::conninfo).collect();
    declare_at(rig, sharding_key, &sources, &shards).await
}

/// The same with connection strings other than the servers' own.
pub async fn declare_at(
    rig: &Rig,
    sharding_key: &str,
    sources: &[String],
    shards: &[String],
) -> Result<()> {
    for node in rig.sources() {
        node.execute("CREATE EXTENSION IF NOT EXISTS reshard").await?;
        node.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await?;
    }
    let session = rig.source.connect().await?;
    declare_all(&session, sources, shards).await?;
    for (cluster, size, placement) in [
        (SOURCE, sources.len(), &rig.source_placement),
        (DESTINATION, shards.len(), &rig.placement),
    ] {
        if cluster == DESTINATION || size > 1 {
            for sql in placement.declaration(cluster, sharding_key) {
                session.execute(&sql).await?;
            }
        }
    }
    Ok(())
}

/// Declares the source as cluster `prod` and all shards as cluster `prod_sharded`.
pub async fn declare_shards(rig: &Rig, session: &Session) -> Result<()> {
    let shards: Vec<String> = rig.shards.iter().map(Server::conninfo).collect();
    declare_all(session, &[rig.source.conninfo()], &shards).await
}

async fn declare_all(session: &Session, sources: &[String], shards: &[String]) -> Result<()> {
    for (cluster, servers) in [(SOURCE, sources), (DESTINATION, shards)] {
        for (number, server) in servers.iter().enumerate() {
            let conninfo = literal(server);
            session
                .execute(&format!("SELECT reshard_add_shard('{cluster}', {number}, {conninfo})"))
                .await?;
        }
    }
    Ok(())
}

/// A task of the extension, seen from sessions of a DBA.
#[derive(Debug, Clone)]
pub struct Migration {
    rig: Arc<Rig>,
    /// Its id in `reshard.tasks`.
    pub id: i64,
}

/// A row of `reshard.tasks`, as far as scenarios look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskState {
    /// `pending`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: String,
    /// Phase of the task.
    pub phase: String,
    /// Text of the error that stopped it.
    pub error: Option<String>,
}

/// A row of `reshard.traffic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The cluster that writes go to.
    pub active_cluster: String,
    /// `open` or `paused`.
    pub state: String,
    /// Grows with every switch.
    pub epoch: i64,
}

impl Migration {
    /// `reshard_start` of everything that the publication has.
    pub async fn start(rig: &Arc<Rig>, auto_cutover: bool) -> Result<Migration> {
        let options = if rig.staying { r#"{"staying_shards": true}"# } else { "{}" };
        Migration::call(
            rig,
            &format!(
                "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', {auto_cutover}, \
                                      '{options}')"
            ),
        )
        .await
    }

    /// Runs a verb that returns the id of a task.
    pub async fn call(rig: &Arc<Rig>, sql: &str) -> Result<Migration> {
        let id = rig.source.connect().await?.one(sql).await?;
        Ok(Migration { rig: Arc::clone(rig), id })
    }

    /// `reshard_wait`: the phase reached, or the task's error.
    pub async fn wait(&self, until: &str, timeout: Duration) -> Result<String> {
        let session = self.rig.source.connect().await?;
        let sql = format!(
            "SELECT reshard_wait({}, {}, interval '{} milliseconds')",
            self.id,
            literal(until),
            timeout.as_millis()
        );
        session.one(&sql).await
    }

    /// Waits with a client's own eyes until the task has reached a phase, across
    /// restarts of the source. A failed task ends the wait.
    pub async fn watch(&self, phases: &[&str], deadline: Duration) -> Result<TaskState> {
        let what = format!("task {} to reach {}", self.id, phases.join(" or "));
        wait_for(deadline, what, || async {
            let state = match self.state().await {
                Ok(state) => state,
                Err(error) if error.is_disconnect() => {
                    return Ok(Seen::NotYet(error.to_string()));
                }
                Err(error) => return Err(error),
            };
            if phases.contains(&state.phase.as_str()) || phases.contains(&state.status.as_str()) {
                return Ok(Seen::Done(state));
            }
            match state.status.as_str() {
                // A failed task can be cancelled; until then it stays failed.
                "failed" if phases.contains(&"cancelled") => Ok(Seen::NotYet(format!("{state:?}"))),
                "failed" | "cancelled" => Err(Error::Unexpected(format!(
                    "task {} is {} in phase {}: {}",
                    self.id,
                    state.status,
                    state.phase,
                    state.error.unwrap_or_default()
                ))),
                _ => Ok(Seen::NotYet(format!("{state:?}"))),
            }
        })
        .await
    }

    /// The task as `reshard.tasks` shows it now.
    pub async fn state(&self) -> Result<TaskState> {
        let session = self.rig.source.connect().await?;
        let rows = session
            .rows(&format!(
                "SELECT status, coalesce(phase, ''), error FROM reshard.tasks WHERE id = {}",
                self.id
            ))
            .await?;
        let mut row = rows
            .into_iter()
            .next()
            .ok_or_else(|| Error::Unexpected(format!("task {} is not shown", self.id)))?
            .into_iter();
        Ok(TaskState {
            status: row.next().flatten().unwrap_or_default(),
            phase: row.next().flatten().unwrap_or_default(),
            error: row.next().flatten(),
        })
    }

    /// Calls a verb that takes the task's id, as `reshard_cutover`.
    pub async fn verb(&self, name: &str) -> Result<()> {
        self.rig.source.execute(&format!("SELECT {name}({})", self.id)).await
    }

    /// Cuts over and waits until the destination is active.
    pub async fn cutover(&self, deadline: Duration) -> Result<()> {
        self.switch("reshard_cutover", "switched", DESTINATION, deadline).await
    }

    /// Rolls back and waits until the source is active.
    pub async fn rollback(&self, deadline: Duration) -> Result<()> {
        self.switch("reshard_rollback", "rolled_back", SOURCE, deadline).await
    }

    async fn switch(&self, verb: &str, phase: &str, to: &str, deadline: Duration) -> Result<()> {
        self.verb(verb).await?;
        self.watch(&[phase], deadline).await?;
        let seen = traffic(&self.rig.source.connect().await?).await?;
        match seen.active_cluster == to && seen.state == "open" {
            true => Ok(()),
            false => {
                Err(Error::Unexpected(format!("phase is \"{phase}\", but traffic is {seen:?}")))
            }
        }
    }

    /// Begins `reshard_verify` of all tables.
    pub async fn begin_verify(&self) -> Result<Migration> {
        Migration::call(&self.rig, &format!("SELECT reshard_verify({})", self.id)).await
    }

    /// Has the extension compare both clusters; an error where they differ.
    pub async fn verify(&self, deadline: Duration) -> Result<Migration> {
        let task = self.begin_verify().await?;
        task.watch(&["succeeded"], deadline).await?;
        Ok(task)
    }

    /// Ends the migration and waits for it.
    pub async fn complete(&self, deadline: Duration) -> Result<()> {
        self.verb("reshard_complete").await?;
        self.watch(&["succeeded"], deadline).await.map(drop)
    }

    /// Cancels the migration and waits for it.
    pub async fn cancel(&self, deadline: Duration) -> Result<()> {
        self.verb("reshard_cancel").await?;
        self.watch(&["cancelled"], deadline).await.map(drop)
    }
}

/// The cutover flag.
pub async fn traffic(session: &Session) -> Result<Traffic> {
    let rows = session
        .rows(&format!(
            "SELECT active_cluster, state, epoch FROM reshard.traffic WHERE name = '{SOURCE}'"
        ))
        .await?;
    let row = rows
        .into_iter()
        .next()
        .ok_or_else(|| Error::Unexpected("reshard.traffic has no row".to_owned()))?;
    let field = |number: usize| row.get(number).cloned().flatten().unwrap_or_default();
    Ok(Traffic {
        active_cluster: field(0),
        state: field(1),
        epoch: field(2)
            .parse()
            .map_err(|_| Error::Unexpected(format!("unreadable epoch \"{}\"", field(2))))?,
    })
}
