//! A planned task on its shards: what runs at what time, and on which sessions.
use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::cluster::{Cluster, ShardNo};
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::xact;
use crate::remote::Endpoint;
use crate::schema::progress::Monitor;
use crate::schema::session::{Owner, Session};
use crate::schema::{existing, parallel, sequence};
use crate::state;
use crate::state::options::Options;
use crate::state::schema::Statement;

/// A phase of the schema, as the verb and `reshard.schema_sync` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// What has to be there before the rows.
    Pre,
    /// What is better made after them.
    Post,
    /// What has to happen while traffic is paused: values of sequences, which the
    /// cutover sets.
    Cutover,
    /// What makes the old cluster fit to receive: nothing, since apply workers fire no
    /// ordinary triggers, check no foreign keys and write identity columns.
    PostCutover,
}

impl Phase {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
            Self::Cutover => "cutover",
            Self::PostCutover => "post_cutover",
        }
    }

    /// Reads what a user wrote.
    ///
    /// # Errors
    /// 22023 with the known phases.
    pub fn parse(text: &str) -> Result<Self> {
        [Self::Pre, Self::Post, Self::Cutover, Self::PostCutover]
            .into_iter()
            .find(|phase| phase.as_str() == text)
            .ok_or_else(|| {
                Error::argument(format!("unknown schema phase \"{text}\""))
                    .hint("Phases are pre, post, cutover and post_cutover.")
            })
    }
}

/// A task's schema on its way to the shards. See the header of the module.
pub struct Stage {
    pub(super) owner: Owner,
    pub(super) preamble: Vec<String>,
    pub(super) options: Options,
    shards: Vec<Shard>,
}

impl Stage {
    /// Connects a planned task with its shards, which have the helper objects.
    ///
    /// # Errors
    /// 55000 without a plan, 55P03 where statements of an earlier worker still
    /// run on a shard; the shard's.
    pub async fn open(task_id: i64, destination: &Cluster) -> Result<Self> {
        Self::with_limit(task_id, destination, gucs::MAX_INDEX_BUILDS.get()).await
    }

    /// As [`Stage::open`], while rows are copied from so many source shards: what the
    /// copy workers leave of `reshard.max_shard_sessions`, and one session at least.
    ///
    /// # Errors
    /// As [`Stage::open`].
    pub async fn open_beside_copy(task_id: i64, destination: &Cluster, nodes: u32) -> Result<Self> {
        let copying = gucs::copy_workers(nodes).saturating_mul(nodes as i32);
        let free = gucs::MAX_SHARD_SESSIONS.get() - copying;
        Self::with_limit(task_id, destination, free.clamp(1, gucs::MAX_INDEX_BUILDS.get())).await
    }

    async fn with_limit(task_id: i64, destination: &Cluster, limit: i32) -> Result<Self> {
        let (preamble, token, options) = xact::transaction(|| {
            let preamble = state::schema::preamble(task_id)?
                .ok_or_else(|| Error::state(format!("task {task_id} has no schema plan")))?;
            Ok((preamble, state::token()?, state::task::load(task_id)?.options))
        })?;
        let owner = Owner { token, task: task_id };
        let limit = usize::try_from(limit).unwrap_or(1).max(1);
        let shards = destination.joining().map(|e| Shard::new(e.clone(), limit)).collect();
        let stage = Self { owner, preamble: preamble.session, options, shards };
        all(stage.shards.iter().map(|shard| async {
            let session = shard.take(&stage).await?;
            session.wait_for_earlier(&stage.owner).await?;
            shard.give_back(session);
            Ok(())
        }))
        .await?;
        Ok(stage)
    }

    /// Runs all that is open of a phase, on every shard at the same time.
    ///
    /// # Errors
    /// That of the first shard that failed, once all shards have come to an end.
    pub async fn run_phase(&self, phase: Phase) -> Result<()> {
        if matches!(phase, Phase::Cutover | Phase::PostCutover) {
            return Ok(());
        }
        all(self.shards.iter().map(|shard| self.run_phase_on(shard, phase, |_| true))).await
    }

    /// Runs what is open of phase `post`, but for checks of foreign keys and what comes after
    /// those: rows of several snapshots don't fit together until the changes between those
    /// have come.
    ///
    /// # Errors
    /// As [`Stage::run_phase`].
    pub async fn run_post_unchecked(&self) -> Result<()> {
        let wanted = |s: &Statement| !checks_foreign_keys(s) && s.step != "rest";
        all(self.shards.iter().map(|shard| self.run_phase_on(shard, Phase::Post, wanted))).await
    }

    async fn run_phase_on(
        &self,
        shard: &Shard,
        phase: Phase,
        wanted: impl Fn(&Statement) -> bool,
    ) -> Result<()> {
        self.reconcile(shard, phase).await?;
        let run = || self.run_open(shard, phase, &wanted);
        existing::passing_over(self, shard, phase, run).await
    }

    async fn run_open(
        &self,
        shard: &Shard,
        phase: Phase,
        wanted: impl Fn(&Statement) -> bool,
    ) -> Result<()> {
        let mut statements =
            xact::transaction(|| state::schema::open(self.owner.task, shard.no(), phase.as_str()))?;
        statements.retain(wanted);
        if phase == Phase::Pre {
            return sequence::run(self, shard, &statements).await;
        }
        let of = |steps: &[&str]| -> Vec<Statement> {
            statements.iter().filter(|s| steps.contains(&s.step.as_str())).cloned().collect()
        };
        parallel::run(self, shard, &of(&["keys", "indexes"])).await?;
        sequence::run(self, shard, &of(&["attach"])).await?;
        parallel::run(self, shard, &of(&["foreign_keys"])).await?;
        parallel::run(self, shard, &of(&["validate"])).await?;
        sequence::run(self, shard, &of(&["rest"])).await
    }

    /// Runs what is open of one table's keys and indexes, on every shard.
    ///
    /// # Errors
    /// As [`Stage::run_phase`].
    pub async fn run_table(&self, schema: &str, table: &str) -> Result<()> {
        let wanted = |s: &Statement| matches!(s.step.as_str(), "keys" | "indexes");
        all(self.shards.iter().map(|shard| self.run_of_table(shard, (schema, table), wanted))).await
    }

    /// Runs what replication needs to find rows of a table, on every shard: primary keys,
    /// unique constraints and indexes, replica identities.
    ///
    /// # Errors
    /// As [`Stage::run_phase`].
    pub async fn run_identity_keys(&self, schema: &str, table: &str) -> Result<()> {
        let shards = self.shards.iter();
        all(shards.map(|shard| self.run_of_table(shard, (schema, table), is_identity_key))).await
    }

    async fn run_of_table(
        &self,
        shard: &Shard,
        table: (&str, &str),
        wanted: impl Fn(&Statement) -> bool,
    ) -> Result<()> {
        self.reconcile(shard, Phase::Post).await?;
        let run = || self.run_open_of_table(shard, table, &wanted);
        existing::passing_over(self, shard, Phase::Post, run).await
    }

    async fn run_open_of_table(
        &self,
        shard: &Shard,
        table: (&str, &str),
        wanted: impl Fn(&Statement) -> bool,
    ) -> Result<()> {
        let mut statements = xact::transaction(|| {
            let phase = Phase::Post.as_str();
            state::schema::open_of_table(self.owner.task, shard.no(), phase, table)
        })?;
        statements.retain(wanted);
        let (parallel, ordered): (Vec<_>, Vec<_>) =
            statements.into_iter().partition(|s| matches!(s.step.as_str(), "keys" | "indexes"));
        parallel::run(self, shard, &parallel).await?;
        sequence::run(self, shard, &ordered).await
    }

    /// Once per phase: learns from the shard what has been applied.
    async fn reconcile(&self, shard: &Shard, phase: Phase) -> Result<()> {
        let cell = if phase == Phase::Pre { &shard.pre_known } else { &shard.post_known };
        cell.get_or_try_init(|| async {
            let session = shard.take(self).await?;
            session.reconcile(&self.owner, shard.no(), phase).await?;
            shard.give_back(session);
            Ok(())
        })
        .await
        .copied()
    }
}

/// Whether a statement makes rows of its table findable by UPDATE and DELETE.
fn is_identity_key(statement: &Statement) -> bool {
    match statement.kind.as_str() {
        "primary_key" | "unique" => statement.step == "keys",
        "index" => statement.sql.starts_with("CREATE UNIQUE INDEX"),
        "replica_identity" => true,
        _ => false,
    }
}

/// Whether a statement looks at rows that refer to others. A key of a partitioned table is
/// made and checked at once.
fn checks_foreign_keys(statement: &Statement) -> bool {
    match statement.step.as_str() {
        "validate" => true,
        "foreign_keys" => !statement.sql.trim_end_matches(';').ends_with("NOT VALID"),
        _ => false,
    }
}

/// Drives all to their end; the first error.
async fn all(
    works: impl Iterator<Item = impl std::future::Future<Output = Result<()>>>,
) -> Result<()> {
    join_all(works).await.into_iter().collect()
}

/// A shard and the sessions on it.
pub(super) struct Shard {
    pub(super) endpoint: Endpoint,
    pub(super) monitor: Monitor,
    permits: Semaphore,
    limit: usize,
    idle: Mutex<Vec<Session>>,
    pre_known: OnceCell<()>,
    post_known: OnceCell<()>,
    /// Held while the shard's own schema is looked at.
    pub(super) comparing: tokio::sync::Mutex<()>,
}

impl Shard {
    fn new(endpoint: Endpoint, limit: usize) -> Self {
        Self {
            endpoint,
            monitor: Monitor::new(),
            permits: Semaphore::new(limit),
            limit,
            idle: Mutex::new(Vec::new()),
            pre_known: OnceCell::new(),
            post_known: OnceCell::new(),
            comparing: tokio::sync::Mutex::new(()),
        }
    }

    /// Its number.
    pub(super) fn no(&self) -> ShardNo {
        ShardNo(self.endpoint.shard)
    }

    /// Statements that may run here at the same time.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The right to run a statement; waits for it.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>> {
        let closed = |_| Error::internal("the schema stage has been closed");
        self.permits.acquire().await.map_err(closed)
    }

    /// A session, an idle one if there is one.
    pub(super) async fn take(&self, stage: &Stage) -> Result<Session> {
        while let Some(session) = self.pop() {
            if !session.is_closed() {
                return Ok(session);
            }
        }
        Session::open(&self.endpoint, &stage.preamble).await
    }

    fn pop(&self) -> Option<Session> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a session without a transaction for the next statement.
    pub(super) fn give_back(&self, session: Session) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn phases_are_read() {
        assert_eq!(Phase::parse("post_cutover").unwrap(), Phase::PostCutover);
        assert_eq!(Phase::parse("all").unwrap_err().sqlstate(), "22023");
    }
}
