//! Phases with live replication: `catch_up`, and then `replicating`, `switched`
//! and `rolled_back`, in which the worker watches until somebody asks for more.
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::cluster::{Direction, ShardNo, Side};
use crate::cutover::fence;
use crate::error::{Error, Kind, Result};
use crate::gucs;
use crate::pg::xact::{transaction, transaction_async};
use crate::replication::settle::{self, Identity, Settings};
use crate::replication::{handoff, marker, monitor, slot, subscription};
use crate::state::event::{self, Severity};
use crate::state::flow::{self, Flow, Observation};
use crate::state::options::ReplicaIdentity;
use crate::state::table::{self, Table};
use crate::state::task::{self, NewTask, Phase, Status, Task, Type};
use crate::state::{traffic as flag, wave};
use crate::worker::migration::Migration;
use crate::worker::{copying, traffic};

/// How often flows are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How often slots that wait are moved on, so that they keep little WAL.
const ADVANCE: Duration = Duration::from_secs(5);
/// How long a marker may take while a backlog is applied.
const MARKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two cutovers that nobody asked for, and how many are tried.
const AUTO_RETRY: Duration = Duration::from_secs(5);
const AUTO_TRIES: u32 = 6;

/// Phase `catch_up`: subscriptions apply what was written since the snapshot.
///
/// # Errors
/// The servers'; an apply worker that keeps failing.
pub async fn catch_up(migration: &Migration) -> Result<()> {
    if migration.task.kind == Type::Replicate {
        begin_replication(migration).await?;
    }
    settle_shards(migration).await?;
    let flows = migration.flows(Direction::Forward)?;
    let binary = binary_is_safe(migration).await?;
    try_join_all(flows.iter().map(|flow| async move {
        let publisher = migration.links.endpoint(Side::Source, flow.shard_on(Side::Source))?;
        let session =
            migration.links.session(Side::Destination, flow.shard_on(Side::Destination)).await?;
        subscription::create(&session, publisher, flow, binary).await
    }))
    .await?;
    transaction(|| {
        flow::set_live(migration.id(), Some(Direction::Forward))?;
        ensure_child(migration, Direction::Forward)
    })?;
    set_live(migration, Direction::Forward, true).await?;

    let threshold = i64::from(gucs::CUTOVER_LAG_THRESHOLD.get()) * 1024;
    loop {
        let flows = migration.flows(Direction::Forward)?;
        let seen = observe(migration, &flows).await?;
        let close = seen.iter().all(|s| s.active && s.lag_bytes.is_some_and(|l| l <= threshold));
        if close && marker::round_trip(&migration.links, &flows, MARKER_TIMEOUT).await.is_ok() {
            return Ok(());
        }
        broken(&flows, &seen)?;
        tokio::time::sleep(PERIOD).await;
    }
}

/// `reshard_replicate()`: flows from now on, or from an existing slot.
async fn begin_replication(migration: &Migration) -> Result<()> {
    let parents = copying::prepare(migration).await?;
    let flows = migration.make_flows(Direction::Forward, 1);
    transaction(|| {
        table::set_status(migration.id(), "pending", "ready")?;
        wave::begin(migration.id(), 1)?;
        flow::insert(&flows)
    })?;
    copying::publish(migration, &flows, &migration.tables()?, &parents).await?;
    let session = migration.links.session(Side::Source, ShardNo(0)).await?;
    let Some((first, others)) = flows.split_first() else {
        return Err(Error::internal("a migration has no flow"));
    };
    match &migration.task.options.slot_name {
        Some(existing) => slot::copy(&session, existing, &first.slot_name).await?,
        None => slot::create(&session, &first.slot_name).await?,
    }
    for other in others {
        slot::copy(&session, &first.slot_name, &other.slot_name).await?;
    }
    Ok(())
}

/// Gives the shards' tables the identities of the source's, once keys are there:
/// a subscriber finds rows by an identity that is part of what it is sent, and
/// its own UPDATE and DELETE must go through when it publishes.
async fn settle_shards(migration: &Migration) -> Result<()> {
    let links = &migration.links;
    let tables = migration.tables()?;
    let node = links.session(Side::Source, ShardNo(0)).await?;
    let filtered = links.cluster(Side::Destination).size() > 1;
    let mut indexes: Vec<Option<String>> = Vec::with_capacity(tables.len());
    for table in &tables {
        let settings = Settings {
            cluster: &links.cluster(Side::Source).name,
            filter_column: table.key_column.as_deref().filter(|_| filtered),
            identity: Identity::Fit(migration.task.options.replica_identity),
            has_extension: true,
        };
        indexes.push(settle::table(&node, table, &settings).await?);
    }
    let name = &links.cluster(Side::Destination).name;
    let shards = links.sessions(Side::Destination).await?;
    try_join_all(shards.iter().map(|(_, session)| {
        let pairs: Vec<(&Table, &Option<String>)> = tables.iter().zip(&indexes).collect();
        async move {
            for (table, index) in pairs {
                let identity = match index {
                    Some(index) => Identity::Index(index),
                    None => Identity::Fit(ReplicaIdentity::Auto),
                };
                let settings =
                    Settings { cluster: name, filter_column: None, identity, has_extension: false };
                settle::table(session, table, &settings).await?;
            }
            Ok::<(), Error>(())
        }
    }))
    .await?;
    Ok(())
}

/// Whether all columns that flow have a binary form that both sides agree on.
async fn binary_is_safe(migration: &Migration) -> Result<bool> {
    let links = &migration.links;
    let mut versions = Vec::new();
    for side in [Side::Source, Side::Destination] {
        for (_, session) in links.sessions(side).await? {
            let version: i32 =
                session.value("SELECT current_setting('server_version_num')::int", &[]).await?;
            versions.push(version / 10_000);
        }
    }
    versions.dedup();
    if versions.len() > 1 {
        return Ok(false);
    }
    transaction(|| {
        Ok(!crate::pg::db::truth(
            "SELECT true FROM reshard.copy_table WHERE task_id = $1 AND format <> 'binary' LIMIT 1",
            &[crate::pg::db::Arg::I64(migration.id())],
        )?)
    })
}

/// Enables or disables the subscriptions of one direction.
///
/// # Errors
/// The servers'.
pub async fn set_live(migration: &Migration, direction: Direction, enabled: bool) -> Result<()> {
    let flows = migration.flows(direction)?;
    let side = direction.subscriber();
    for (shard, session) in migration.links.sessions(side).await? {
        let own: Vec<&Flow> = flows.iter().filter(|f| f.shard_on(side) == shard).collect();
        subscription::set_enabled(&session, &own, enabled).await?;
    }
    Ok(())
}

/// Writes down what the flows look like now.
async fn observe(migration: &Migration, flows: &[Flow]) -> Result<Vec<Observation>> {
    let seen = monitor::observe(&migration.links, flows).await?;
    transaction_async(|| {
        flows.iter().zip(&seen).try_for_each(|(flow, seen)| flow::observe(flow, seen))
    })?;
    Ok(seen)
}

/// A flow that can't go on by itself is an error, never a gap.
fn broken(flows: &[Flow], seen: &[Observation]) -> Result<()> {
    for (flow, seen) in flows.iter().zip(seen) {
        let lost = seen.wal_status.as_deref() == Some("lost") || seen.confirmed_lsn.is_none();
        if flow.live && lost {
            return Err(Error::new(
                Kind::WrongState,
                format!("replication slot \"{}\" can't be used any more", flow.slot_name),
            )
            .detail(seen.error.clone().unwrap_or_default())
            .hint("Cancel the migration and start it again; raise max_slot_wal_keep_size first."));
        }
    }
    Ok(())
}

/// Phases `replicating`, `switched` and `rolled_back`: watches, keeps the waiting
/// slots near the present, and cuts over by itself where that was asked for.
///
/// # Errors
/// The servers'; a flow that can't go on.
pub async fn watch(migration: &Migration) -> Result<()> {
    let id = migration.id();
    let live = match migration.task.phase {
        Phase::Switched => Direction::Reverse,
        _ => Direction::Forward,
    };
    transaction(|| {
        flow::set_live(id, Some(live))?;
        ensure_child(migration, live)
    })?;
    set_live(migration, live.opposite(), false).await?;
    set_live(migration, live, true).await?;
    let auto = migration.task.options.auto_cutover && migration.task.phase == Phase::Replicating;
    let mut tries = 0;
    let mut next_try = Instant::now();
    let mut advanced = Instant::now();
    let mut complained = false;
    loop {
        let flows = transaction(|| flow::load(id))?;
        let seen = observe(migration, &flows).await?;
        broken(&flows, &seen)?;
        complained = complain(id, &flows, &seen, complained)?;
        if auto && tries < AUTO_TRIES && Instant::now() >= next_try {
            tries += 1;
            match traffic::cut_over(migration.task.clone(), false).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    next_try = Instant::now() + AUTO_RETRY;
                    auto_failed(id, &error, tries)?;
                }
            }
        }
        if advanced.elapsed() > ADVANCE {
            let waiting: Vec<Flow> = flows
                .iter()
                .zip(&seen)
                .filter(|(f, s)| {
                    f.direction == live.opposite() && !s.active && s.confirmed_lsn.is_some()
                })
                .map(|(f, _)| f.clone())
                .collect();
            handoff::advance(&migration.links, &waiting).await?;
            advanced = Instant::now();
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Shows on the task what is wrong with its flows; true while something is.
fn complain(id: i64, flows: &[Flow], seen: &[Observation], before: bool) -> Result<bool> {
    let worst = flows
        .iter()
        .zip(seen)
        .filter(|(f, _)| f.live)
        .find_map(|(f, s)| s.error.as_ref().map(|e| format!("\"{}\": {e}", f.slot_name)));
    match worst {
        Some(worst) => {
            let error = Error::state("a replication flow is in trouble")
                .detail(worst)
                .hint("See reshard.replication_slots, and the log of the subscriber.");
            transaction(|| {
                task::note_error(id, Some(&error))?;
                match before {
                    true => Ok(()),
                    false => event::write(
                        Some(id),
                        Severity::Warning,
                        "flow",
                        &error.one_line(),
                        serde_json::json!({}),
                    ),
                }
            })?;
            Ok(true)
        }
        None => {
            if before {
                transaction(|| task::note_error(id, None))?;
            }
            Ok(false)
        }
    }
}

fn auto_failed(id: i64, error: &Error, tries: u32) -> Result<()> {
    transaction(|| {
        task::note_error(id, Some(error))?;
        if tries >= AUTO_TRIES {
            // Who waits for the switch has to know that it does not come by itself.
            task::forget_auto_cutover(id)?;
        }
        let message = match tries < AUTO_TRIES {
            true => format!("automatic cutover {tries} was aborted and is tried again"),
            false => {
                format!("automatic cutover was aborted {tries} times; call reshard_cutover({id})")
            }
        };
        event::write(
            Some(id),
            Severity::Warning,
            "auto_cutover",
            &message,
            serde_json::json!({ "error": error.one_line(), "hint": error.hint }),
        )
    })
}

/// The phase that the cutover flag stands for, for a migration that has flows.
///
/// # Errors
/// SPI's.
pub fn phase_by_flag(task: &Task) -> Result<Phase> {
    let flag = transaction(|| flag::load(&task.source))?;
    Ok(match flag.active_cluster == task.destination {
        true => Phase::Switched,
        false if flag.epoch == 0 => Phase::Replicating,
        false => Phase::RolledBack,
    })
}

/// The child task that stands for one direction's replication.
fn ensure_child(migration: &Migration, live: Direction) -> Result<()> {
    let task = &migration.task;
    for direction in [Direction::Forward, Direction::Reverse] {
        let (source, destination) = match direction {
            Direction::Forward => (&task.source, &task.destination),
            Direction::Reverse => (&task.destination, &task.source),
        };
        let existing =
            task::children(task.id, Type::Replication)?.into_iter().find(|c| &c.source == source);
        let id = match existing {
            Some(existing) => existing.id,
            None if direction != live => continue,
            None => task::insert(&NewTask {
                kind: Type::Replication,
                parent_id: Some(task.id),
                phase: Phase::Replicating,
                source,
                destination,
                publication: &task.publication,
                options: crate::state::options::Options::default(),
            })?,
        };
        task::set_status(id, if direction == live { Status::Running } else { Status::Pending })?;
    }
    Ok(())
}

/// Opens the source for writes: no cutover of this migration has closed it.
///
/// # Errors
/// The servers'.
pub async fn open_source(migration: &Migration) -> Result<()> {
    fence::open_latch(&migration.links, Side::Source).await
}
