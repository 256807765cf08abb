//! The procedure of a cutover and of a rollback.
use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::cluster::{Direction, Side};
use crate::cutover::bounds::Bounds;
use crate::cutover::failpoint::{self, Moment};
use crate::cutover::fence::{self, Lease};
use crate::cutover::sequences::{self, Sequences};
use crate::cutover::{check, Step};
use crate::error::{Context, Error, Kind, Result};
use crate::pg::xact::{transaction, transaction_async};
use crate::remote::Links;
use crate::replication::{handoff, marker, subscription};
use crate::state::flow::Flow;
use crate::state::staying::StayingSequence;
use crate::state::table::Table;
use crate::state::{cutover, event, flow, staying, table, task, traffic};

/// How long the marker of the last check may take; longer than that and the flow
/// is too slow for a short pause.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(30);

/// A switch along the flows of one direction.
pub struct Switch<'a> {
    /// Connections to both clusters.
    pub links: &'a Links,
    /// The migration.
    pub task_id: i64,
    /// Its row of `reshard.cutover`, with step `prepare` written down.
    pub id: i64,
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
    /// Those of shards that are in both clusters.
    pub staying: &'a [StayingSequence],
    /// Tables of the migration.
    pub tables: &'a [Table],
    /// The user's publication, which names them.
    pub publication: &'a str,
    /// What is left out.
    pub extent: Extent,
    /// How long it waits.
    pub bounds: Bounds,
    /// The step that is at work.
    pub at: Cell<Step>,
}

/// How far a switch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// To its end.
    Whole,
    /// Up to the commit point; then it lets go.
    DryRun,
    /// All checks, but writers are not held.
    Checks,
}

impl Extent {
    /// Whether nothing is to be switched.
    pub fn is_dry(self) -> bool {
        self != Self::Whole
    }
}

impl Switch<'_> {
    fn from(&self) -> Side {
        self.direction.publisher()
    }

    fn to(&self) -> Side {
        self.direction.subscriber()
    }

    /// A step begins: it is written down first.
    async fn begin(&self, step: Step) -> Result<()> {
        self.at.set(step);
        transaction_async(|| cutover::step(self.id, step.as_str()))?;
        failpoint::reach(step, Moment::Written).await
    }

    /// All of a step is done.
    async fn done(&self) -> Result<()> {
        failpoint::reach(self.at.get(), Moment::Done).await
    }

    async fn partly(&self) -> Result<()> {
        failpoint::reach(self.at.get(), Moment::Partial).await
    }

    /// Runs the switch; returns how long no cluster took writes.
    ///
    /// # Errors
    /// Before the commit point: whatever stopped it; the old cluster is open
    /// again. After it: what is left to do is done by [`super::recover`].
    pub async fn run(&self) -> Result<Duration> {
        let to = self.links.cluster(self.to()).name.as_str();
        // Kept until a cluster is open again: its sessions hold the writers.
        let mut lease = None;
        match self.until_commit(to, &mut lease).await {
            Ok(Reached::Commit { epoch, began }) => {
                self.done().await?;
                self.open(to, epoch).await?;
                let pause = began.elapsed();
                drop(lease);
                self.done().await?;
                self.exchange_flows(to, epoch, Some(pause)).await?;
                Ok(pause)
            }
            Ok(Reached::End { expected }) => {
                drop(lease);
                self.undo().await.context("could not open the old cluster again")?;
                self.note_dry_run(expected)?;
                Ok(Duration::ZERO)
            }
            Err(error) => {
                // The writers first: they don't wait for what follows.
                drop(lease);
                if !self.extent.is_dry()
                    && transaction(|| traffic::load(self.traffic))?.active_cluster == to
                {
                    return Err(error);
                }
                self.undo().await.context("could not open the old cluster again")?;
                transaction(|| cutover::abort(self.id, &error))?;
                Err(error)
            }
        }
    }

    /// All steps up to and with the commit point.
    async fn until_commit(&self, to: &str, lease: &mut Option<Lease>) -> Result<Reached> {
        failpoint::reach(Step::Prepare, Moment::Written).await?;
        let (lease, answer) = self.prepare(lease).await?;
        self.done().await?;
        let Bounds { hold, grace, .. } = self.bounds;
        if self.extent == Extent::Checks {
            // Barrier, then handoff, latch, commit and opening: a commit for each.
            return Ok(Reached::End { expected: grace + answer.marker + 4 * answer.commit });
        }

        self.begin(Step::Pause).await?;
        let began = Instant::now();
        if self.extent == Extent::Whole {
            transaction_async(|| traffic::set_state(self.traffic, "paused"))?;
            self.wait_for_poolers().await?;
            tokio::time::sleep(grace).await;
        }
        self.done().await?;

        let within = tokio::time::timeout(hold, self.fenced(lease, to));
        match within.await {
            Ok(Ok(Some(epoch))) => Ok(Reached::Commit { epoch, began }),
            // What a dry run leaves out: latch, commit and opening.
            Ok(Ok(None)) => {
                Ok(Reached::End { expected: grace + began.elapsed() + 3 * answer.commit })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(Kind::LockNotAvailable, "the cutover took too long")
                .detail(format!(
                    "It held writers for {} ms and was in step \"{}\".",
                    hold.as_millis(),
                    self.at.get().as_str()
                ))
                .hint("See the durations in reshard.cutovers, or raise reshard.cutover_timeout.")),
        }
    }

    /// What can be done, and found out, before anyone is held.
    async fn prepare<'l>(&self, lease: &'l mut Option<Lease>) -> Result<(&'l Lease, Answer)> {
        check::no_other_subscription(self.links, self.from(), self.tables).await?;
        check::no_table_left_behind(self.links, self.direction, self.publication, self.tables)
            .await?;
        if self.direction == Direction::Forward {
            self.sequences.prepare_destination(self.links).await?;
        }
        let flag = transaction(|| traffic::load(self.traffic))?;
        for side in [Side::Source, Side::Destination] {
            let (name, active) = (self.traffic, &flag.active_cluster);
            fence::write_flag(self.links, side, name, active, flag.epoch).await?;
        }
        handoff::advance(self.links, self.opposite).await?;
        self.partly().await?;
        let lease = lease.insert(Lease::open(self.links, self.from()).await?);
        // Twice: the first may wake a flow that slept, the second is the measure.
        marker::round_trip(self.links, self.flows, LIVENESS_TIMEOUT).await?;
        let marker = marker::round_trip(self.links, self.flows, self.bounds.marker()).await?;
        let began = Instant::now();
        handoff::positions(self.links, self.opposite).await?;
        Ok((lease, Answer { marker, commit: began.elapsed() }))
    }

    /// DDL that has been replayed may have added a table since the way back was made.
    fn same_tables(&self) -> Result<()> {
        let known = transaction_async(|| table::count(self.task_id))?;
        if known == self.tables.len() as i64 {
            return Ok(());
        }
        Err(Error::state("a table was added while the cutover was prepared")
            .hint("Ask for the cutover again."))
    }

    /// The steps that clients wait for.
    async fn fenced(&self, lease: &Lease, to: &str) -> Result<Option<i64>> {
        self.begin(Step::Lease).await?;
        let ended = lease.take(&self.bounds).await?;
        self.note_ended(&ended)?;
        self.same_tables()?;
        self.done().await?;

        // The markers travel while the sequences are set.
        self.begin(Step::Sequences).await?;
        let markers = marker::send(self.links, self.flows).await?;
        let opening = match self.direction {
            Direction::Forward => self.sequences.forward(self.links, self.staying).await?,
            Direction::Reverse => self.sequences.reverse(self.links, self.staying).await?,
        };
        self.done().await?;
        self.begin(Step::Barrier).await?;
        futures::try_join!(
            markers.arrive(self.links, self.flows, self.bounds.hold),
            check::fence_is_whole(self.links, self.from(), self.tables)
        )?;
        self.done().await?;

        self.begin(Step::Handoff).await?;
        let positions = handoff::positions(self.links, self.opposite).await?;
        self.partly().await?;
        handoff::begin_at(self.links, self.opposite, &positions).await?;
        self.done().await?;
        if self.extent.is_dry() {
            return Ok(None);
        }

        self.begin(Step::Latch).await?;
        lease.shut().await?;
        self.done().await?;

        self.begin(Step::Commit).await?;
        let epoch = transaction(|| {
            let epoch = traffic::switch(self.traffic, to, self.bounds.hold)?;
            cutover::set_epoch(self.id, epoch)?;
            flow::set_live(self.task_id, Some(self.direction.opposite()))?;
            if !opening.is_empty() {
                staying::keep(self.task_id, &opening)?;
            }
            failpoint::reach_within(Step::Commit, Moment::Partial)?;
            Ok(epoch)
        })?;
        Ok(Some(epoch))
    }

    /// Everything after the commit point, for one that was interrupted there.
    ///
    /// # Errors
    /// The servers'; it has to be repeated then.
    pub async fn finish(&self, to: &str, epoch: i64) -> Result<()> {
        fence::shut_latch_again(self.links, self.from()).await?;
        self.open(to, epoch).await?;
        self.done().await?;
        self.exchange_flows(to, epoch, None).await
    }

    /// Lets writers into the new cluster. Repeatable. Clients go to the shards that are
    /// there, also where one has gone away since the commit point.
    async fn open(&self, to: &str, epoch: i64) -> Result<()> {
        self.begin(Step::Open).await?;
        let before = sequences::of_opening(self.links, self.to(), self.task_id)?;
        let flag = (self.traffic, to, epoch);
        let opened = fence::open_with_flag(self.links, self.to(), flag, &before).await;
        if opened.as_ref().err().is_none_or(Error::is_absence) {
            // A crash that loses it is recovered from by doing it again.
            transaction_async(|| traffic::set_state(self.traffic, "open"))?;
        }
        opened
    }

    /// Stops the flow that traffic moved along and starts the opposite one.
    /// Repeatable.
    async fn exchange_flows(&self, to: &str, epoch: i64, pause: Option<Duration>) -> Result<()> {
        let pause = pause.map(milliseconds);
        self.begin(Step::StopFlow).await?;
        fence::write_flag(self.links, self.from(), self.traffic, to, epoch).await?;
        for (nr, (shard, session)) in
            self.links.sessions_at_ends(self.to()).await?.into_iter().enumerate()
        {
            failpoint::reach_partly(Step::StopFlow, nr).await?;
            let own: Vec<&Flow> =
                self.flows.iter().filter(|f| f.shard_on(self.to()) == shard).collect();
            subscription::set_enabled(&session, &own, false).await?;
        }
        // An idle apply worker looks once a second whether it is wanted still; a
        // change that arrives makes it look now.
        marker::send(self.links, self.flows).await?;
        for (shard, session) in self.links.sessions_at_ends(self.from()).await? {
            let own: Vec<&Flow> =
                self.flows.iter().filter(|f| f.shard_on(self.from()) == shard).collect();
            subscription::wait_until_idle(&session, &own).await?;
        }
        self.done().await?;

        self.begin(Step::StartFlow).await?;
        for (nr, (shard, session)) in
            self.links.sessions_at_ends(self.from()).await?.into_iter().enumerate()
        {
            failpoint::reach_partly(Step::StartFlow, nr).await?;
            let own: Vec<&Flow> =
                self.opposite.iter().filter(|f| f.shard_on(self.from()) == shard).collect();
            subscription::set_enabled(&session, &own, true).await?;
        }
        self.done().await?;
        transaction(|| {
            cutover::succeed(self.id, pause)?;
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
    /// The flag says so as soon as every shard has been asked, also where one did
    /// not answer.
    ///
    /// # Errors
    /// The servers'; it has to be repeated then.
    pub async fn undo(&self) -> Result<()> {
        // A latch that was never touched needs no opening.
        let opened = match self.at.get() >= Step::Latch {
            true => fence::open_latch(self.links, self.from()).await,
            false => Ok(()),
        };
        transaction(|| traffic::set_state(self.traffic, "open"))?;
        opened
    }

    fn note_dry_run(&self, expected: Duration) -> Result<()> {
        let pause = milliseconds(expected);
        transaction(|| {
            cutover::succeed(self.id, Some(pause))?;
            event::write(
                Some(self.task_id),
                event::Severity::Info,
                "dry_run",
                &format!("all checks passed; a switch would hold writers for about {pause:.0} ms"),
                serde_json::json!({ "cutover": self.id, "pause_ms": pause }),
            )
        })
    }

    fn note_ended(&self, sessions: &[String]) -> Result<()> {
        if sessions.is_empty() {
            return Ok(());
        }
        transaction_async(|| {
            event::write(
                Some(self.task_id),
                event::Severity::Warning,
                "drained",
                &format!("{} sessions with open transactions were ended", sessions.len()),
                serde_json::json!({ "sessions": sessions }),
            )
        })
    }

    /// Waits until every registered pooler has acknowledged the pause.
    async fn wait_for_poolers(&self) -> Result<()> {
        let limit = self.bounds.poolers;
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

/// How far a switch got without an error.
enum Reached {
    /// Past its commit point.
    Commit {
        /// The new epoch.
        epoch: i64,
        /// When the pause was announced.
        began: Instant,
    },
    /// The end of a dry run.
    End {
        /// How long a switch would hold writers.
        expected: Duration,
    },
}

/// How fast servers and flows answered before the fence.
struct Answer {
    /// A marker's way to all subscribers.
    marker: Duration,
    /// A synchronous commit on each server of the new cluster.
    commit: Duration,
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
