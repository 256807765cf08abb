//! What is wrong with a flow is named, in each phase, and forgotten once it is well again.

use reshard_scenarios::cluster::PASSWORD;
use reshard_scenarios::migration::declare;
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Stop};

use super::common::{run, KEY, STEP};
use super::copy::{equal, fill, limit};

/// Error and hint of the task, and the errors of its flows.
async fn shown(rig: &Rig, migration: &Migration) -> Result<String> {
    let sql = format!(
        "SELECT concat_ws(' ', t.phase, t.status, t.error, t.hint,
                          (SELECT string_agg(s.error, ' ') FROM reshard.replication_slots AS s WHERE s.task_id = t.id))
           FROM reshard.tasks AS t WHERE t.id = {}",
        migration.id
    );
    Ok(rig.source.text(&sql).await?.unwrap_or_default())
}

/// Waits until the task shows all of these.
async fn shows(rig: &Rig, migration: &Migration, parts: &[&str]) -> Result<()> {
    wait_for(STEP, format!("the task to show {parts:?}"), || async {
        let text = shown(rig, migration).await?;
        Ok(match parts.iter().all(|part| text.contains(part)) {
            true => Seen::Done(()),
            false => Seen::NotYet(text),
        })
    })
    .await
}

/// Waits until nothing is wrong any more.
async fn is_well(rig: &Rig, migration: &Migration) -> Result<()> {
    wait_for(STEP, "the task to be well", || async {
        let text = shown(rig, migration).await?;
        Ok(match text == "replicating running" {
            true => Seen::Done(()),
            false => Seen::NotYet(text),
        })
    })
    .await
}

async fn events(rig: &Rig, kind: &str, text: &str) -> Result<i64> {
    let sql = format!(
        "SELECT count(*) FROM reshard.events WHERE kind = '{kind}' AND message LIKE '%{text}%'"
    );
    rig.source.connect().await?.one(&sql).await
}

/// A row comes to a shard before the one that was written on the source after the snapshot.
async fn conflict_in_catch_up(rig: &Rig, migration: &Migration) -> Result<()> {
    let session = rig.source.connect().await?;
    wait_until(STEP, "the copy to be on its way", || async {
        let copied = "SELECT count(*) FROM reshard.copy_part WHERE status = 'done'";
        Ok(session.one::<i64>(copied).await? > 0)
    })
    .await?;
    let row = "INSERT INTO t1 VALUES (-1, 1, 'x')";
    session.execute(row).await?;
    for shard in &rig.shards {
        shard.execute(&format!("SET application_name = 'reshard repair'; {row}")).await?;
    }
    limit(rig, 0).await?;
    shows(rig, migration, &["catch_up", "in trouble", "apply worker fails"]).await?;
    let told = events(rig, "flow", "apply worker fails").await?;
    assert!((1..=3).contains(&told), "{told} events");
    for shard in &rig.shards {
        shard
            .execute("SET application_name = 'reshard repair'; DELETE FROM t1 WHERE id = -1")
            .await?;
    }
    migration.watch(&["replicating"], STEP).await?;
    is_well(rig, migration).await
}

/// The source refuses all logins, those of its subscribers and of the coordinator.
async fn refused_logins(rig: &Rig, migration: &Migration) -> Result<()> {
    let rules = rig.source.data().join("pg_hba.conf");
    let before = std::fs::read_to_string(&rules).map_err(Error::io("read pg_hba.conf"))?;
    let closed = format!("host all all all reject\n{before}");
    std::fs::write(&rules, closed).map_err(Error::io("write pg_hba.conf"))?;
    rig.source.execute("SELECT pg_reload_conf()").await?;
    wait_until(STEP, "logins to be refused", || async {
        Ok(rig.source.connect_tcp("postgres", PASSWORD).await.is_err())
    })
    .await?;
    let told_before = events(rig, "flow", "").await?;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    rig.source.execute(end).await?;
    // Whether the coordinator has to log in again itself, or its sessions last.
    shows(rig, migration, &["replicating running", "pg_hba.conf of "]).await?;
    let refused = events(rig, "retry", "could not connect to shard 0").await?;
    let told = refused + events(rig, "flow", "").await? - told_before;
    assert!((1..=3).contains(&told), "{told} events");
    std::fs::write(&rules, before).map_err(Error::io("write pg_hba.conf"))?;
    rig.source.execute("SELECT pg_reload_conf()").await?;
    is_well(rig, migration).await
}

/// A shard is down for a while.
async fn absent_shard(rig: &Rig, migration: &Migration) -> Result<()> {
    tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
    shows(rig, migration, &["replicating running", "could not connect to shard 1"]).await?;
    let session = rig.source.connect().await?;
    for megabytes in [4_i64, 8, 12] {
        session
            .execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 5)")
            .await?;
        wait_until(STEP, "the WAL that is kept to be seen", || async {
            let kept = "SELECT retained_bytes FROM reshard.replication_slots
                         WHERE direction = 'forward' AND destination_shard = 1";
            Ok(session.one::<i64>(kept).await? > megabytes << 20)
        })
        .await?;
    }
    assert!(events(rig, "slot_wal", "s0_d1").await? > 0);
    let retries = events(rig, "retry", "").await?;
    assert!((1..=4).contains(&retries), "{retries} events");
    tokio::task::block_in_place(|| rig.shards[1].start())?;
    is_well(rig, migration).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_a_refused_login_and_an_absent_shard_are_named_and_pass() {
    let options = RigOptions::new(2)
        .source("reshard.slot_wal_warning", "2MB")
        .source("reshard.copy_part_size", "1MB")
        .shard("wal_retrieve_retry_interval", "1s");
    run(options, |rig| async move {
        fill(&rig, 1, 30_000).await?;
        declare(&rig, KEY).await?;
        limit(&rig, 300).await?;
        let migration = Migration::start(&rig, false).await?;
        conflict_in_catch_up(&rig, &migration).await?;
        refused_logins(&rig, &migration).await?;
        absent_shard(&rig, &migration).await?;
        equal(&rig).await
    })
    .await;
}
