//! Waves: tables that are copied under one snapshot of each source shard, into one set
//! of slots. There is one, unless `reshard.wave_size` asks for more, or a snapshot was lost or a
//! table rewritten in the middle of the copy, or rows of it came twice.
use std::collections::BTreeSet;
use std::rc::Rc;

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo, Side};
use crate::copy;
use crate::error::{Error, Result};
use crate::pg::xact::transaction;
use crate::remote::{connect, Connection, Purpose};
use crate::replication::filter::{self, FiltersOf};
use crate::replication::{cleanup, publication, slot};
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow};
use crate::state::table::{self, Table};
use crate::state::task;
use crate::state::wave::{self, Wave};
use crate::worker::arrivals;
use crate::worker::coordinator::{Shared, Snapshots};
use crate::worker::migration::Migration;

/// Waves that may be given up before a copy fails: each one means that a snapshot
/// was lost, or a table rewritten or to be copied anew.
const ABANDONED: i64 = 20;

/// The wave to copy now: the one whose snapshot we hold, or a new one.
///
/// # Errors
/// 55000 where too many waves were given up; the servers'.
pub async fn begin(
    migration: &Migration,
    shared: &Rc<Shared>,
    tables: &[Table],
    filters: &FiltersOf,
) -> Result<i32> {
    let id = migration.id();
    // None of an earlier run may send rows any more.
    for (_, session) in migration.links.other_nodes().await? {
        copy::end_backends(&session).await?;
    }
    let waves = transaction(|| wave::load(id))?;
    if let Some(latest) = waves.last() {
        if is_open(tables, latest.wave) {
            let held = shared
                .snapshots
                .borrow()
                .get(&id)
                .is_some_and(|s| s.wave == latest.wave && !s.is_lost());
            // A row that no shard takes is in the snapshot for good.
            let useless = transaction(|| copy::met_unplaced(id))?;
            if held && latest.has_snapshots && !useless {
                // Whatever stopped these parts, somebody wants them to be tried again.
                transaction(|| copy::reopen_failed(id))?;
                // An error may have come between its snapshots and its parts.
                plan_parts(migration, latest.wave).await?;
                return Ok(latest.wave);
            }
        }
    }
    shared.snapshots.borrow_mut().remove(&id);
    let anew = abandon(migration, tables, &waves).await?;

    // What was given up has no wave any more.
    let tables = migration.tables()?;
    let chosen: Vec<Table> = copy::next_wave(tables.into_iter().filter(|t| !t.is_copied()));
    let number = transaction(|| wave::load(id))?.last().map_or(1, |w| w.wave + 1);
    let flows = migration.make_flows(Direction::Forward, number);
    transaction(|| {
        if anew > 0 {
            warn(id, &format!("wave {number} begins: {anew} tables are copied anew"))?;
        }
        wave::begin(id, number, migration.links.cluster(Side::Source).numbers())?;
        table::assign_wave(id, &chosen, number)?;
        flow::insert(&flows)
    })?;
    publish(migration, &flows, &chosen, filters).await?;
    take_snapshots(migration, shared, number, &flows).await?;
    plan_parts(migration, number).await?;
    Ok(number)
}

/// Whether tables of a wave are still to be copied.
fn is_open(tables: &[Table], wave: i32) -> bool {
    tables.iter().any(|t| t.wave == Some(wave) && !t.is_copied())
}

/// Waves whose tables all have their rows, keys and indexes.
pub fn complete(tables: &[Table]) -> BTreeSet<i32> {
    let all: BTreeSet<i32> = tables.iter().filter_map(|t| t.wave).collect();
    all.into_iter()
        .filter(|wave| tables.iter().all(|t| t.wave != Some(*wave) || t.status == "ready"))
        .collect()
}

/// Makes the publications of a wave's flows.
///
/// # Errors
/// The servers'.
pub async fn publish(
    migration: &Migration,
    flows: &[Flow],
    tables: &[Table],
    filters: &FiltersOf,
) -> Result<()> {
    for flow in flows {
        let node = flow.shard_on(Side::Source);
        let session = migration.links.session(Side::Source, node).await?;
        let subscriber = flow.shard_on(Side::Destination);
        // One that stays has what every shard has.
        let stays = migration.links.cluster(Side::Destination).stays(subscriber);
        let goes = |t: &&Table| t.comes_from(node) && (!stays || t.is_sharded(Side::Destination));
        let own: Vec<Table> = tables.iter().filter(goes).cloned().collect();
        let filters = filter::of_publisher(filters, node)?;
        publication::create(&session, flow, &own, filters, subscriber).await?;
    }
    Ok(())
}

/// On each source shard the first slot with its snapshot, then copies of it for the
/// other shards of the destination.
async fn take_snapshots(
    migration: &Migration,
    shared: &Rc<Shared>,
    number: i32,
    flows: &[Flow],
) -> Result<()> {
    let id = migration.id();
    let nodes = migration.links.cluster(Side::Source).numbers();
    let sessions =
        try_join_all(nodes.map(|node| take_snapshot(migration, number, node, flows))).await?;
    transaction(|| task::note_error(id, None))?;
    shared.snapshots.borrow_mut().insert(id, Snapshots { wave: number, sessions });
    Ok(())
}

/// The slots of one source shard; returns the session that keeps its snapshot.
async fn take_snapshot(
    migration: &Migration,
    number: i32,
    node: ShardNo,
    flows: &[Flow],
) -> Result<Connection> {
    let id = migration.id();
    let mut own = flows.iter().filter(|f| f.shard_on(Side::Source) == node);
    let Some(first) = own.next() else {
        return Err(Error::internal("a wave has no flow"));
    };
    let endpoint = migration.links.endpoint(Side::Source, node)?;
    let control = migration.links.session(Side::Source, node).await?;
    let blocked = |who: &str| note_blocked(id, who);
    let exported =
        slot::create_with_snapshot(endpoint, &control, &first.slot_name, blocked).await?;
    for other in own {
        slot::copy(&control, &first.slot_name, &other.slot_name).await?;
    }
    transaction(|| wave::set_snapshot(id, number, node, &exported.snapshot, &exported.lsn))?;
    Ok(exported.session)
}

/// Measures the wave's tables that are not begun where their rows come from, and cuts
/// those into parts that have none. Repeatable.
async fn plan_parts(migration: &Migration, number: i32) -> Result<()> {
    let links = &migration.links;
    let tables = migration.tables()?;
    let nodes = links.sessions(Side::Source).await?;
    let measured = try_join_all(nodes.iter().map(|(node, session)| {
        let own: Vec<&Table> = tables
            .iter()
            .filter(|t| t.wave == Some(number) && t.status == "pending")
            .filter(|t| t.comes_from(*node))
            .collect();
        async move { copy::measure(session, *node, &own).await }
    }))
    .await?
    .concat();
    let size = links.cluster(Side::Source).size();
    transaction(|| copy::plan_parts(migration.id(), number, size, &measured))
}

/// The other source shards, with the snapshots that parts of a wave are copied under.
///
/// # Errors
/// Those of the state tables.
pub fn other_nodes(migration: &Migration, number: i32) -> Result<Vec<copy::Node>> {
    let links = &migration.links;
    let mut nodes = Vec::new();
    for endpoint in &links.cluster(Side::Source).shards {
        let shard = ShardNo(endpoint.shard);
        let snapshot = transaction(|| wave::snapshot(migration.id(), number, shard))?;
        if let Some(snapshot) = snapshot.filter(|_| shard != links.node()) {
            nodes.push(copy::Node {
                shard,
                endpoint: endpoint.clone(),
                snapshot,
                destination: links.cluster(Side::Destination).clone(),
                token: migration.token.clone(),
            });
        }
    }
    Ok(nodes)
}

/// Whether a session that keeps a snapshot of the current wave has ended.
pub fn is_snapshot_lost(shared: &Rc<Shared>, id: i64) -> bool {
    shared.snapshots.borrow().get(&id).is_none_or(Snapshots::is_lost)
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

/// Takes unfinished tables out of former waves and empties them on the shards. Returns how
/// many are to be copied anew.
async fn abandon(migration: &Migration, tables: &[Table], waves: &[Wave]) -> Result<usize> {
    let (id, links) = (migration.id(), &migration.links);
    let unfinished: Vec<&Table> =
        tables.iter().filter(|t| t.wave.is_some() && !t.is_copied()).collect();
    if unfinished.is_empty() {
        return Ok(0);
    }
    let open: Vec<&Wave> = waves.iter().filter(|w| is_open(tables, w.wave)).collect();
    let begun = |t: &&&Table| open.iter().any(|w| t.wave == Some(w.wave) && w.had_snapshots);
    let anew = unfinished.iter().filter(begun).count();
    if anew > 0 && transaction(|| wave::abandoned(id))? >= ABANDONED {
        return Err(Error::state(format!("the copy was begun anew {ABANDONED} times"))
            .detail("Each time the snapshot was lost, or a table was rewritten or had rows twice.")
            .hint("See reshard.events for the causes."));
    }
    for former in open {
        let finished = tables.iter().any(|t| t.wave == Some(former.wave) && t.is_copied());
        give_up(migration, former, finished, &unfinished).await?;
    }
    let arrived: Vec<Table> = unfinished.iter().copied().cloned().collect();
    arrivals::empty(migration, &arrived).await?;
    let mut shards: Vec<Connection> = Vec::new();
    for endpoint in links.cluster(Side::Destination).joining() {
        shards.push(connect(endpoint, Purpose::Copy).await?);
    }
    copy::reset_tables(id, &unfinished, &shards).await?;
    Ok(anew)
}

/// Ends a wave on the source. One that has finished tables flows on without the others; one
/// that has none loses its slots, so that they keep no WAL.
async fn give_up(
    migration: &Migration,
    former: &Wave,
    finished: bool,
    unfinished: &[&Table],
) -> Result<()> {
    let id = migration.id();
    let flows = migration.flows(Direction::Forward)?;
    for (shard, session) in migration.links.sessions(Side::Source).await? {
        let own: Vec<Flow> = flows
            .iter()
            .filter(|f| f.wave == former.wave && f.shard_on(Side::Source) == shard)
            .cloned()
            .collect();
        if !finished {
            slot::drop_all(&session, &own).await?;
        }
        for flow in &own {
            let name = &flow.publication_name;
            match finished {
                true => publication::drop_tables(&session, name, unfinished).await?,
                false => cleanup::drop_publications(&session, name).await?,
            }
        }
    }
    transaction(|| {
        if !finished {
            flow::delete_wave(id, former.wave)?;
        }
        match former.had_snapshots {
            true => wave::abandon(id, former.wave),
            false => wave::delete(id, former.wave),
        }
    })
}

/// Gives a wave's snapshot up.
///
/// # Errors
/// Those of the state tables.
pub fn lose_snapshot(migration: &Migration, shared: &Rc<Shared>, number: i32) -> Result<()> {
    shared.snapshots.borrow_mut().remove(&migration.id());
    transaction(|| wave::snapshot_gone(migration.id(), number))
}

/// Writes down why a wave ended.
///
/// # Errors
/// Those of the state tables.
pub fn note(id: i64, message: &str) -> Result<()> {
    transaction(|| warn(id, message))
}

fn warn(id: i64, message: &str) -> Result<()> {
    event::write(Some(id), Severity::Warning, "wave", message, serde_json::json!({}))
}
