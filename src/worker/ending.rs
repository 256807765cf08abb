//! How a task ends: completed, cancelled, or stopped for a while.
use std::rc::Rc;

use futures::future::join_all;

use crate::cluster::Side;
use crate::copy;
use crate::cutover::fence;
use crate::error::{Context, Error, Result};
use crate::pg::xact::transaction;
use crate::remote::{end_sessions, Connection, Purpose};
use crate::replication::{cleanup, join, settle, subscription};
use crate::schema;
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow};
use crate::state::task::{self, Phase, Status, Task, Type};
use crate::state::wave;
use crate::worker::coordinator::Shared;
use crate::worker::migration::Migration;
use crate::worker::{driver, flowing, removal, verifying};

/// `reshard_complete()`: the destination stays active, the way back is given up.
/// The old cluster stays fenced.
///
/// # Errors
/// 55000 before the switch; the servers', and then it can be repeated.
pub async fn complete(task: Task) -> Result<()> {
    let id = task.id;
    if !task.phase.is_after_switch() {
        return Err(Error::state(format!(
            "task {id} can't be completed in phase {}",
            task.phase.as_str()
        ))
        .hint(format!(
            "Completing gives up the old cluster: switch first with SELECT reshard_cutover({id}), \
             or end the migration with SELECT reshard_cancel({id})."
        )));
    }
    let begins = task.phase != Phase::Complete;
    let migration = Migration::load(task)?;
    transaction(|| task::set_phase(id, Phase::Complete))?;
    verifying::end_all(id).await?;
    if migration.has_staying() {
        if begins {
            // The phase goes on: what it does may take long, and may be stopped.
            return Ok(());
        }
        // Nothing comes back any more, and nothing that is deleted goes anywhere.
        cleanup::remove_flows(&migration.links, &migration.prefix()).await?;
        removal::run(&migration, Side::Destination).await?;
    }
    clean(&migration, true).await?;
    transaction(|| {
        task::finish(id, Status::Succeeded)?;
        event::info(id, "completed", "the migration is complete; the old cluster stays fenced")
    })
}

/// `reshard_cancel()`: from here on the task does nothing but [end](cancel).
///
/// # Errors
/// 55000 after the switch.
pub fn begin_cancel(task: &Task) -> Result<()> {
    let id = task.id;
    if task.phase.is_after_switch() {
        return Err(Error::state(format!("task {id} can't be cancelled after the switch")).hint(
            format!(
                "Go back with SELECT reshard_rollback({id}), or end it with SELECT \
                 reshard_complete({id})."
            ),
        ));
    }
    transaction(|| {
        task::begin_cancel(id)?;
        event::info(id, "cancelling", "the task was asked to end")
    })
}

/// Ends a task that was cancelled: the source stays active and nothing is left anywhere.
///
/// # Errors
/// The servers', and then it is to be repeated.
pub async fn cancel(task: Task, shared: &Rc<Shared>) -> Result<()> {
    let id = task.id;
    shared.snapshots.borrow_mut().remove(&id);
    if task.kind.is_migration() {
        verifying::end_all(id).await?;
        let migration = Migration::load(task)?;
        take_back_arrivals(&migration).await?;
        clean(&migration, false).await?;
        take_back(&migration).await?;
        flowing::open_source(&migration).await?;
    }
    transaction(|| {
        task::note_error(id, None)?;
        task::finish(id, Status::Cancelled)?;
        event::info(id, "cancelled", "the migration was cancelled; nothing is left of it")
    })
}

/// Takes back rows that have come to shards which stay: while the guards still tell clients
/// that they are not theirs, and once nothing comes any more.
async fn take_back_arrivals(migration: &Migration) -> Result<()> {
    let links = &migration.links;
    let receive = links.cluster(Side::Destination).staying.receive;
    // Before there was a wave nothing has come.
    if !receive || transaction(|| wave::load(migration.id()))?.is_empty() {
        return Ok(());
    }
    cleanup::remove_flows(links, &migration.prefix()).await?;
    for (_, session) in links.sessions(Side::Source).await? {
        copy::end_backends(&session).await?;
        end_sessions(&session, Purpose::Copy).await?;
    }
    removal::run(migration, Side::Source).await?;
    for (_, session) in links.sessions(Side::Source).await? {
        copy::forget_parts(&session, &migration.token, migration.id()).await?;
    }
    Ok(())
}

/// Takes back what of schema and rows has come to the shards, then the helper objects.
async fn take_back(migration: &Migration) -> Result<()> {
    let (links, shards) = (&migration.links, Side::Destination);
    if migration.task.kind == Type::CopyData {
        // The tables are the user's; they were empty.
        empty_tables(migration).await?;
    }
    for (shard, session) in links.sessions(shards).await? {
        // What still runs there could commit after it was looked at.
        end_sessions(&session, Purpose::Schema).await?;
        schema::drop_created(&migration.task, links.endpoint(shards, shard)?).await?;
    }
    if migration.task.kind == Type::Reshard {
        // What is left was there before, and empty.
        empty_tables(migration).await?;
    }
    for (_, session) in links.sessions(shards).await? {
        cleanup::drop_helpers(&session).await?;
    }
    Ok(())
}

/// Empties the tables of a migration on the shards, those that are there.
async fn empty_tables(migration: &Migration) -> Result<()> {
    let names: Vec<String> = migration.tables()?.iter().map(|t| t.qualified()).collect();
    for (_, session) in migration.links.sessions(Side::Destination).await? {
        let rows = session.query(include_str!("tables_to_empty.sql"), &[&names]).await?;
        let (mut linked, mut others) = (Vec::new(), Vec::new());
        for row in rows {
            let table: String = row.try_get(0).map_err(|e| session.error(&e))?;
            match row.try_get(1).map_err(|e| session.error(&e))? {
                true => linked.push(table),
                false => others.push(table),
            }
        }
        // Those with foreign keys together: a table can't be emptied without those that
        // refer to it. Of the others not too many locks at a time.
        for tables in std::iter::once(&linked[..]).chain(others.chunks(100)) {
            if !tables.is_empty() {
                truncate(&session, tables).await?;
            }
        }
    }
    Ok(())
}

async fn truncate(session: &Connection, tables: &[String]) -> Result<()> {
    match session.batch(&format!("TRUNCATE {}", tables.join(", "))).await {
        Err(error) if error.sqlstate() == "0A000" => Err(Error::new(
            error.kind.clone(),
            format!("could not empty the tables of the migration on {}", session.label()),
        )
        .detail(error.detail.unwrap_or(error.message))
        .hint(
            "Tables that are not part of the migration refer to them there: empty those or drop \
             their foreign keys, then cancel again.",
        )),
        outcome => outcome,
    }
}

/// Removes flows, triggers and identities, also where a server can't be reached from
/// those that can.
async fn clean(migration: &Migration, completed: bool) -> Result<()> {
    let links = &migration.links;
    let prefix = migration.prefix();
    let tables = migration.tables()?;
    let (nodes, missing) = links.reachable(Side::Source).await;
    for (_, session) in &nodes {
        copy::end_backends(session).await?;
        // One that still waits for its slot would make it when nobody wants it any more.
        end_sessions(session, Purpose::Snapshot).await?;
    }
    let removed = cleanup::remove_flows(links, &prefix).await;
    let apart = links.apart(Side::Source);
    for (node, session) in nodes {
        // A shard that stays is one of the active cluster.
        settle::restore(&session, &tables, completed && apart.contains(&node)).await?;
        cleanup::drop_placements(&session).await?;
        join::leave(&session, &migration.token, migration.id()).await?;
    }
    missing.map_or(removed, Err).context("could not clean up on every server")?;
    if completed {
        fence::release_staying(links).await?;
    }
    for (_, session) in links.sessions(Side::Destination).await? {
        settle::restore(&session, &tables, false).await?;
        if completed {
            cleanup::drop_helpers(&session).await?;
        }
    }
    Ok(())
}

/// `reshard_stop_task()`: whatever runs in the background stops; nothing is
/// undone, `reshard_resume()` goes on. A copy keeps its snapshot. Servers that can't be
/// reached, or where somebody is in the way, keep their subscriptions enabled and are named.
///
/// # Errors
/// Those of the state tables.
pub async fn stop(task: Task) -> Result<()> {
    let id = task.id;
    if task.status.is_final() {
        return Ok(());
    }
    let flows = transaction(|| flow::load(id))?;
    let mut left_out = Vec::new();
    if task.kind.is_migration() && flows.iter().any(|f| f.live) {
        left_out = disable_all(&Migration::load(task)?, &flows).await;
    }
    let mut error = driver::stopped(id);
    if !left_out.is_empty() {
        error.detail = Some(format!("Subscriptions stay enabled: {}.", left_out.join("; ")));
    }
    transaction(|| {
        task::fail(id, &error)?;
        task::set_stopped(id, true)?;
        match left_out.is_empty() {
            true => event::info(id, "stopped", "the task was stopped"),
            false => event::write_error(id, Severity::Warning, "stopped", &error),
        }
    })
}

/// Disables the subscriptions of all flows; tells which servers were left out, and why.
async fn disable_all(migration: &Migration, flows: &[Flow]) -> Vec<String> {
    let links = &migration.links;
    let outcomes = join_all(links.all_ends().map(|(side, shard)| async move {
        let own: Vec<&Flow> = flows
            .iter()
            .filter(|f| f.direction.subscriber() == side && f.shard_on(side) == shard)
            .collect();
        if own.is_empty() {
            return Ok(());
        }
        let session = links.session(side, shard).await?;
        session.batch("SET lock_timeout = '10s'").await?;
        subscription::set_enabled(&session, &own, false).await
    }))
    .await;
    outcomes.into_iter().filter_map(|outcome: Result<()>| Some(outcome.err()?.one_line())).collect()
}
