//! Parts of the other source shards: each is copied by an ordinary backend of its
//! own server, which scans it and sends its rows to the shards. Here is the
//! coordinator's side, the sessions that have these backends work; the backend's
//! side is [`super::assigned`].
use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::{Cluster, KeyMap, ShardNo};
use crate::copy::assigned::{Assignment, Reply};
use crate::copy::copier::is_lost_snapshot;
use crate::copy::part::{self, Claim, Part};
use crate::error::{Error, Kind, Policy, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};
use crate::pg::xact;
use crate::remote::quote::literal;
use crate::remote::{self, Connection, Endpoint, Purpose};

/// What a backend runs first. Its statements hold the shards' passwords, and it
/// has to notice that nobody waits for it any more.
const SESSION: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
     SET log_min_duration_sample = -1; SET log_transaction_sample_rate = 0; SET log_duration = off; \
     SET log_min_error_statement = 'panic'; SET log_parameter_max_length_on_error = 0; \
     SET auto_explain.log_min_duration = -1; SET client_connection_check_interval = 500";

/// Another source shard, and what its backends need to copy parts of a wave.
pub struct Node {
    /// Its number.
    pub shard: ShardNo,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its snapshot's name.
    pub snapshot: String,
    /// Where rows go.
    pub destination: Cluster,
    /// Tells this database from others.
    pub token: String,
}

/// Ends the backends of a source shard that copy parts: those of an earlier run
/// must not send rows any more when it is begun anew.
///
/// # Errors
/// The server's; 55P03 where one does not end.
pub async fn end_backends(session: &Connection) -> Result<()> {
    remote::end_sessions(session, Purpose::Node).await
}

/// Copies the parts of other source shards until none is left, each shard with so
/// many backends at the same time.
///
/// # Errors
/// Those of the state tables; a server that can't be reached, or has no place for
/// a session, after all tries. Errors of a part are kept with the part.
pub(super) async fn copy(task_id: i64, wave: i32, nodes: &[Node], backends: usize) -> Result<()> {
    let workers = nodes.iter().flat_map(|node| (0..backends).map(move |_| node));
    try_join_all(workers.map(|node| Worker::new(task_id, wave, node).run())).await?;
    Ok(())
}

/// Gives back the parts of other source shards that an earlier run left.
pub(super) fn free_left(task_id: i64, node: ShardNo) -> Result<()> {
    xact::transaction(|| {
        db::execute(
            "UPDATE reshard.copy_part SET status = 'pending', worker_pid = NULL \
              WHERE task_id = $1 AND status = 'running' AND source_shard <> $2",
            &[Arg::I64(task_id), Arg::I32(node.as_i32())],
        )
        .map(|_| ())
    })
}

/// A session, and the process that serves it there.
struct Backend {
    session: Connection,
    pid: i32,
}

/// Has one backend after the other copy parts.
struct Worker<'a> {
    task_id: i64,
    wave: i32,
    node: &'a Node,
    backend: Option<Backend>,
    /// A backend whose session was given up: it has to end before another begins.
    given_up: Option<i32>,
}

impl<'a> Worker<'a> {
    fn new(task_id: i64, wave: i32, node: &'a Node) -> Self {
        Self { task_id, wave, node, backend: None, given_up: None }
    }

    async fn run(mut self) -> Result<()> {
        loop {
            let pid = self.backend().await?.pid;
            match part::claim(self.task_id, self.wave, self.node.shard, pid)? {
                Claim::Nothing => return Ok(()),
                Claim::Later(milliseconds) => {
                    sleep(u64::try_from(milliseconds).unwrap_or(1)).await;
                }
                Claim::Parts(parts) => {
                    for part in &parts {
                        if !self.copy_one(part, pid).await? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// The session, opened where it is missing or lost.
    async fn backend(&mut self) -> Result<&Backend> {
        let mut tries = 0;
        let kept = self.backend.take();
        let lost = kept.as_ref().filter(|b| b.session.is_closed()).map(|b| b.pid);
        self.given_up = lost.or(self.given_up);
        let open = match kept.filter(|b| !b.session.is_closed()) {
            Some(open) => open,
            None => loop {
                match open(&self.node.endpoint, self.given_up).await {
                    Ok(opened) => {
                        self.given_up = None;
                        break opened;
                    }
                    Err(error) if error.policy() == Policy::Fail => return Err(error),
                    Err(error) => {
                        tries += 1;
                        if tries >= gucs::COPY_ATTEMPTS.get() {
                            return Err(error);
                        }
                        sleep(u64::try_from(gucs::COPY_RETRY_DELAY.get()).unwrap_or(1)).await;
                    }
                }
            },
        };
        Ok(self.backend.insert(open))
    }

    /// False when the wave can't go on. `pid` is who claimed the part.
    async fn copy_one(&mut self, part: &Part, pid: i32) -> Result<bool> {
        let reply = self.ask(part).await;
        match reply {
            Ok(Reply::Done { rows, bytes }) => part::done(self.task_id, part, rows, bytes)?,
            Ok(Reply::Rewritten) => part::rewritten(self.task_id, part)?,
            Ok(Reply::SnapshotLost) => {
                part::snapshot_lost(self.task_id, self.wave, self.node.shard, pid)?;
                return Ok(false);
            }
            Ok(Reply::Failed(error)) => self.failed(part, &error.into()).await?,
            Err(error) => {
                // Whatever state the session is in: its end takes everything back.
                self.given_up = self.backend.take().map(|b| b.pid).or(self.given_up);
                self.failed(part, &error).await?;
            }
        }
        Ok(true)
    }

    async fn failed(&self, part: &Part, error: &Error) -> Result<()> {
        part::failed(self.task_id, part, error)?;
        if error.policy() == Policy::Retry {
            // The other parts go to the same shards: not all of them at once.
            sleep(u64::try_from(gucs::COPY_RETRY_DELAY.get()).unwrap_or(1)).await;
        }
        Ok(())
    }

    /// Has the backend copy a part under the wave's snapshot.
    async fn ask(&mut self, part: &Part) -> Result<Reply> {
        let node = self.node;
        let assignment = Assignment {
            token: node.token.clone(),
            task_id: self.task_id,
            wave: self.wave,
            cluster: node.destination.name.clone(),
            shards: node.destination.shards.iter().map(|s| s.conninfo.to_libpq()).collect(),
            maps: maps_of(&node.destination),
            staying: node.destination.staying.clone(),
            node: node.shard,
            part: part.clone(),
        };
        let assignment = serde_json::to_string(&assignment)?;
        let session = &self.backend().await?.session;
        let begun = session
            .batch(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
                literal(&node.snapshot)
            ))
            .await;
        match begun {
            Ok(()) => {}
            Err(error) if is_lost_snapshot(&error) => {
                session.batch("ROLLBACK").await?;
                return Ok(Reply::SnapshotLost);
            }
            Err(error) => return Err(error),
        }
        let reply: String =
            session.value("SELECT pg_catalog.reshard_copy_part($1)", &[&assignment]).await?;
        session.batch("COMMIT").await?;
        Ok(serde_json::from_str(&reply)?)
    }
}

/// The mapped keys of a cluster, to be sent.
fn maps_of(cluster: &Cluster) -> BTreeMap<String, KeyMap> {
    cluster.maps.iter().map(|(column, map)| (column.clone(), KeyMap::clone(map))).collect()
}

/// Opens a session, once the backend of an earlier one has ended.
async fn open(endpoint: &Endpoint, given_up: Option<i32>) -> Result<Backend> {
    let session = remote::connect(endpoint, Purpose::Node).await?;
    session.batch(SESSION).await?;
    if let Some(pid) = given_up {
        let ended: bool = session
            .value(
                "SELECT coalesce(bool_and(pg_terminate_backend(pid, 10000)), true) \
                   FROM pg_stat_activity WHERE pid = $1 AND application_name = $2",
                &[&pid, &Purpose::Node.application_name()],
            )
            .await?;
        if !ended {
            return Err(Error::new(
                Kind::LockNotAvailable,
                format!("process {pid} on {endpoint} does not end"),
            ));
        }
    }
    let pid = session.value("SELECT pg_backend_pid()", &[]).await?;
    Ok(Backend { session, pid })
}

async fn sleep(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
