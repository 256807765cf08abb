//! A switch that can't be made is called off in good time, says why, and leaves the
//! active cluster as it was.

use std::time::{Duration, Instant};

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::traffic;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Stop};

use super::common::{application, check_outcome, restart, run, with_extension, STEP};

/// Refused by a closed cluster, and takes no row from a client that is in a transaction.
const PROBE: &str = "UPDATE orders SET stamp = stamp WHERE false";

/// The error that the switch was called off with, for who waits for it.
async fn called_off(migration: &Migration, phase: &str, code: &str) -> String {
    let error = migration.wait(phase, STEP).await.unwrap_err();
    let error = error.sql().unwrap();
    assert_eq!(error.code.as_deref(), Some(code), "{}", error.full_text());
    error.full_text()
}

async fn source_is_open(rig: &Rig, epoch: i64) -> Result<()> {
    let flag = traffic(&rig.source.connect().await?).await?;
    assert_eq!(
        (flag.active_cluster.as_str(), flag.state.as_str(), flag.epoch),
        ("prod", "open", epoch)
    );
    rig.source.execute(PROBE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_ends_nobodys_session() {
    let options = RigOptions::new(2)
        .source("reshard.drain_timeout", "300ms")
        .source("reshard.drain_action", "terminate");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let idle = rig.source.connect().await?;
        idle.execute(
            "SET application_name = 'report'; BEGIN; UPDATE orders SET stamp = 'x' WHERE id = 1",
        )
        .await?;
        rig.source
            .execute(&format!("SELECT reshard_cutover({}, dry_run => true)", migration.id))
            .await?;
        let error = called_off(&migration, "switched", "55P03").await;
        assert!(error.contains("report"), "{error}");
        idle.execute("COMMIT").await?;
        source_is_open(&rig, 0).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_flag_calls_the_switch_off() {
    let options = RigOptions::new(2).source("reshard.cutover_timeout", "1500ms");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        // A pooler that has acknowledged beforehand: the lock comes behind the announcement.
        let source = rig.source.connect().await?;
        source.execute("SELECT reshard_pooler_ack('p', 0, 'open')").await?;
        migration.verb("reshard_cutover").await?;
        wait_until(STEP, "the announcement", || async {
            Ok(traffic(&source).await?.state == "paused")
        })
        .await?;
        let admin = rig.source.connect().await?;
        admin.execute("BEGIN; SELECT FROM reshard.traffic FOR UPDATE").await?;
        source.execute("SELECT reshard_pooler_ack('p', 0, 'paused')").await?;
        let began = Instant::now();
        let direct = rig.source.connect().await?;
        wait_until(STEP, "the source to take writes again", || async {
            match direct.execute(PROBE).await {
                Ok(()) => Ok(rig
                    .source
                    .text("SELECT status FROM reshard.cutover ORDER BY id DESC LIMIT 1")
                    .await?
                    .as_deref()
                    != Some("running")
                    || began.elapsed() > Duration::from_secs(3)),
                Err(error) if error.sqlstate() == Some("25006") => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await?;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        admin.execute("ROLLBACK").await?;
        let error = called_off(&migration, "switched", "55P03").await;
        assert!(error.contains("lock timeout"), "{error}");
        source.execute("DELETE FROM reshard.pooler").await?;
        load.each_acknowledged(5, STEP).await?;
        source_is_open(&rig, 0).await?;
        migration.cutover(STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_away_calls_the_switch_off_before_it_begins() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Immediate))?;
        migration.verb("reshard_cutover").await?;
        let error = called_off(&migration, "switched", "08001").await;
        assert!(error.contains("shard 1"), "{error}");
        let steps = "SELECT string_agg(step || ' ' || status, ', ') FROM reshard.cutovers";
        assert_eq!(rig.source.text(steps).await?.as_deref(), Some("prepare aborted"));
        source_is_open(&rig, 0).await?;
        tokio::task::block_in_place(|| rig.shards[1].start())?;
        migration.cutover(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_holds_up_a_slot_of_the_way_back_is_named() {
    let options = RigOptions::new(2).source("reshard.cutover_timeout", "2s");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        // In another database of the shard's server: slots wait for all.
        let other = rig.shards[0].connect_as("postgres", "postgres").await?;
        other.execute("SET application_name = 'elsewhere'; BEGIN; CREATE TABLE t (v int)").await?;
        migration.verb("reshard_cutover").await?;
        let error = called_off(&migration, "switched", "55P03").await;
        assert!(error.contains("elsewhere") && error.contains("shard 0"), "{error}");
        source_is_open(&rig, 0).await?;
        other.execute("ROLLBACK").await?;
        migration.cutover(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_back_is_tried_before_the_switch() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        // Found by preflight at the start; here it comes later.
        rig.source.set(&[("max_logical_replication_workers", "0")])?;
        restart(&rig.source, Stop::Fast)?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verb("reshard_cutover").await?;
        let error = called_off(&migration, "switched", "55P03").await;
        assert!(
            error.contains("way back") && error.contains("max_logical_replication_workers"),
            "{error}"
        );
        source_is_open(&rig, 0).await?;
        rig.source.set(&[("max_logical_replication_workers", "8")])?;
        restart(&rig.source, Stop::Fast)?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        rig.shards[0].execute("UPDATE settings SET stamp = 'there' WHERE id = 1").await?;
        wait_until(STEP, "the way back", || async {
            Ok(rig.source.text("SELECT stamp FROM settings WHERE id = 1").await?.as_deref()
                == Some("there"))
        })
        .await?;
        for server in rig.servers() {
            let trials = server
                .text(
                    "SELECT string_agg(pubname, ', ') FROM pg_publication WHERE pubname ~ 'trial'",
                )
                .await?;
            assert_eq!(trials, None, "{}", server.name());
        }
        migration.rollback(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_holds_a_switch_up_also_after_a_crash() {
    let options = RigOptions::new(2)
        .source("reshard.drain_timeout", "500ms")
        .source("max_prepared_transactions", "5");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        rig.source.execute("BEGIN; UPDATE orders SET stamp = 'prepared' WHERE id = 1 AND owner = 0; PREPARE TRANSACTION 'kept'").await?;
        tokio::task::block_in_place(|| rig.source.kill9().and_then(|()| rig.source.start()))?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verb("reshard_cutover").await?;
        let error = called_off(&migration, "switched", "55P03").await;
        assert!(error.contains("kept"), "{error}");
        source_is_open_but_for_the_prepared(&rig).await?;
        rig.source.execute("COMMIT PREPARED 'kept'").await?;
        migration.cutover(STEP).await?;
        let mut found = 0;
        for shard in &rig.shards {
            let query = "SELECT count(*) FROM orders WHERE id = 1 AND owner = 0 AND stamp = 'prepared'";
            found += shard.connect().await?.one::<i64>(query).await?;
        }
        assert_eq!(found, 1);
        Ok(())
    })
    .await;
}

async fn source_is_open_but_for_the_prepared(rig: &Rig) -> Result<()> {
    rig.source.execute("UPDATE orders SET stamp = stamp WHERE id > 1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_that_is_taken_off_in_the_middle_calls_the_switch_off() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let source = rig.source.connect().await?;
        source.execute("SET reshard.ddl_guard = off").await?;
        for take_off in [
            "ALTER TABLE orders DISABLE TRIGGER reshard_fence",
            "DROP TRIGGER reshard_fence ON settings",
        ] {
            source.execute("SELECT reshard_pooler_ack('p', 0, 'open')").await?;
            migration.verb("reshard_cutover").await?;
            wait_until(STEP, "the announcement", || async {
                Ok(traffic(&source).await?.state == "paused")
            })
            .await?;
            source.execute(take_off).await?;
            source.execute("SELECT reshard_pooler_ack('p', 0, 'paused')").await?;
            let error = called_off(&migration, "switched", "55000").await;
            assert!(error.contains("lost their fence"), "{error}");
            source_is_open(&rig, 0).await?;
        }
        source.execute("DELETE FROM reshard.pooler").await?;
        migration.cutover(STEP).await?;
        let refused = source.execute("DELETE FROM settings").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("25006"), "{refused}");
        Ok(())
    })
    .await;
}
