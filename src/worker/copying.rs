//! Phases `copy` and `schema_post`: tables made fit to move, waves of snapshot
//! and slots, rows, then keys.
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use futures::try_join;

use crate::cluster::{Direction, ShardNo, Side};
use crate::copy;
use crate::cutover::fence;
use crate::error::{Error, Result};
use crate::pg::xact::transaction;
use crate::remote::{connect, Connection, Purpose};
use crate::replication::publication::{self, Parents};
use crate::replication::settle::{self, Identity, Settings};
use crate::replication::{cleanup, slot};
use crate::schema;
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow};
use crate::state::table::{self, Table};
use crate::state::task::{self, Type};
use crate::state::{cluster, traffic, wave};
use crate::worker::coordinator::{Shared, Snapshot};
use crate::worker::migration::Migration;

/// How often copied tables are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Waves that are begun before a copy is given up: each one means that a
/// snapshot was lost or a table rewritten.
const WAVES: i32 = 20;

/// Phase `copy`.
///
/// # Errors
/// Those of the stages; what was copied stays.
pub async fn run(migration: &Migration, shared: &Rc<Shared>) -> Result<()> {
    let id = migration.id();
    if migration.task.kind != Type::Reshard {
        for shard in &migration.links.cluster(Side::Destination).shards {
            schema::install_helpers(shard).await?;
        }
    }
    let parents = prepare(migration).await?;
    let copied = Cell::new(false);
    let (rows, keys) = (rows(migration, shared, &parents, &copied), early_keys(migration, &copied));
    try_join!(rows, keys)?;
    shared.snapshots.borrow_mut().remove(&id);
    Ok(())
}

/// Copies wave after wave until all tables are copied; says so in `copied`.
async fn rows(
    migration: &Migration,
    shared: &Rc<Shared>,
    parents: &Parents,
    copied: &Cell<bool>,
) -> Result<()> {
    let id = migration.id();
    loop {
        let tables = migration.tables()?;
        if tables.iter().all(Table::is_copied) {
            copied.set(true);
            return Ok(());
        }
        let current = begin_wave(migration, shared, &tables, parents).await?;
        match copy::run(id, current).await? {
            copy::Finished::Copied => {}
            copy::Finished::SnapshotLost => {
                lose_snapshot(migration, shared, current)?;
            }
            copy::Finished::Rewritten(_) => {
                note_wave(id, "tables were truncated or rewritten while they were copied")?;
                lose_snapshot(migration, shared, current)?;
            }
        }
    }
}

/// Builds keys and indexes of each table as soon as it is copied, while others
/// still are; what is missed is built in phase `schema_post`.
async fn early_keys(migration: &Migration, copied: &Cell<bool>) -> Result<()> {
    if migration.task.kind != Type::Reshard {
        return Ok(());
    }
    let destination = migration.links.cluster(Side::Destination);
    let stage = schema::Stage::open(migration.id(), destination).await?;
    let mut begun = BTreeSet::new();
    let mut building = FuturesUnordered::new();
    loop {
        let last = copied.get();
        for table in migration.tables()?.into_iter().filter(|t| t.status == "copied") {
            if begun.insert(table.table_id) {
                let stage = &stage;
                building.push(async move {
                    stage.run_table(&table.schema_name, &table.table_name).await
                });
            }
        }
        if last && building.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(built) = building.next() => built?,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Lists the tables and makes them fit to move, on both clusters. Repeatable.
///
/// # Errors
/// The servers'.
pub async fn prepare(migration: &Migration) -> Result<Parents> {
    let (id, links) = (migration.id(), &migration.links);
    transaction(|| {
        traffic::ensure(&migration.task.source)?;
        let rules = cluster::rules(&migration.task.destination)?;
        copy::plan(id, &migration.task.publication, &rules)
    })?;
    let tables = migration.tables()?;

    // The shards first: shut from the start.
    fence::shut_latch(links, Side::Destination).await?;
    let name = &links.cluster(Side::Destination).name;
    for (_, session) in links.sessions(Side::Destination).await? {
        let settings = Settings {
            cluster: name,
            filter_column: None,
            identity: Identity::Leave,
            has_extension: false,
        };
        for table in &tables {
            settle::table(&session, table, &settings).await?;
        }
        settle::fence_parents(&session, &tables, name, false).await?;
    }

    let filtered = links.cluster(Side::Destination).size() > 1;
    let name = &links.cluster(Side::Source).name;
    let mut parents = Parents::new();
    for (_, session) in links.sessions(Side::Source).await? {
        for table in &tables {
            let settings = Settings {
                cluster: name,
                filter_column: table.key_column.as_deref().filter(|_| filtered),
                identity: Identity::Fit(migration.task.options.replica_identity),
                has_extension: true,
            };
            settle::table(&session, table, &settings).await?;
        }
        settle::fence_parents(&session, &tables, name, true).await?;
        if filtered {
            parents = publication::placement_parents(&session, &tables).await?;
        }
    }
    Ok(parents)
}

/// The wave to copy now: the one whose snapshot we hold, or a new one.
async fn begin_wave(
    migration: &Migration,
    shared: &Rc<Shared>,
    tables: &[Table],
    parents: &Parents,
) -> Result<i32> {
    let id = migration.id();
    let latest = transaction(|| wave::latest(id))?;
    if let Some(latest) = &latest {
        let snapshots = shared.snapshots.borrow();
        let held = snapshots.get(&id).filter(|s| s.wave == latest.wave && !s.session.is_closed());
        if held.is_some() && latest.snapshot.is_some() {
            // Whatever stopped these parts, somebody wants them to be tried again.
            transaction(|| copy::reopen_failed(id))?;
            return Ok(latest.wave);
        }
    }
    shared.snapshots.borrow_mut().remove(&id);
    let number = latest.as_ref().map_or(1, |w| w.wave + 1);
    if number > WAVES {
        return Err(Error::state(format!("the copy was begun anew {WAVES} times"))
            .detail("Each time the snapshot was lost or a table was rewritten.")
            .hint("See reshard.events for the causes."));
    }
    if latest.is_some() {
        abandon_waves(migration, tables, number).await?;
    }
    transaction(|| wave::begin(id, number))?;
    let current: Vec<Table> = migration.tables()?.into_iter().filter(|t| !t.is_copied()).collect();
    let flows = migration.make_flows(Direction::Forward, number);
    transaction(|| flow::insert(&flows))?;
    publish(migration, &flows, &current, parents).await?;
    take_snapshot(migration, shared, number, &flows).await?;
    transaction(|| copy::plan_parts(id, number))?;
    Ok(number)
}

/// Makes the publications of a wave's flows.
///
/// # Errors
/// The servers'.
pub async fn publish(
    migration: &Migration,
    flows: &[Flow],
    tables: &[Table],
    parents: &Parents,
) -> Result<()> {
    let subscribers = migration.links.cluster(Side::Destination).size();
    for flow in flows {
        let session = migration.links.session(Side::Source, flow.shard_on(Side::Source)).await?;
        let subscriber = flow.shard_on(Side::Destination);
        publication::create(&session, flow, tables, parents, subscriber, subscribers).await?;
    }
    Ok(())
}

/// The first slot with its snapshot, then copies of it for the other shards.
async fn take_snapshot(
    migration: &Migration,
    shared: &Rc<Shared>,
    number: i32,
    flows: &[Flow],
) -> Result<()> {
    let id = migration.id();
    let Some((first, others)) = flows.split_first() else {
        return Err(Error::internal("a wave has no flow"));
    };
    let endpoint = migration.links.endpoint(Side::Source, ShardNo(first.source_shard))?;
    let control = migration.links.session(Side::Source, ShardNo(first.source_shard)).await?;
    let blocked = |who: &str| note_blocked(id, who);
    let exported =
        slot::create_with_snapshot(endpoint, &control, &first.slot_name, blocked).await?;
    for other in others {
        slot::copy(&control, &first.slot_name, &other.slot_name).await?;
    }
    transaction(|| {
        wave::set_snapshot(id, number, &exported.snapshot, &exported.lsn)?;
        task::note_error(id, None)
    })?;
    shared.snapshots.borrow_mut().insert(id, Snapshot { wave: number, session: exported.session });
    Ok(())
}

/// Says on the task what the snapshot waits for.
fn note_blocked(id: i64, who: &str) {
    let error = Error::state("the snapshot waits for open transactions to end")
        .detail(format!("They were open when it was asked for: {who}."))
        .hint("End them: SELECT pg_terminate_backend(pid), or ROLLBACK PREPARED.");
    if let Err(lost) = transaction(|| task::note_error(id, Some(&error))) {
        pgrx::warning!("reshard could not note a wait: {}", lost.one_line());
    }
}

/// Takes unfinished tables out of former waves and empties them on the shards. A
/// wave that has nothing left loses its slots, so that they keep no WAL.
async fn abandon_waves(migration: &Migration, tables: &[Table], next: i32) -> Result<()> {
    let (id, links) = (migration.id(), &migration.links);
    let unfinished: Vec<&Table> = tables.iter().filter(|t| !t.is_copied()).collect();
    note_wave(id, &format!("wave {next} begins: {} tables are copied anew", unfinished.len()))?;
    for former in 1..next {
        let finished = tables.iter().any(|t| t.wave == former && t.is_copied());
        let all = transaction(|| flow::load_direction(id, Direction::Forward))?;
        let flows: Vec<Flow> = all.into_iter().filter(|f| f.wave == former).collect();
        for (shard, session) in links.sessions(Side::Source).await? {
            let own: Vec<Flow> =
                flows.iter().filter(|f| f.shard_on(Side::Source) == shard).cloned().collect();
            if !finished {
                slot::drop_all(&session, &own).await?;
            }
            for flow in &own {
                match finished {
                    true => {
                        publication::drop_tables(&session, &flow.publication_name, &unfinished)
                            .await?;
                    }
                    false => {
                        cleanup::drop_publications(&session, &flow.publication_name).await?;
                    }
                }
            }
        }
        if !finished {
            transaction(|| flow::delete_wave(id, former))?;
        }
    }
    let mut shards: Vec<Connection> = Vec::new();
    for endpoint in &links.cluster(Side::Destination).shards {
        shards.push(connect(endpoint, Purpose::Copy).await?);
    }
    for table in unfinished {
        copy::reset_table(id, table.table_id, next, &shards).await?;
    }
    Ok(())
}

fn lose_snapshot(migration: &Migration, shared: &Rc<Shared>, number: i32) -> Result<()> {
    shared.snapshots.borrow_mut().remove(&migration.id());
    transaction(|| wave::snapshot_gone(migration.id(), number))
}

fn note_wave(id: i64, message: &str) -> Result<()> {
    transaction(|| {
        event::write(Some(id), Severity::Warning, "wave", message, serde_json::json!({}))
    })
}

/// Phase `schema_post`: keys, indexes and the rest, or what replication needs of
/// them where the user brings the rest himself.
///
/// # Errors
/// Those of the schema stage.
pub async fn keys(migration: &Migration) -> Result<()> {
    let links = &migration.links;
    let (source, destination) = (links.cluster(Side::Source), links.cluster(Side::Destination));
    match migration.task.kind {
        Type::Reshard => {
            let stage = schema::Stage::open(migration.id(), destination).await?;
            stage.run_phase(schema::Phase::Post).await?;
        }
        Type::CopyData => {
            schema::plan(&migration.task, source, destination).await?;
            let stage = schema::Stage::open(migration.id(), destination).await?;
            let names: Vec<(String, String)> =
                migration.tables()?.into_iter().map(|t| (t.schema_name, t.table_name)).collect();
            stage.run_identity_keys(&names).await?;
        }
        _ => {}
    }
    transaction(|| table::set_status(migration.id(), "copied", "ready"))
}
