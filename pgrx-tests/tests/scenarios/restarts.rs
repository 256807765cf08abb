//! The source restarts in each phase; the migration goes on by itself.

use std::process::Command;
use std::time::Duration;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::traffic;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Stop};

use super::common::{application, check_outcome, restart, with_extension, STEP};

/// Restarts the source as soon as the task is in `phase` (or past it), under
/// writers, and sees the migration to its end.
async fn restart_in(phase: &'static str, how: Stop) {
    with_extension(2, move |rig| async move {
        application(&rig, 60_000).await?;
        let load = Load::start(
            &rig,
            &LoadOptions {
                followers: 4,
                pace: Duration::from_millis(20),
                ..LoadOptions::default()
            },
        );
        load.each_acknowledged(5, STEP).await?;
        let migration = Migration::start(&rig, true).await?;
        let order =
            ["schema_pre", "copy", "schema_post", "catch_up", "replicating", "cutover", "switched"];
        let at = order.iter().position(|one| *one == phase).unwrap();
        let seen = migration.watch(&order[at..], STEP).await?;
        restart(&rig.source, how)?;
        println!("restarted in phase {}", seen.phase);
        // A cutover that was cut short before its commit point may want to be asked for again.
        if migration.watch(&["switched"], Duration::from_secs(60)).await.is_err() {
            migration.cutover(STEP).await?;
        }
        load.each_acknowledged(20, STEP).await?;
        migration.rollback(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_schema_pre_does_not_stop_the_migration() {
    restart_in("schema_pre", Stop::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_copy_does_not_stop_the_migration() {
    restart_in("copy", Stop::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_restart_in_the_copy_does_not_stop_the_migration() {
    restart_in("copy", Stop::Fast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_schema_post_does_not_stop_the_migration() {
    restart_in("schema_post", Stop::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_catch_up_does_not_stop_the_migration() {
    restart_in("catch_up", Stop::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_the_switch_keeps_the_shards_active() {
    restart_in("switched", Stop::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_replicating_or_within_a_cutover_ends_on_one_side() {
    with_extension(2, |rig| async move {
        application(&rig, 1_000).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        restart(&rig.source, Stop::Immediate)?;
        migration.watch(&["replicating"], STEP).await?;
        for delay in [20_u64, 120, 250, 400] {
            migration.verb("reshard_cutover").await?;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            restart(&rig.source, Stop::Immediate)?;
            let end = migration.watch(&["switched", "replicating", "rolled_back"], STEP).await?;
            load.each_acknowledged_by_followers(5, STEP).await?;
            println!(
                "crash after {delay} ms: {}, {:?}",
                end.phase,
                traffic(&rig.source.connect().await?).await?
            );
            migration.cutover(STEP).await?;
            migration.rollback(STEP).await?;
        }
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_a_shard_does_not_stop_the_migration() {
    with_extension(2, |rig| async move {
        application(&rig, 1_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        restart(&rig.shards[1], Stop::Immediate)?;
        load.each_acknowledged(10, STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        restart(&rig.shards[0], Stop::Immediate)?;
        load.each_acknowledged(10, STEP).await?;
        migration.rollback(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_put_back_in_time_follows_its_shards() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let (data, old) = (rig.source.data(), rig.source.folder().join("old"));
        tokio::task::block_in_place(|| {
            rig.source.stop(Stop::Fast)?;
            let copied = Command::new("cp").arg("--archive").arg(&data).arg(&old).status();
            assert!(copied.is_ok_and(|status| status.success()));
            rig.source.start()
        })?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        let written = "INSERT INTO settings VALUES (8888, 0, 'new')";
        for shard in &rig.shards {
            shard.execute(written).await?;
        }

        // As a standby that knew nothing of the switch when it was promoted.
        tokio::task::block_in_place(|| {
            rig.source.stop(Stop::Immediate)?;
            std::fs::remove_dir_all(&data).map_err(Error::io("remove the data"))?;
            std::fs::rename(&old, &data).map_err(Error::io("put the old data back"))?;
            rig.source.start()
        })?;
        wait_until(STEP, "the source to follow", || async {
            let flag = traffic(&rig.source.connect().await?).await?;
            Ok(flag.active_cluster == "prod_sharded" && flag.epoch == 1)
        })
        .await?;
        let refused =
            rig.source.execute("INSERT INTO settings VALUES (9999, 0, 'x')").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("25006"));
        let state = migration.state().await?;
        assert!(
            state.error.as_ref().is_some_and(|e| e.contains("older than a switch")),
            "{state:?}"
        );
        let refused = migration.verb("reshard_cancel").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"));
        migration.verb("reshard_complete").await?;
        wait_until(STEP, "the task to end", || async {
            Ok(migration.state().await?.status == "succeeded")
        })
        .await?;
        for shard in &rig.shards {
            let kept = "SELECT count(*) FROM settings WHERE id = 8888";
            assert_eq!(shard.connect().await?.one::<i64>(kept).await?, 1);
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_that_no_coordinator_can_be_started() {
    with_extension(1, |rig| async move {
        application(&rig, 10).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        // Both are taken: by our launcher and that of logical replication.
        rig.source.set(&[("max_worker_processes", "2")])?;
        restart(&rig.source, Stop::Fast)?;
        let session = rig.source.connect().await?;
        session
            .execute(&format!("SELECT reshard_wait({}, 'switched', '20 s')", migration.id))
            .await
            .unwrap_err();
        let said = session.take_notices().join("; ");
        assert!(said.contains("no coordinator could be started"), "{said}");
        rig.source.set(&[("max_worker_processes", "40")])?;
        restart(&rig.source, Stop::Fast)?;
        migration.cutover(STEP).await
    })
    .await;
}
