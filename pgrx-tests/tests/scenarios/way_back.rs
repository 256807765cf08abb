//! The way back is watched while nobody needs it, so that it is there when somebody does.

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Stop};

use super::common::{application, check_outcome, restart, run, with_extension, STEP};

async fn error_and_hint(rig: &Rig, migration: &Migration) -> Result<String> {
    let sql = format!(
        "SELECT coalesce(error, '') || ' HINT: ' || coalesce(hint, '') FROM reshard.tasks WHERE id = {}",
        migration.id
    );
    Ok(rig.source.text(&sql).await?.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_on_the_way_back_is_shown_with_its_row_and_can_be_mended() {
    let options = RigOptions::new(2)
        .source("reshard.slot_wal_warning", "2MB")
        .source("wal_retrieve_retry_interval", "500ms");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;

        let repair = "SET application_name = 'reshard repair'";
        rig.source.execute(&format!("{repair}; INSERT INTO settings VALUES (5555, 0, 'stray')")).await?;
        rig.shards[0].execute("INSERT INTO settings VALUES (5555, 0, 'new')").await?;
        rig.shards[1].execute("INSERT INTO settings VALUES (5555, 0, 'new')").await?;
        wait_for(STEP, "the conflict to be shown", || async {
            let text = error_and_hint(&rig, &migration).await?;
            let all = ["settings_pkey", "(id)=(5555)", "public.settings", "reshard repair", "SKIP (lsn = '"];
            Ok(match all.iter().all(|part| text.contains(part)) {
                true => Seen::Done(()),
                false => Seen::NotYet(text),
            })
        })
        .await?;
        rig.shards[0]
            .execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 4)")
            .await?;
        wait_until(STEP, "a warning of the WAL that is kept", || async {
            let warned = "SELECT count(*) FROM reshard.events WHERE kind = 'slot_wal' AND severity = 'warning'";
            Ok(rig.source.connect().await?.one::<i64>(warned).await? > 0)
        })
        .await?;

        rig.source.execute(&format!("{repair}; DELETE FROM settings WHERE id = 5555")).await?;
        wait_until(STEP, "the flow to go on", || async {
            let stamp = rig.source.text("SELECT stamp FROM settings WHERE id = 5555").await?;
            let error = error_and_hint(&rig, &migration).await?;
            Ok(stamp.as_deref() == Some("new") && !error.contains("settings_pkey"))
        })
        .await?;
        migration.rollback(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_times_there_and_back_with_workers_ended_and_a_shard_restarted_lose_nothing() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for round in 0..5 {
            migration.cutover(STEP).await?;
            load.each_acknowledged_by_followers(10, STEP).await?;
            if round == 1 {
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ '^reshard '";
                rig.source.execute(all).await?;
            }
            if round == 2 {
                restart(&rig.shards[1], Stop::Immediate)?;
                load.each_acknowledged_by_followers(10, STEP).await?;
            }
            migration.rollback(STEP).await?;
            load.each_acknowledged_by_followers(10, STEP).await?;
        }
        migration.cutover(STEP).await?;
        load.each_acknowledged_by_followers(10, STEP).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.switches.len(), 11);
        check_outcome(&rig, &outcome).await
    })
    .await;
}

/// Tables of which a part comes while traffic is on the shards.
const PARTS: &str = "
CREATE TABLE parts (tenant_id bigint NOT NULL, id bigint NOT NULL, stamp text, PRIMARY KEY (tenant_id, id))
    PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
INSERT INTO parts SELECT g, g, 'seed' FROM generate_series(1, 50) g";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_only_the_shards_have_stops_the_way_back() {
    with_extension(2, |rig| async move {
        rig.source.execute("CREATE SCHEMA IF NOT EXISTS public").await?;
        application(&rig, 500).await?;
        rig.source.execute(PARTS).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        for shard in &rig.shards {
            shard
                .execute(
                    "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1000) TO (2000);
                     INSERT INTO parts VALUES (7, 1500, 'new')",
                )
                .await?;
        }
        migration.verb("reshard_rollback").await?;
        let error = migration.wait("rolled_back", STEP).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("55000"), "{error}");
        assert!(error.sql().unwrap().full_text().contains("parts_2"), "{error}");
        // The shards go on, and so does the way back, once the rows have a place there.
        for shard in &rig.shards {
            shard
                .execute(
                    "UPDATE parts SET stamp = 'moved' WHERE id = 1;
                     ALTER TABLE parts DETACH PARTITION parts_2; DROP TABLE parts_2",
                )
                .await?;
        }
        migration.rollback(STEP).await?;
        let moved = rig.source.text("SELECT stamp FROM parts WHERE id = 1").await?;
        assert_eq!(moved.as_deref(), Some("moved"));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_waits_is_made_anew_and_one_that_is_lost_ends_the_way_back() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let drop_all = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots
                         WHERE slot_name ~ '^reshard_' AND NOT active";
        migration.cutover(STEP).await?;
        load.each_acknowledged_by_followers(10, STEP).await?;
        // Those of the way there wait now, on the source.
        assert_eq!(rig.source.connect().await?.one::<i64>(drop_all).await?, 2);
        migration.rollback(STEP).await?;
        load.each_acknowledged_by_followers(10, STEP).await?;
        assert_eq!(rig.shards[0].connect().await?.one::<i64>(drop_all).await?, 1);
        migration.cutover(STEP).await?;
        load.each_acknowledged_by_followers(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await?;

        // The one that brings changes back can't be replaced.
        restart(&rig.source, Stop::Fast)?;
        wait_until(STEP, "the slot to be dropped", || async {
            let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name ~ '^reshard_'";
            rig.shards[0].execute(end).await?;
            let dropped = rig.shards[0].connect().await?.one::<i64>(drop_all).await;
            Ok(dropped.is_ok_and(|dropped| dropped == 1))
        })
        .await?;
        migration.watch(&["failed"], STEP).await?;
        let text = error_and_hint(&rig, &migration).await?;
        assert!(text.contains("reshard_complete"), "{text}");
        rig.shards[0].execute("UPDATE settings SET stamp = 'on' WHERE id = 1").await?;
        migration.verb("reshard_complete").await?;
        wait_until(STEP, "the end", || async {
            Ok(migration.state().await?.status == "succeeded")
        })
        .await
    })
    .await;
}
