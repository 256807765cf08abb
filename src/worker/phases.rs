//! The phases of a task: each runs to its end and names the next one. A phase
//! that is run again does only what is missing.
use std::rc::Rc;
use std::time::Instant;

use crate::copy;
use crate::cutover::sequences::Sequences;
use crate::error::{Error, Policy, Result};
use crate::pg::xact::transaction;
use crate::schema;
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::state::traffic as flag;
use crate::state::{self, event, mirror, table};
use crate::worker::auto::Auto;
use crate::worker::coordinator::Shared;
use crate::worker::migration::Migration;
use crate::worker::watch::Watch;
use crate::worker::{copying, ending, flowing, verifying};

/// What comes after a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The task is looked at again.
    Look,
    /// A cutover that nobody had to ask for.
    CutOver,
}

/// Runs the present phase of a task.
///
/// # Errors
/// Whatever stopped it; it can be run again.
pub async fn run(task: Task, shared: &Rc<Shared>, auto: &Auto, watch: &mut Watch) -> Result<Next> {
    let id = task.id;
    if task.status == Status::Pending {
        transaction(|| {
            task::set_phase(id, task.phase)?;
            match task.parent_id {
                Some(_) => Ok(()),
                None => mirror::begin(&task),
            }
        })?;
    }
    match task.kind {
        Type::SchemaSync => return schema_sync(&task).await.map(|()| Next::Look),
        Type::Verify => return verifying::run(&task).await.map(|()| Next::Look),
        _ => {}
    }
    let migration = Migration::load(task)?;
    let began = Instant::now();
    let outcome = migrate(&migration, shared, auto, watch).await;
    let is_seen = watch.has_looked_since(began) || !has_flows(migration.task.phase);
    match outcome {
        Err(error) if !is_seen => Err(look_at_others(&migration, watch, error).await),
        outcome => outcome,
    }
}

/// Whether a phase has flows that may be looked at.
fn has_flows(phase: Phase) -> bool {
    phase.is_flowing() || matches!(phase, Phase::Copy | Phase::SchemaPost | Phase::CatchUp)
}

/// Flows go on, or lose WAL, while a phase can't: they are looked at all the same. The
/// error, or that of a flow that can't go on.
async fn look_at_others(migration: &Migration, watch: &mut Watch, error: Error) -> Error {
    match watch.look(migration).await {
        Err(worse) if worse.policy() == Policy::Fail => worse,
        _ => error,
    }
}

async fn migrate(
    migration: &Migration,
    shared: &Rc<Shared>,
    auto: &Auto,
    watch: &mut Watch,
) -> Result<Next> {
    let (id, phase) = (migration.id(), migration.task.phase);
    if matches!(phase, Phase::SchemaPre | Phase::Copy | Phase::CatchUp) {
        migration.join_nodes().await?;
    }
    let next = match phase {
        Phase::SchemaPre => {
            transaction(|| flag::ensure(&migration.task.source))?;
            schema_pre(migration).await?;
            Phase::Copy
        }
        Phase::Copy => {
            copying::run(migration, shared, watch).await?;
            Phase::SchemaPost
        }
        Phase::SchemaPost => match copying::keys(migration, shared, watch).await? {
            true => Phase::CatchUp,
            false => Phase::Copy,
        },
        Phase::CatchUp => {
            flowing::catch_up(migration, watch).await?;
            copying::check_foreign_keys(migration, watch).await?;
            Phase::Replicating
        }
        // These end with an intent, or with a cutover that nobody had to ask for.
        Phase::Replicating | Phase::Switched | Phase::RolledBack => {
            return flowing::watch(migration, auto, watch).await.map(|()| Next::CutOver);
        }
        // The driver ends a cutover before it looks at phases.
        Phase::Cutover => flowing::phase_by_flag(&migration.task)?,
        // It was begun, and something was in its way.
        Phase::Complete => {
            return ending::complete(migration.task.clone()).await.map(|()| Next::Look);
        }
        Phase::Verify => {
            return transaction(|| task::finish(id, Status::Succeeded)).map(|()| Next::Look);
        }
    };
    transaction(|| {
        task::set_phase(id, next)?;
        event::info(id, "phase", &format!("phase {} begins", next.as_str()))
    })?;
    Ok(Next::Look)
}

async fn schema_pre(migration: &Migration) -> Result<()> {
    let destination = migration.links.cluster(crate::cluster::Side::Destination);
    schema::install_helpers(&migration.links).await?;
    let source = migration.links.cluster(crate::cluster::Side::Source);
    schema::plan(&migration.task, source, destination).await?;
    schema::Stage::open(migration.id(), destination).await?.run_phase(schema::Phase::Pre).await
}

/// `reshard_schema_sync()`: one phase of the schema.
async fn schema_sync(task: &Task) -> Result<()> {
    let migration = Migration::load(task.clone())?;
    let source = migration.links.cluster(crate::cluster::Side::Source);
    let destination = migration.links.cluster(crate::cluster::Side::Destination);
    let phase = schema::Phase::parse(task.options.schema_phase.as_deref().unwrap_or("pre"))?;
    if phase == schema::Phase::Cutover {
        sequences(&migration).await?;
        return transaction(|| task::finish(task.id, Status::Succeeded));
    }
    schema::plan(task, source, destination).await?;
    if !task.options.dry_run {
        schema::install_helpers(&migration.links).await?;
        schema::Stage::open(task.id, destination).await?.run_phase(phase).await?;
    }
    transaction(|| task::finish(task.id, Status::Succeeded))
}

/// Phase `cutover` of the schema: the shards' sequences go on where the source's are.
async fn sequences(migration: &Migration) -> Result<()> {
    let task = &migration.task;
    // Listed to know which tables are sharded, and forgotten again.
    let tables = transaction(|| {
        copy::plan(task.id, &task.publication, &task.destination)?;
        let tables = table::load(task.id)?;
        table::forget_others(task.id, 0, 0)?;
        Ok(tables)
    })?;
    let sequences = Sequences::load(&migration.links, &tables, task.options.sequences, &[]).await?;
    let shards = sequences.settings(&migration.links).await?;
    transaction(|| {
        shards.iter().try_for_each(|(shard, settings)| {
            state::schema::insert_sequences(task.id, *shard, settings)
        })
    })?;
    if task.options.dry_run {
        return Ok(());
    }
    sequences.set(&migration.links, &shards).await?;
    transaction(|| state::schema::all_succeeded(task.id))
}
