//! Phases with live replication: `catch_up`, and then `replicating`, `switched`
//! and `rolled_back`, in which the worker watches until somebody asks for more.
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::cluster::{Direction, Side};
use crate::cutover::fence;
use crate::error::{Error, Result};
use crate::gucs;
use crate::pg::xact::transaction;
use crate::replication::settle::{self, Identity, Settings};
use crate::replication::{guard, handoff, marker, slot, subscription};
use crate::state::flow::{self, Flow};
use crate::state::options::ReplicaIdentity;
use crate::state::table::{self, Table};
use crate::state::task::{self, NewTask, Phase, Status, Task, Type};
use crate::state::{cutover, traffic as flag, wave};
use crate::worker::auto::Auto;
use crate::worker::migration::Migration;
use crate::worker::watch::Watch;
use crate::worker::{copying, waves};

/// How often flows are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How often slots that wait are moved on, so that they keep little WAL.
const ADVANCE: Duration = Duration::from_secs(5);
/// How long the making of a slot may wait for open transactions at a time.
const SLOT_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a marker may take while a backlog is applied.
const MARKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Phase `catch_up`: subscriptions apply what was written since the snapshot.
///
/// # Errors
/// The servers'; as [`Watch::look`].
pub async fn catch_up(migration: &Migration, watch: &mut Watch) -> Result<()> {
    if migration.task.kind == Type::Replicate {
        begin_replication(migration).await?;
    }
    settle_shards(migration, &migration.tables()?).await?;
    redirect(migration).await?;
    subscribe(migration, &migration.flows(Direction::Forward)?).await?;
    transaction(|| {
        flow::set_live(migration.id(), Some(Direction::Forward))?;
        ensure_child(migration, Direction::Forward)
    })?;
    set_live(migration, Direction::Forward, true).await?;
    flush_shards(migration).await?;

    let threshold = i64::from(gucs::CUTOVER_LAG_THRESHOLD.get()) * 1024;
    loop {
        let seen = watch.look(migration).await?;
        let close =
            seen.iter().all(|(_, s)| s.active && s.lag_bytes.is_some_and(|l| l <= threshold));
        let flows = migration.flows(Direction::Forward)?;
        if close && marker::round_trip(&migration.links, &flows, MARKER_TIMEOUT).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Has the shards write what was copied to disk, while nobody depends on them. Else
/// their first checkpoint, or the kernel, does it some time after: the commits of
/// clients may stand behind it for a second, and a crash recovers all of the copy.
async fn flush_shards(migration: &Migration) -> Result<()> {
    let shards = migration.links.sessions(Side::Destination).await?;
    try_join_all(shards.iter().map(|(_, session)| async move {
        // Also for members of pg_checkpoint; others do without.
        let may = "SELECT pg_has_role('pg_checkpoint', 'USAGE')";
        match session.value(may, &[]).await? {
            true => session.batch("CHECKPOINT").await,
            false => Ok(()),
        }
    }))
    .await
    .map(drop)
}

/// Makes the subscriptions of flows, disabled: on all shards at once, but one after the
/// other on each, since each is a transaction of the shard's one session.
async fn subscribe(migration: &Migration, flows: &[Flow]) -> Result<()> {
    let binary = binary_is_safe(migration).await?;
    let shards = migration.links.sessions_at_ends(Side::Destination).await?;
    try_join_all(shards.iter().map(|(shard, session)| async move {
        for flow in flows.iter().filter(|f| f.shard_on(Side::Destination) == *shard) {
            let publisher = migration.links.endpoint(Side::Source, flow.shard_on(Side::Source))?;
            subscription::create(session, publisher, flow, binary, "").await?;
        }
        Ok(())
    }))
    .await
    .map(drop)
}

/// Lets the flows of one wave begin while other waves are still copied.
///
/// # Errors
/// The servers'.
pub async fn begin_wave(migration: &Migration, wave: i32, tables: &[Table]) -> Result<()> {
    let tables: Vec<Table> = tables.iter().filter(|t| t.wave == Some(wave)).cloned().collect();
    settle_shards(migration, &tables).await?;
    redirect(migration).await?;
    let flows: Vec<Flow> =
        migration.flows(Direction::Forward)?.into_iter().filter(|f| f.wave == wave).collect();
    subscribe(migration, &flows).await?;
    transaction(|| flow::set_wave_live(migration.id(), wave))?;
    enable(migration, &flows, Direction::Forward.subscriber(), true).await
}

/// `reshard_replicate()`: flows from now on, or from an existing slot.
async fn begin_replication(migration: &Migration) -> Result<()> {
    let filters = copying::prepare(migration).await?;
    let flows = migration.make_flows(Direction::Forward, 1);
    let tables = migration.tables()?;
    transaction(|| {
        table::assign_wave(migration.id(), &tables, 1)?;
        table::set_status(migration.id(), "pending", "ready")?;
        wave::begin(migration.id(), 1, migration.links.cluster(Side::Source).numbers())?;
        flow::insert(&flows)
    })?;
    waves::publish(migration, &flows, &tables, &filters).await?;
    for (node, session) in migration.links.sessions(Side::Source).await? {
        let mut own = flows.iter().filter(|f| f.shard_on(Side::Source) == node);
        let Some(first) = own.next() else {
            return Err(Error::internal("a source shard has no flow"));
        };
        match &migration.task.options.slot_name {
            Some(existing) => slot::copy(&session, existing, &first.slot_name).await?,
            None => slot::create(&session, &first.slot_name, SLOT_TIMEOUT).await?,
        }
        for other in own {
            slot::copy(&session, &first.slot_name, &other.slot_name).await?;
        }
    }
    Ok(())
}

/// Gives the shards' tables the identities of the source's, once keys are there:
/// a subscriber finds rows by an identity that is part of what it is sent, and
/// its own UPDATE and DELETE must go through when it publishes.
async fn settle_shards(migration: &Migration, tables: &[Table]) -> Result<()> {
    let links = &migration.links;
    let node = links.session(Side::Source, links.node()).await?;
    let indexes = settle::tables(&node, tables, |_, table| Settings {
        place: migration.place(Side::Source),
        filter_columns: migration.filter_columns(table),
        identity: Identity::Fit(migration.task.options.replica_identity),
        grows: migration.grows(),
    })
    .await?;
    let place = migration.place(Side::Destination);
    let shards = links.sessions(Side::Destination).await?;
    try_join_all(shards.iter().map(|(shard, session)| {
        let indexes = &indexes;
        async move {
            settle::tables(session, tables, |i, table| Settings {
                place,
                // The way back goes to several shards as well.
                filter_columns: table.key_columns(&[Side::Source]),
                identity: match indexes.get(i) {
                    Some(Some(name)) => {
                        Identity::Index { name, columns: migration.filter_columns(table) }
                    }
                    _ => Identity::Fit(ReplicaIdentity::Auto),
                },
                // There nobody is kept from adding some.
                grows: true,
            })
            .await?;
            guard::put(session, links, Side::Destination, *shard, tables).await
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

/// Has the subscriptions that are there, in both directions, use the connection strings
/// that are declared now.
///
/// # Errors
/// The servers'.
pub async fn redirect(migration: &Migration) -> Result<()> {
    for direction in [Direction::Forward, Direction::Reverse] {
        let (publisher, subscriber) = (direction.publisher(), direction.subscriber());
        let flows = migration.flows(direction)?;
        if flows.is_empty() {
            continue;
        }
        for (shard, session) in migration.links.sessions_at_ends(subscriber).await? {
            let own = flows.iter().filter(|f| f.shard_on(subscriber) == shard);
            let own = own
                .map(|f| Ok((f, migration.links.endpoint(publisher, f.shard_on(publisher))?)))
                .collect::<Result<Vec<_>>>()?;
            subscription::redirect(&session, &own).await?;
        }
    }
    Ok(())
}

/// Enables or disables the subscriptions of one direction.
///
/// # Errors
/// The servers'.
pub async fn set_live(migration: &Migration, direction: Direction, enabled: bool) -> Result<()> {
    enable(migration, &migration.flows(direction)?, direction.subscriber(), enabled).await
}

async fn enable(migration: &Migration, flows: &[Flow], side: Side, enabled: bool) -> Result<()> {
    for (shard, session) in migration.links.sessions_at_ends(side).await? {
        let own: Vec<&Flow> = flows.iter().filter(|f| f.shard_on(side) == shard).collect();
        subscription::set_enabled(&session, &own, enabled).await?;
    }
    Ok(())
}

/// Phases `replicating`, `switched` and `rolled_back`: watches, and keeps the waiting
/// slots near the present. Ends when it is time for an automatic cutover.
///
/// # Errors
/// The servers'; a flow that can't go on.
pub async fn watch(migration: &Migration, auto: &Auto, watch: &mut Watch) -> Result<()> {
    let id = migration.id();
    let live = match migration.task.phase {
        Phase::Switched => Direction::Reverse,
        _ => Direction::Forward,
    };
    let traffic = transaction(|| {
        flow::set_live(id, Some(live))?;
        ensure_child(migration, live)?;
        flag::load(&migration.task.source)
    })?;
    // Poolers find the flag everywhere, from the beginning.
    let (links, name) = (&migration.links, &migration.task.source);
    for side in [Side::Source, Side::Destination] {
        fence::write_flag(links, side, name, &traffic.active_cluster, traffic.epoch).await?;
    }
    redirect(migration).await?;
    set_live(migration, live.opposite(), false).await?;
    set_live(migration, live, true).await?;
    let mut advanced = Instant::now();
    loop {
        let seen = watch.look(migration).await?;
        if auto.is_due(&migration.task) {
            return Ok(());
        }
        if advanced.elapsed() > ADVANCE {
            let waiting: Vec<Flow> = seen
                .into_iter()
                .filter(|(f, s)| {
                    // One that is lost is made anew by the next cutover.
                    f.direction == live.opposite()
                        && !s.active
                        && s.confirmed_lsn.is_some()
                        && s.wal_status.as_deref() != Some("lost")
                })
                .map(|(f, _)| f)
                .collect();
            handoff::advance(&migration.links, &waiting).await?;
            advanced = Instant::now();
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The phase that the cutover flag stands for, for a migration that has flows.
///
/// # Errors
/// SPI's.
pub fn phase_by_flag(task: &Task) -> Result<Phase> {
    transaction(|| {
        Ok(match flag::load(&task.source)?.active_cluster == task.destination {
            true => Phase::Switched,
            false if cutover::has_switched(task.id)? => Phase::RolledBack,
            false => Phase::Replicating,
        })
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
