//! Switching traffic, as asked for: which way, along which flows, and what the
//! task looks like before and after.
use std::cell::Cell;
use std::time::Duration;

use crate::cluster::{Direction, Side};
use crate::cutover::bounds::Bounds;
use crate::cutover::recover as recovery;
use crate::cutover::sequences::Sequences;
use crate::cutover::switch::{Extent, Switch};
use crate::cutover::Step;
use crate::error::{Error, Result};
use crate::pg::xact::transaction;
use crate::replication::{guard, handoff, marker, settle, staying, trial};
use crate::schema;
use crate::state::flow::{self, Flow};
use crate::state::options::Ddl;
use crate::state::staying::{self as kept, StayingSequence};
use crate::state::table::Table;
use crate::state::task::{self, NewTask, Phase, Status, Task, Type};
use crate::state::{cutover as record, traffic as flag};
use crate::worker::flowing;
use crate::worker::migration::Migration;

/// How long DDL that was replayed may take on the shards when a cutover begins.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the destination active.
///
/// # Errors
/// 55000 where the migration isn't ready; whatever stopped the cutover.
pub async fn cut_over(task: Task, extent: Extent) -> Result<()> {
    switch(task, Direction::Forward, extent).await
}

/// Makes the source active again.
///
/// # Errors
/// As [`cut_over`].
pub async fn roll_back(task: Task, extent: Extent) -> Result<()> {
    switch(task, Direction::Reverse, extent).await
}

async fn switch(task: Task, direction: Direction, extent: Extent) -> Result<()> {
    let (id, before) = (task.id, task.phase);
    let possible = match direction {
        Direction::Forward => matches!(before, Phase::Replicating | Phase::RolledBack),
        Direction::Reverse => before == Phase::Switched,
    };
    if !possible {
        let already = match direction {
            Direction::Forward => before == Phase::Switched,
            Direction::Reverse => matches!(before, Phase::Replicating | Phase::RolledBack),
        };
        if already {
            return Ok(());
        }
        return Err(Error::state(format!(
            "task {id} can't be switched in phase {}",
            before.as_str()
        ))
        .hint(format!("Wait for it: SELECT reshard_wait({id}, 'replicating');")));
    }
    let migration = Migration::load(task)?;
    let (child, cutover) = transaction(|| {
        task::set_phase(id, Phase::Cutover)?;
        let from = &migration.links.cluster(direction.publisher()).name;
        let to = &migration.links.cluster(direction.subscriber()).name;
        let first = Step::Prepare.as_str();
        let cutover = record::begin(id, direction, from, to, extent.is_dry(), first)?;
        Ok((begin_child(&migration, direction)?, cutover))
    })?;
    let outcome = match Course::prepare(&migration, direction, extent).await {
        Ok(course) => course.switch(&migration, cutover, extent).run().await.map(drop),
        Err(error) => transaction(|| record::abort(cutover, &error)).and(Err(error)),
    };
    transaction(|| match &outcome {
        Ok(()) => {
            if extent.is_dry() {
                task::set_phase(id, before)?;
            }
            task::finish(child, Status::Succeeded)
        }
        Err(error) => {
            task::fail(child, error)?;
            // One that was interrupted after its commit point is finished first.
            if record::latest(id)?.is_none_or(|c| c.status != "running") {
                task::set_phase(id, before)?;
                task::note_error(id, Some(error))?;
            }
            Ok(())
        }
    })?;
    outcome
}

/// What traffic moves along, and what moves with it.
struct Course {
    direction: Direction,
    flows: Vec<Flow>,
    opposite: Vec<Flow>,
    sequences: Sequences,
    staying: Vec<StayingSequence>,
    tables: Vec<Table>,
}

impl Course {
    /// Makes what a switch needs and what may take long: nobody is held.
    async fn prepare(migration: &Migration, direction: Direction, extent: Extent) -> Result<Self> {
        flowing::redirect(migration).await?;
        refuse_drift(migration, direction).await?;
        let tables = migration.tables()?;
        if migration.flows(Direction::Reverse)?.is_empty() {
            let flows = migration.make_flows(Direction::Reverse, 1);
            transaction(|| flow::insert(&flows))?;
        }
        fence_all(migration, &tables).await?;
        let (id, policy) = (migration.id(), migration.task.options.sequences);
        let goes_back = direction == Direction::Reverse && !extent.is_dry();
        let spreads = migration.links.cluster(Side::Source).size() > 1 && !migration.has_staying();
        if goes_back && spreads {
            Sequences::spread_source(&migration.links, &tables, policy).await?;
        }
        let kept = match direction {
            Direction::Forward => Vec::new(),
            Direction::Reverse => transaction(|| kept::load(id))?,
        };
        let sequences = Sequences::load(&migration.links, &tables, policy, &kept).await?;
        let staying = match direction {
            Direction::Forward => sequences.staying(&migration.links).await?,
            Direction::Reverse => kept,
        };
        let flows = migration.flows(direction)?;
        let opposite = migration.flows(direction.opposite())?;
        flowing::set_live(migration, direction.opposite(), false).await?;
        let (links, timeout) = (&migration.links, Bounds::now(false).hold);
        match direction {
            Direction::Forward => {
                handoff::prepare_reverse(links, &opposite, &tables, timeout).await?;
                trial::run(links, &opposite).await?;
            }
            Direction::Reverse => handoff::renew_slots(links, &opposite, timeout).await?,
        }
        // A task that was stopped has its flow disabled until it watches again.
        flowing::set_live(migration, direction, true).await?;
        Ok(Self { direction, flows, opposite, sequences, staying, tables })
    }

    /// For one that was interrupted: nothing is made, no sequence is set.
    fn load(migration: &Migration, direction: Direction) -> Result<Self> {
        let flows = migration.flows(direction)?;
        let opposite = migration.flows(direction.opposite())?;
        let (sequences, staying, tables) = (Sequences::none(), Vec::new(), Vec::new());
        Ok(Self { direction, flows, opposite, sequences, staying, tables })
    }

    fn switch<'a>(&'a self, migration: &'a Migration, id: i64, extent: Extent) -> Switch<'a> {
        Switch {
            links: &migration.links,
            task_id: migration.id(),
            id,
            traffic: &migration.task.source,
            direction: self.direction,
            flows: &self.flows,
            opposite: &self.opposite,
            sequences: &self.sequences,
            staying: &self.staying,
            tables: &self.tables,
            publication: &migration.task.publication,
            extent,
            bounds: Bounds::now(extent.is_dry()),
            at: Cell::new(Step::Prepare),
        }
    }
}

/// Puts the fence and the placement's guard back where somebody took them off, or disabled
/// them.
async fn fence_all(migration: &Migration, tables: &[Table]) -> Result<()> {
    for side in [Side::Source, Side::Destination] {
        let place = migration.place(side);
        for (shard, session) in migration.links.sessions(side).await? {
            settle::fence(&session, tables, place).await?;
            guard::put(&session, &migration.links, side, shard, tables).await?;
        }
    }
    if migration.links.cluster(Side::Destination).staying.receive {
        staying::guard(&migration.links, Side::Source, tables).await?;
    }
    staying::guard(&migration.links, Side::Destination, tables).await
}

/// Refuses to switch to shards whose schema is no longer the source's, or back to a source
/// that lacks columns of the shards.
async fn refuse_drift(migration: &Migration, direction: Direction) -> Result<()> {
    let source = migration.links.cluster(Side::Source);
    let destination = migration.links.cluster(Side::Destination);
    if direction == Direction::Reverse {
        return schema::refuse_other_columns(&migration.task, source, destination).await;
    }
    if migration.task.options.ddl == Ddl::Replay {
        // What has been written down by now has been done on the shards after this.
        let flows = migration.flows(Direction::Forward)?;
        flowing::set_live(migration, Direction::Forward, true).await?;
        marker::round_trip(&migration.links, &flows, REPLAY_TIMEOUT).await?;
    }
    schema::refuse_drift(&migration.task, source, destination).await
}

/// Ends a cutover that a crash interrupted; true where there was one.
///
/// # Errors
/// A server can't be reached; it is tried again then.
pub async fn recover(task: &Task) -> Result<bool> {
    let latest = transaction(|| record::latest(task.id))?;
    let Some(interrupted) = latest.filter(|c| c.status == "running") else { return Ok(false) };
    let migration = Migration::load(task.clone())?;
    let course = Course::load(&migration, interrupted.direction)?;
    let extent = if interrupted.dry_run { Extent::DryRun } else { Extent::Whole };
    let switch = course.switch(&migration, interrupted.id, extent);
    recovery::run(&switch, &interrupted).await?;
    let succeeded =
        transaction(|| flag::load(&task.source))?.active_cluster == interrupted.to_cluster;
    settle(task, if succeeded { Status::Succeeded } else { Status::Cancelled })?;
    Ok(true)
}

/// Takes back the phase of a cutover that ended before it wrote its first step.
///
/// # Errors
/// SPI's.
pub fn forget_unbegun(task: Task) -> Result<()> {
    settle(&task, Status::Cancelled)
}

/// Ends the children that stand for cutovers, and goes to the phase that the flag
/// stands for.
fn settle(task: &Task, children: Status) -> Result<()> {
    let phase = flowing::phase_by_flag(task)?;
    transaction(|| {
        for child in task::children(task.id, Type::Cutover)? {
            if !child.status.is_final() {
                task::finish(child.id, children)?;
            }
        }
        task::set_phase(task.id, phase)
    })
}

fn begin_child(migration: &Migration, direction: Direction) -> Result<i64> {
    let task = &migration.task;
    let (source, destination) = match direction {
        Direction::Forward => (&task.source, &task.destination),
        Direction::Reverse => (&task.destination, &task.source),
    };
    let id = task::insert(&NewTask {
        kind: Type::Cutover,
        parent_id: Some(task.id),
        phase: Phase::Cutover,
        source,
        destination,
        publication: &task.publication,
        options: crate::state::options::Options::default(),
    })?;
    task::set_status(id, Status::Running)?;
    Ok(id)
}
