//! Phases `copy` and `schema_post`: tables made fit to move, rows wave by wave,
//! then keys.
use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::try_join;

use crate::cluster::{Direction, Side};
use crate::copy;
use crate::cutover::fence;
use crate::error::{Error, Policy, Result};
use crate::pg::xact::transaction;
use crate::replication::filter::{self, FiltersOf};
use crate::replication::settle::{self, Identity, Settings};
use crate::replication::{guard, marker, staying};
use crate::schema;
use crate::state::event::{self, Severity};
use crate::state::table::{self, Table};
use crate::state::task::{self, Type};
use crate::state::traffic;
use crate::worker::coordinator::Shared;
use crate::worker::migration::Migration;
use crate::worker::watch::Watch;
use crate::worker::{arrivals, doubled, flowing, waves};

/// How often copied tables are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// How often the slots that wait for tables and their keys are looked at.
const WATCH: Duration = Duration::from_secs(1);

/// How long what is on its way may take.
const MARKER_TIMEOUT: Duration = Duration::from_secs(60);

/// Phase `copy`.
///
/// # Errors
/// Those of the stages; what was copied stays.
pub async fn run(migration: &Migration, shared: &Rc<Shared>, watch: &mut Watch) -> Result<()> {
    let id = migration.id();
    if migration.task.kind != Type::Reshard {
        schema::install_helpers(&migration.links).await?;
    }
    let filters = prepare(migration).await?;
    let work = async {
        // Once more where the last keys have found that a table is to be copied anew.
        loop {
            let copied = Cell::new(false);
            try_join!(
                rows(migration, shared, &filters, &copied),
                early_keys(migration, shared, &copied)
            )?;
            if is_copied(migration)? {
                return Ok(());
            }
        }
    };
    watching_slots(migration, watch, work).await?;
    shared.snapshots.borrow_mut().remove(&id);
    Ok(())
}

/// Whether all tables have their rows.
fn is_copied(migration: &Migration) -> Result<bool> {
    Ok(migration.tables()?.iter().all(Table::is_copied))
}

/// Copies wave after wave until all tables are copied; says so in `copied`.
async fn rows(
    migration: &Migration,
    shared: &Rc<Shared>,
    filters: &FiltersOf,
    copied: &Cell<bool>,
) -> Result<()> {
    let id = migration.id();
    loop {
        let tables = migration.tables()?;
        if tables.iter().all(Table::is_copied) {
            copied.set(true);
            return Ok(());
        }
        let current = waves::begin(migration, shared, &tables, filters).await?;
        let others = waves::other_nodes(migration, current)?;
        let is_lost = || waves::is_snapshot_lost(shared, id);
        match copy::run(id, current, migration.links.node(), &others, is_lost).await? {
            copy::Finished::Copied => {}
            copy::Finished::SnapshotLost => {
                waves::lose_snapshot(migration, shared, current)?;
            }
            copy::Finished::Rewritten(_) => {
                waves::note(id, "tables have changed while they were copied, and are copied anew")?;
                waves::lose_snapshot(migration, shared, current)?;
            }
        }
    }
}

/// Builds keys and indexes of each table as soon as it is copied, while others
/// still are; what is missed is built in phase `schema_post`. A wave that has all
/// of them begins to flow, so that its slots don't keep WAL until the last wave
/// is copied.
async fn early_keys(migration: &Migration, shared: &Shared, copied: &Cell<bool>) -> Result<()> {
    if migration.task.kind != Type::Reshard {
        return Ok(());
    }
    let id = migration.id();
    let destination = migration.links.cluster(Side::Destination);
    let nodes = migration.links.cluster(Side::Source).size();
    let stage = schema::Stage::open_beside_copy(id, destination, nodes).await?;
    let mut begun = BTreeSet::new();
    let mut flowing = BTreeSet::new();
    let mut building = FuturesUnordered::new();
    loop {
        let last = copied.get();
        let tables = migration.tables()?;
        for table in tables.iter().filter(|t| t.status == "copied") {
            if begun.insert(table.table_id) {
                let (stage, table) = (&stage, table.clone());
                building.push(async move {
                    let built = stage.run_table(&table.schema_name, &table.table_name).await;
                    (table, built)
                });
            }
        }
        if last && building.is_empty() {
            return Ok(());
        }
        for wave in waves::complete(&tables) {
            if !last && flowing.insert(wave) {
                flowing::begin_wave(migration, wave, &tables).await?;
            }
        }
        // Not at every table that is built: there may be thousands to list again.
        let look = tokio::time::sleep(LOOK);
        tokio::pin!(look);
        loop {
            tokio::select! {
                Some((table, built)) = building.next() => match built {
                    Ok(()) => transaction(|| table::set_ready(id, table.table_id))?,
                    Err(error) => {
                        doubled::copy_anew(migration, shared, &table, error)?;
                        begun.remove(&table.table_id);
                    }
                },
                () = &mut look => break,
            }
            if building.is_empty() && copied.get() {
                break;
            }
        }
    }
}

/// Does the work and shows meanwhile what the slots keep.
async fn watching_slots(
    migration: &Migration,
    watch: &mut Watch,
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    tokio::select! {
        done = work => done,
        lost = watch_slots(migration, watch) => lost.map(|never| match never {}),
    }
}

/// Shows what the slots keep until they are subscribed to. One that has lost WAL
/// ends the work: what was written meanwhile could not be brought to the shard any more.
async fn watch_slots(migration: &Migration, watch: &mut Watch) -> Result<Infallible> {
    loop {
        match watch.look(migration).await {
            Ok(_) => {}
            // The copy itself says what is wrong with a server, and tries again.
            Err(error) if error.policy() == Policy::Retry => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Lists the tables and makes them fit to move, on both clusters. Repeatable.
///
/// # Errors
/// The servers'.
pub async fn prepare(migration: &Migration) -> Result<FiltersOf> {
    let (id, links) = (migration.id(), &migration.links);
    transaction(|| {
        traffic::ensure(&migration.task.source)?;
        copy::plan(id, &migration.task.publication, &migration.task.destination)?;
        let source = links.cluster(Side::Source);
        if source.size() > 1 {
            copy::plan_source_keys(id, &migration.task.source)?;
            copy::assign_nodes(id, source.numbers())?;
        }
        Ok(())
    })?;
    let tables = migration.tables()?;

    // The shards first: shut from the start.
    fence::shut_latch(links, Side::Destination).await?;
    let place = migration.place(Side::Destination);
    let shards = links.sessions(Side::Destination).await?;
    if migration.task.kind != Type::Replicate {
        copy::empty_extension_tables(&shards, &tables).await?;
    }
    try_join_all(shards.iter().map(|(_, session)| async {
        settle::tables(session, &tables, |_, _| Settings {
            place,
            filter_columns: Vec::new(),
            identity: Identity::Leave,
            grows: false,
        })
        .await?;
        settle::fence(session, &tables, place).await
    }))
    .await?;

    let place = migration.place(Side::Source);
    let nodes = links.sessions(Side::Source).await?;
    let (to, destination) = (Side::Destination, links.cluster(Side::Destination));
    let filters = try_join_all(nodes.iter().map(|(node, session)| {
        let tables = &tables;
        async move {
            settle::tables(session, tables, |_, table| Settings {
                place,
                filter_columns: migration.filter_columns(table),
                identity: Identity::Fit(migration.task.options.replica_identity),
                grows: migration.grows(),
            })
            .await?;
            settle::fence(session, tables, place).await?;
            // Before the snapshot: what it does not see is refused by the guard.
            guard::put(session, links, Side::Source, *node, tables).await?;
            let filters = filter::filters(session, Side::Source, tables, to, destination).await?;
            Ok::<_, Error>((*node, filters))
        }
    }))
    .await?;
    if links.cluster(Side::Destination).staying.receive {
        staying::guard(links, Side::Source, &tables).await?;
        arrivals::refuse_strays(migration, &tables).await?;
    }
    Ok(filters.into_iter().collect())
}

/// Phase `schema_post`: keys, indexes and the rest, or what replication needs of
/// them where the user brings the rest himself. False where tables are to be copied anew.
///
/// # Errors
/// Those of the schema stage; a slot that has lost WAL.
pub async fn keys(migration: &Migration, shared: &Rc<Shared>, watch: &mut Watch) -> Result<bool> {
    watching_slots(migration, watch, build_keys(migration, shared)).await?;
    transaction(|| table::set_status(migration.id(), "copied", "ready"))?;
    is_copied(migration)
}

async fn build_keys(migration: &Migration, shared: &Shared) -> Result<()> {
    let links = &migration.links;
    let (source, destination) = (links.cluster(Side::Source), links.cluster(Side::Destination));
    match migration.task.kind {
        Type::Reshard => {
            let stage = schema::Stage::open(migration.id(), destination).await?;
            match has_one_snapshot(migration)? {
                true => stage.run_phase(schema::Phase::Post).await?,
                false => stage.run_post_unchecked().await?,
            }
        }
        Type::CopyData => {
            schema::plan(&migration.task, source, destination).await?;
            let stage = schema::Stage::open(migration.id(), destination).await?;
            for table in migration.tables()? {
                let built = stage.run_identity_keys(&table.schema_name, &table.table_name).await;
                if let Err(error) = built {
                    doubled::copy_anew(migration, shared, &table, error)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether all rows were copied as they were at one moment.
fn has_one_snapshot(migration: &Migration) -> Result<bool> {
    let flows = migration.flows(Direction::Forward)?;
    let is_one_wave = flows.iter().all(|f| Some(f.wave) == flows.first().map(|first| first.wave));
    Ok(is_one_wave && migration.links.cluster(Side::Source).size() == 1)
}

/// Checks the foreign keys that [`keys`] has left, once changes flow, and makes what comes
/// after them. A row may come by another flow than the one that it refers to, and before it:
/// then it is tried again behind a marker on all flows, as long as it takes. The task says
/// what it waits for.
///
/// # Errors
/// The shards', but for rows that refer to none; a slot that has lost WAL.
pub async fn check_foreign_keys(migration: &Migration, watch: &mut Watch) -> Result<()> {
    if migration.task.kind != Type::Reshard || has_one_snapshot(migration)? {
        return Ok(());
    }
    watching_slots(migration, watch, until_they_hold(migration)).await
}

async fn until_they_hold(migration: &Migration) -> Result<()> {
    let (id, flows) = (migration.id(), migration.flows(Direction::Forward)?);
    let destination = migration.links.cluster(Side::Destination);
    let mut noted = None;
    loop {
        let stage = schema::Stage::open(id, destination).await?;
        match stage.run_phase(schema::Phase::Post).await {
            Err(error) if error.sqlstate() == "23503" => {
                if noted.as_ref() != Some(&error.message) {
                    transaction(|| {
                        task::note_error(id, Some(&error))?;
                        event::write_error(id, Severity::Warning, "foreign_key", &error)
                    })?;
                    noted = Some(error.message);
                }
                tokio::time::sleep(WATCH).await;
                marker::round_trip(&migration.links, &flows, MARKER_TIMEOUT).await?;
            }
            // The next phase takes the error off the task.
            outcome => return outcome,
        }
    }
}
