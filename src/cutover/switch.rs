//! The procedure of a cutover and of a rollback.
use std::time::{Duration, Instant};

use crate::cluster::{Direction, Side};
use crate::cutover::fence::{self, Lease};
use crate::cutover::sequences::Sequences;
use crate::cutover::Step;
use crate::error::{Context, Error, Kind, Result};
use crate::gucs;
use crate::pg::xact::{transaction, transaction_async};
use crate::remote::Links;
use crate::replication::{handoff, marker, subscription};
use crate::state::flow::Flow;
use crate::state::{cutover, event, flow, task, traffic};

/// How long the marker of the last check may take; longer than that and the flow
/// is too slow for a short pause.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(30);

/// A switch along the flows of one direction.
pub struct Switch<'a> {
    /// Connections to both clusters.
    pub links: &'a Links,
    /// The migration.
    pub task_id: i64,
    /// Name of the traffic's row: the source cluster's.
    pub traffic: &'a str,
    /// The flows that traffic moves along.
    pub direction: Direction,
    /// Flows of that direction.
    pub flows: &'a [Flow],
    /// Flows of the other direction; their objects exist, disabled.
    pub opposite: &'a [Flow],
    /// Sequences of the migration.
    pub sequences: &'a Sequences,
    /// Do everything up to the commit point, then let go.
    pub dry_run: bool,
}

impl Switch<'_> {
    fn from(&self) -> Side {
        self.direction.publisher()
    }

    fn to(&self) -> Side {
        self.direction.subscriber()
    }

    fn step(&self, id: i64, step: Step) -> Result<()> {
        transaction_async(|| cutover::step(id, step.as_str()))
    }

    /// Runs the switch; returns how long no cluster took writes.
    ///
    /// # Errors
    /// Before the commit point: whatever stopped it; the old cluster is open
    /// again. After it: what is left to do is done by [`super::recover`].
    pub async fn run(&self) -> Result<Duration> {
        let from = self.links.cluster(self.from()).name.clone();
        let to = self.links.cluster(self.to()).name.clone();
        let id =
            transaction(|| cutover::begin(self.task_id, self.direction, &from, &to, self.dry_run))?;
        // Kept until a cluster is open again: its sessions hold the writers.
        let mut lease = None;
        match self.until_commit(id, &to, &mut lease).await {
            Ok(Some((epoch, began))) => {
                self.open(id, &to, epoch).await?;
                let pause = began.elapsed();
                drop(lease);
                self.exchange_flows(id, &to, epoch, Some(pause)).await?;
                Ok(pause)
            }
            Ok(None) => {
                self.undo().await.context("could not open the old cluster again")?;
                transaction(|| cutover::succeed(id, None))?;
                Ok(Duration::ZERO)
            }
            Err(error) => {
                self.undo().await.context("could not open the old cluster again")?;
                transaction(|| cutover::abort(id, &error))?;
                Err(error)
            }
        }
    }

    /// All steps up to and with the commit point; `None` after a dry run.
    async fn until_commit(
        &self,
        id: i64,
        to: &str,
        lease: &mut Option<Lease>,
    ) -> Result<Option<(i64, Instant)>> {
        self.step(id, Step::Prepare)?;
        if self.direction == Direction::Forward {
            self.sequences.prepare_destination(self.links).await?;
        }
        handoff::advance(self.links, self.opposite).await?;
        let lease = lease.insert(Lease::open(self.links, self.from()).await?);
        // Twice: the first may wake a flow that slept, the second is the measure.
        marker::round_trip(self.links, self.flows, LIVENESS_TIMEOUT).await?;
        marker::round_trip(self.links, self.flows, self.limit()).await?;

        self.step(id, Step::Pause)?;
        let began = Instant::now();
        if !self.dry_run {
            transaction(|| traffic::set_state(self.traffic, "paused"))?;
            self.wait_for_poolers().await?;
            let grace = Duration::from_millis(gucs::PAUSE_GRACE.get().unsigned_abs().into());
            tokio::time::sleep(grace).await;
        }

        let within = tokio::time::timeout(self.limit(), self.fenced(id, lease, to));
        match within.await {
            Ok(result) => result.map(|epoch| epoch.map(|epoch| (epoch, began))),
            Err(_) => Err(Error::new(Kind::LockNotAvailable, "the cutover took too long")
                .detail(format!(
                    "It held writers for {} ms without reaching its commit point.",
                    self.limit().as_millis()
                ))
                .hint("See the durations in reshard.cutovers, or raise reshard.cutover_timeout.")),
        }
    }

    /// The steps that clients wait for.
    async fn fenced(&self, id: i64, lease: &Lease, to: &str) -> Result<Option<i64>> {
        self.step(id, Step::Lease)?;
        let drain = Duration::from_millis(gucs::DRAIN_TIMEOUT.get().unsigned_abs().into());
        lease.take(drain.min(self.limit())).await?;
        self.step(id, Step::Barrier)?;
        marker::round_trip(self.links, self.flows, self.limit()).await?;
        self.step(id, Step::Sequences)?;
        match self.direction {
            Direction::Forward => self.sequences.forward(self.links).await?,
            Direction::Reverse => self.sequences.reverse(self.links).await?,
        }
        self.step(id, Step::Handoff)?;
        handoff::advance(self.links, self.opposite).await?;
        if self.dry_run {
            return Ok(None);
        }
        self.step(id, Step::Latch)?;
        lease.shut().await?;
        self.step(id, Step::Commit)?;
        let epoch = transaction(|| {
            let epoch = traffic::switch(self.traffic, to)?;
            cutover::set_epoch(id, epoch)?;
            flow::set_live(self.task_id, Some(self.direction.opposite()))?;
            Ok(epoch)
        })?;
        Ok(Some(epoch))
    }

    /// Everything after the commit point, for one that was interrupted there.
    ///
    /// # Errors
    /// The servers'; it has to be repeated then.
    pub async fn finish(&self, id: i64, to: &str, epoch: i64) -> Result<()> {
        // After a crash nobody knows whether the latch was shut in time.
        fence::shut_latch(self.links, self.from()).await?;
        self.open(id, to, epoch).await?;
        self.exchange_flows(id, to, epoch, None).await
    }

    /// Lets writers into the new cluster. Repeatable.
    async fn open(&self, id: i64, to: &str, epoch: i64) -> Result<()> {
        self.step(id, Step::Open)?;
        fence::open_with_flag(self.links, self.to(), self.traffic, to, epoch).await?;
        transaction(|| traffic::set_state(self.traffic, "open"))
    }

    /// Stops the flow that traffic moved along and starts the opposite one.
    /// Repeatable.
    async fn exchange_flows(
        &self,
        id: i64,
        to: &str,
        epoch: i64,
        pause: Option<Duration>,
    ) -> Result<()> {
        let pause = pause.map(|p| p.as_secs_f64() * 1000.0);
        self.step(id, Step::StopFlow)?;
        if self.from() == Side::Destination {
            fence::write_flag(self.links, self.from(), self.traffic, to, epoch).await?;
        }
        for (shard, session) in self.links.sessions(self.to()).await? {
            let own: Vec<&Flow> =
                self.flows.iter().filter(|f| f.shard_on(self.to()) == shard).collect();
            subscription::set_enabled(&session, &own, false).await?;
        }
        for (shard, session) in self.links.sessions(self.from()).await? {
            let own: Vec<&Flow> =
                self.flows.iter().filter(|f| f.shard_on(self.from()) == shard).collect();
            subscription::wait_until_idle(&session, &own).await?;
        }
        self.step(id, Step::StartFlow)?;
        for (shard, session) in self.links.sessions(self.from()).await? {
            let own: Vec<&Flow> =
                self.opposite.iter().filter(|f| f.shard_on(self.from()) == shard).collect();
            subscription::set_enabled(&session, &own, true).await?;
        }
        transaction(|| {
            cutover::succeed(id, pause)?;
            let phase = match self.direction {
                Direction::Forward => task::Phase::Switched,
                Direction::Reverse => task::Phase::RolledBack,
            };
            task::set_phase(self.task_id, phase)?;
            event::write(
                Some(self.task_id),
                event::Severity::Info,
                "switched",
                &format!("traffic goes to cluster \"{to}\" since epoch {epoch}"),
                serde_json::json!({ "epoch": epoch, "pause_ms": pause }),
            )
        })
    }

    /// Opens the old cluster again. Repeatable; right only before the commit point.
    ///
    /// # Errors
    /// The servers'; it has to be repeated then.
    pub async fn undo(&self) -> Result<()> {
        fence::open_latch(self.links, self.from()).await?;
        transaction(|| traffic::set_state(self.traffic, "open"))
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(gucs::CUTOVER_TIMEOUT.get().unsigned_abs().into())
    }

    /// Waits until every registered pooler has acknowledged the pause.
    async fn wait_for_poolers(&self) -> Result<()> {
        let limit = Duration::from_millis(gucs::POOLER_ACK_TIMEOUT.get().unsigned_abs().into());
        let began = Instant::now();
        loop {
            let missing = transaction(|| traffic::poolers_not_paused(self.traffic))?;
            if missing.is_empty() {
                return Ok(());
            }
            if began.elapsed() > limit {
                return Err(Error::new(Kind::LockNotAvailable, "poolers did not acknowledge the pause")
                    .detail(format!(
                        "After {} ms these had not: {}.",
                        limit.as_millis(),
                        missing.join(", ")
                    ))
                    .hint("See reshard.poolers; a pooler that is gone is removed with DELETE FROM reshard.pooler."));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
