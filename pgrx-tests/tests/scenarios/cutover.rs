//! Switching traffic there and back: nothing lost, nobody writes on the wrong side.

use std::time::Duration;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::traffic;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, RigOptions};

use super::common::{application, check_outcome, run_within, with_extension, STEP};

async fn switch_back_and_forth(migration: &Migration, load: &Load, switches: u32) -> Result<()> {
    for number in 0..switches {
        match number % 2 {
            0 => migration.cutover(STEP).await?,
            _ => migration.rollback(STEP).await?,
        }
        load.each_acknowledged_by_followers(30, STEP).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_and_second_cutover_under_writers_lose_nothing() {
    with_extension(4, |rig| async move {
        application(&rig, 2_000).await?;
        let load = Load::start(&rig, &LoadOptions::default());
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        switch_back_and_forth(&migration, &load, 3).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.switches.len(), 3);
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rollback_the_source_holds_all_that_was_written_on_the_shards() {
    with_extension(2, |rig| async move {
        application(&rig, 1_000).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 6, seed: 7, ..LoadOptions::default() });
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["switched"], STEP).await?;
        load.each_acknowledged(50, STEP).await?;
        migration.rollback(STEP).await?;
        load.each_acknowledged_by_followers(30, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn twenty_switches_under_eight_writers_lose_nothing_and_stay_below_300_ms() {
    run_within(RigOptions::new(4).alone(), Duration::from_secs(1_200), |rig| async move {
        application(&rig, 20_000).await?;
        let load = Load::start(&rig, &LoadOptions { direct: 2, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        switch_back_and_forth(&migration, &load, 20).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.switches.len(), 20);
        check_outcome(&rig, &outcome).await?;
        let (median, longest) = outcome.pause_summary().unwrap();
        println!("pause: median {median:.0?}, longest {longest:.0?}");
        assert!(median < Duration::from_millis(300), "median pause {median:.0?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_direct_writers_had_acknowledged_is_on_the_shards_and_the_rest_got_25006() {
    with_extension(4, |rig| async move {
        application(&rig, 1_000).await?;
        let load = Load::start(
            &rig,
            &LoadOptions { followers: 2, direct: 6, seed: 3, ..LoadOptions::default() },
        );
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged_by_followers(40, STEP).await?;
        let outcome = load.finish().await?;
        for client in outcome.clients.iter().filter(|client| !client.follows) {
            assert!(client.counts.refused > 0, "client {} was never refused", client.client);
            assert!(client.counts.acknowledged > 0);
        }
        check_outcome(&rig, &outcome).await?;

        let session = rig.source.connect().await?;
        let read: i64 = session.one("SELECT count(*) FROM orders").await?;
        assert!(read > 0);
        let epoch = traffic(&session).await?.epoch;
        let refused = session.execute("DELETE FROM orders").await.unwrap_err();
        let error = refused.sql().unwrap();
        assert_eq!(error.code.as_deref(), Some("25006"));
        let hint = error.hint.clone().unwrap_or_default();
        assert!(hint.contains("prod_sharded") && hint.contains(&epoch.to_string()), "hint: {hint}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_at_a_time_takes_writes() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let write = "INSERT INTO settings VALUES (9000000, 0, 'x') ON CONFLICT (id) DO UPDATE SET stamp = 'y'";
        let code = |outcome: Result<()>| outcome.err().and_then(|error| error.sqlstate().map(str::to_owned));
        for shard in &rig.shards {
            assert_eq!(code(shard.execute(write).await).as_deref(), Some("25006"), "{} before", shard.name());
        }
        migration.cutover(STEP).await?;
        assert_eq!(code(rig.source.execute(write).await).as_deref(), Some("25006"));
        for shard in &rig.shards {
            shard.execute(write).await?;
        }
        migration.rollback(STEP).await?;
        for shard in &rig.shards {
            assert_eq!(code(shard.execute(write).await).as_deref(), Some("25006"), "{} after", shard.name());
        }
        rig.source.execute(write).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_has_written_before_the_fence_ends_on_its_own_side() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for isolation in ["READ COMMITTED", "REPEATABLE READ"] {
            let session = rig.source.connect().await?;
            session.execute(&format!("BEGIN ISOLATION LEVEL {isolation}")).await?;
            session.execute("UPDATE orders SET stamp = 'open' WHERE id = 1").await?;
            migration.verb("reshard_cutover").await?;
            wait_until(STEP, "the fence to wait for the transaction", || async {
                let waiting =
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
                Ok(rig.source.connect().await?.one::<i64>(waiting).await? > 0)
            })
            .await?;
            session.execute("UPDATE orders SET stamp = 'late' WHERE id = 2").await?;
            assert_eq!(traffic(&rig.source.connect().await?).await?.active_cluster, "prod");
            session.execute("COMMIT").await?;
            migration.watch(&["switched"], STEP).await?;
            let mut seen = Vec::new();
            for shard in &rig.shards {
                seen.extend(
                    shard
                        .connect()
                        .await?
                        .column("SELECT stamp FROM orders WHERE id IN (1, 2) AND owner = 0")
                        .await?,
                );
            }
            seen.sort();
            assert_eq!(seen, ["late", "open"], "{isolation}");
            migration.rollback(STEP).await?;
            rig.source.execute("UPDATE orders SET stamp = 'again' WHERE id IN (1, 2)").await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cutover_verbs_are_idempotent_and_say_which_way_they_go() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let session = rig.source.connect().await?;
        let before = traffic(&session).await?;
        session
            .execute(&format!("SELECT reshard_cutover({}, dry_run => true)", migration.id))
            .await?;
        migration.cutover(STEP).await?;
        let first = traffic(&session).await?;
        assert_eq!(
            first.epoch,
            before.epoch + 1,
            "a dry run or the switch moved the epoch otherwise"
        );
        migration.cutover(STEP).await?;
        assert_eq!(traffic(&session).await?, first);

        session.take_notices();
        session.execute("SELECT reshard_cutover()").await?;
        let notices = session.take_notices().join("\n");
        assert!(notices.contains("prod"), "no notice names the direction: {notices}");
        migration.watch(&["rolled_back"], STEP).await?;
        migration.rollback(STEP).await?;
        assert_eq!(traffic(&session).await?.epoch, first.epoch + 1);
        Ok(())
    })
    .await;
}

/// The error that an aborted cutover gives to who waits for it.
async fn abort_of(migration: &Migration) -> String {
    let error = migration.wait("switched", STEP).await.unwrap_err();
    let error = error.sql().unwrap();
    assert_eq!(error.code.as_deref(), Some("55P03"), "{error}");
    error.full_text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_in_the_way_is_named_and_holds_writers_no_longer_than_the_timeout() {
    let options = RigOptions::new(2)
        .source("reshard.drain_timeout", "700ms")
        .source("max_prepared_transactions", "5");
    run_within(options, Duration::from_secs(300), |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        load.each_acknowledged(5, STEP).await?;

        let idle = rig.source.connect_as("postgres", "app").await?;
        idle.execute("SET application_name = 'nightly'; BEGIN; UPDATE settings SET stamp = stamp WHERE id = 7").await?;
        let prepared = rig.source.connect().await?;
        prepared
            .execute("BEGIN; UPDATE settings SET stamp = stamp WHERE id = 8; PREPARE TRANSACTION 'left behind'")
            .await?;
        migration.verb("reshard_cutover").await?;
        let error = abort_of(&migration).await;
        for part in ["nightly", "postgres", "idle in transaction", "WHERE id = 7", "left behind"] {
            assert!(error.contains(part), "\"{part}\" is not named: {error}");
        }
        load.each_acknowledged(5, STEP).await?;
        idle.execute("COMMIT").await?;
        rig.source.execute("COMMIT PREPARED 'left behind'").await?;

        // Sessions can be ended, prepared transactions can't.
        rig.source.set(&[("reshard.drain_action", "terminate")])?;
        rig.source.execute("SELECT pg_reload_conf()").await?;
        wait_until(STEP, "the new setting", || async {
            let shown = rig.source.text("SHOW reshard.drain_action").await?;
            Ok(shown.as_deref() == Some("terminate"))
        })
        .await?;
        idle.execute("BEGIN; UPDATE settings SET stamp = stamp WHERE id = 7").await?;
        migration.cutover(STEP).await?;
        let ended = idle.execute("COMMIT").await;
        assert!(ended.is_err_and(|error| error.is_disconnect()), "the session was not ended");
        let drained: i64 = rig
            .source
            .connect()
            .await?
            .one("SELECT count(*) FROM reshard.events WHERE kind = 'drained' AND detail::text LIKE '%nightly%'")
            .await?;
        assert_eq!(drained, 1);
        let longest = load.finish().await?;
        assert!(longest.failed().is_empty(), "{:?}", longest.failed());
        migration.rollback(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_checks_all_and_tells_the_pause_to_expect() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let session = rig.source.connect().await?;
        let before = traffic(&session).await?;
        for (number, options) in ["{}", r#"{"fence": false}"#].into_iter().enumerate() {
            session
                .execute(&format!(
                    "SELECT reshard_cutover({}, dry_run => true, options => '{options}')",
                    migration.id
                ))
                .await?;
            wait_until(STEP, "the dry run to end", || async {
                let ended = "SELECT count(DISTINCT cutover_id) FROM reshard.cutovers
                              WHERE dry_run AND status = 'succeeded' AND pause_ms > 0";
                Ok(session.one::<usize>(ended).await? == number + 1)
            })
            .await?;
        }
        let held = "SELECT count(*) FROM reshard.cutovers WHERE step = 'lease'";
        assert_eq!(session.one::<i64>(held).await?, 1, "writers were held without the fence");
        assert_eq!(traffic(&session).await?, before);
        let told = "SELECT count(*) FROM reshard.events WHERE kind = 'dry_run'";
        assert_eq!(session.one::<i64>(told).await?, 2);
        for options in [r#"{"fence": 1}"#, r#"{"fences": false}"#, "[]", r#"{"fence": false}"#] {
            let sql = format!("SELECT reshard_cutover({}, options => '{options}')", migration.id);
            let error = session.execute(&sql).await.unwrap_err();
            assert_eq!(error.sqlstate(), Some("22023"), "{error}");
        }
        Ok(())
    })
    .await;
}
