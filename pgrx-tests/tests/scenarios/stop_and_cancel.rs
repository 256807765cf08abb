//! Stop, resume and cancel in each phase; what is left behind: nothing.

use std::time::Duration;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::{declare, traffic, SOURCE};
use reshard_scenarios::oracle::{helper_objects, Footprint};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, Stop};

use super::common::{application, check_outcome, insert_only, restart, with_extension, KEY, STEP};
use super::copy::{fails_with, limit};

const PHASES: [&str; 6] =
    ["schema_pre", "copy", "schema_post", "catch_up", "replicating", "switched"];

fn from(phase: &str) -> &'static [&'static str] {
    let at = PHASES.iter().position(|one| *one == phase).unwrap();
    &PHASES[at..]
}

async fn nothing_since(rig: &Rig, before: &[Footprint]) -> Result<()> {
    let after = Footprint::of_rig(rig).await?;
    for ((server, before), after) in rig.servers().zip(before).zip(&after) {
        assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
    }
    Ok(())
}

async fn cancel_in(phase: &'static str) {
    with_extension(2, move |rig| async move {
        application(&rig, 30_000).await?;
        insert_only(&rig).await?;
        let before = Footprint::of_rig(&rig).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        let seen = migration.watch(from(phase), STEP).await?;
        println!("cancelled in phase {}", seen.phase);
        migration.cancel(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        nothing_since(&rig, &before).await?;
        // A second migration starts as if there had been none.
        let again = Migration::start(&rig, true).await?;
        again.watch(&["switched"], STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_in_schema_pre_leaves_nothing_behind() {
    cancel_in("schema_pre").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_in_the_copy_leaves_nothing_behind() {
    cancel_in("copy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_in_schema_post_leaves_nothing_behind() {
    cancel_in("schema_post").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_while_replicating_leaves_nothing_behind() {
    cancel_in("replicating").await;
}

async fn stop_and_resume_in(phase: &'static str) {
    with_extension(2, move |rig| async move {
        application(&rig, 60_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, pace: Duration::from_millis(20), ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        let seen = migration.watch(from(phase), STEP).await?;
        println!("stopped in phase {}", seen.phase);
        migration.verb("reshard_stop_task").await?;
        wait_until(STEP, "the task to stop", || async {
            Ok(migration.state().await?.status == "failed")
        })
        .await?;
        wait_until(STEP, "no worker of the task to be at work", || async {
            let session = rig.source.connect().await?;
            let busy: i64 = session
                .one("SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('reshard copy worker', 'reshard verify worker')")
                .await?;
            Ok(busy == 0)
        })
        .await?;
        load.each_acknowledged(10, STEP).await?;
        migration.verb("reshard_resume").await?;
        wait_until(STEP, "the task to run on and replicate", || async {
            let state = migration.state().await?;
            Ok(state.status == "running" && state.phase == "replicating")
        })
        .await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_stopped_in_the_copy_goes_on_from_there() {
    stop_and_resume_in("copy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_stopped_in_schema_post_goes_on_from_there() {
    stop_and_resume_in("schema_post").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_stopped_while_replicating_goes_on_from_there() {
    stop_and_resume_in("replicating").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_leaves_only_the_fence_and_its_end_leaves_nothing() {
    with_extension(2, |rig| async move {
        application(&rig, 1_000).await?;
        let before = Footprint::of(&rig.source).await?;
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["switched"], STEP).await?;
        migration.complete(STEP).await?;
        for server in rig.servers() {
            assert_eq!(
                helper_objects(server, server.name() == "source").await?,
                Vec::<String>::new(),
                "{}",
                server.name()
            );
        }
        let refused = rig.source.execute("DELETE FROM orders").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("25006"), "{refused}");
        for shard in &rig.shards {
            shard.execute("UPDATE settings SET stamp = 'mine now'").await?;
        }
        rig.source.execute("SELECT reshard_unfence('prod')").await?;
        wait_until(STEP, "the fence to be gone", || async {
            Ok(rig.source.execute("UPDATE orders SET stamp = stamp WHERE id = 1").await.is_ok())
        })
        .await?;
        let after = Footprint::of(&rig.source).await?;
        assert_eq!(after.since(&before), Vec::<String>::new());
        rig.source.execute("DROP EXTENSION reshard CASCADE").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_while_a_slot_waits_for_a_transaction_leaves_no_slot() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let before = Footprint::of_rig(&rig).await?;
        let open = rig.source.connect().await?;
        // A number of its own, but no lock: tables can be fenced all the same.
        open.execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let migration = Migration::start(&rig, false).await?;
        wait_until(STEP, "the slot to wait", || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                            WHERE application_name = 'reshard snapshot' AND wait_event_type = 'Lock'";
            Ok(rig.source.connect().await?.one::<i64>(waiting).await? > 0)
        })
        .await?;
        migration.cancel(STEP).await?;
        open.execute("COMMIT").await?;
        wait_until(STEP, "the session that made the slot to end", || async {
            let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reshard snapshot'";
            Ok(rig.source.connect().await?.one::<i64>(left).await? == 0)
        })
        .await?;
        nothing_since(&rig, &before).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_is_created_anew_does_not_meet_what_a_dropped_one_left() {
    with_extension(2, |rig| async move {
        application(&rig, 1_000).await?;
        let first = Migration::start(&rig, false).await?;
        first.watch(&["replicating"], STEP).await?;
        rig.source
            .execute("SET reshard.ddl_guard = off; DROP EXTENSION reshard CASCADE; DROP PUBLICATION all_tables")
            .await?;
        for shard in &rig.shards {
            shard.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await?;
        }
        declare(&rig, KEY).await?;
        let second = Migration::start(&rig, false).await?;
        assert_eq!(second.id, first.id);
        second.watch(&["replicating"], STEP).await?;
        second.cancel(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_that_a_shard_is_missing_from_is_ended_once_it_is_back() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
        migration.verb("reshard_complete").await?;
        wait_until(STEP, "the task to tell what is missing", || async {
            Ok(migration.state().await?.error.is_some_and(|error| error.contains("shard 1")))
        })
        .await?;
        let left = "SELECT count(*) FROM pg_replication_slots";
        wait_until(STEP, "the other shard to keep no WAL for it", || async {
            Ok(rig.shards[0].connect().await?.one::<i64>(left).await? == 0)
        })
        .await?;
        assert_ne!(migration.state().await?.status, "succeeded");
        tokio::task::block_in_place(|| rig.shards[1].start())?;
        migration.wait("done", STEP).await?;
        assert_eq!(rig.shards[1].connect().await?.one::<i64>(left).await?, 0);
        Ok(())
    })
    .await;
}

/// Waits until a cancel that does not come to its end names why.
async fn waits_for(migration: &Migration, cause: &str) -> Result<()> {
    wait_until(STEP, format!("the task to name {cause}"), || async {
        let error = migration.state().await?.error.unwrap_or_default();
        Ok(error.contains("could not clean up on every server") && error.contains(cause))
    })
    .await
}

/// A cancel that has not ended takes nothing else, and nothing was switched.
async fn only_ends(rig: &Rig, migration: &Migration) -> Result<()> {
    assert_eq!(migration.state().await?.status, "running");
    for verb in ["reshard_resume", "reshard_stop_task", "reshard_cutover", "reshard_verify"] {
        let refused = migration.verb(verb).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        assert!(refused.to_string().contains("was asked to end"), "{refused}");
    }
    let session = rig.source.connect().await?;
    assert_eq!(session.one::<i64>("SELECT count(*) FROM reshard.cutovers").await?, 0);
    assert_eq!(traffic(&session).await?.active_cluster, SOURCE);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM pg_replication_slots").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_of_a_copy_that_a_shard_is_missing_from_never_goes_on_and_ends_once_it_is_back() {
    with_extension(2, |rig| async move {
        application(&rig, 30_000).await?;
        let before = Footprint::of_rig(&rig).await?;
        limit(&rig, 300).await?;
        // It would switch as soon as it can.
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["copy"], STEP).await?;
        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
        migration.verb("reshard_cancel").await?;
        waits_for(&migration, "shard 1").await?;
        limit(&rig, 0).await?;
        only_ends(&rig, &migration).await?;
        restart(&rig.source, Stop::Immediate)?;
        waits_for(&migration, "shard 1").await?;
        only_ends(&rig, &migration).await?;
        tokio::task::block_in_place(|| rig.shards[1].start())?;
        migration.watch(&["cancelled"], STEP).await?;
        assert_eq!(migration.state().await?.error, None);
        nothing_since(&rig, &before).await?;
        Migration::start(&rig, true).await?.watch(&["switched"], STEP).await.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_and_cancel_while_replicating_do_what_they_can_and_name_who_is_missing_or_in_the_way()
{
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let before = Footprint::of_rig(&rig).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let enabled = "SELECT count(*) FROM pg_subscription WHERE subenabled";

        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
        migration.verb("reshard_stop_task").await?;
        fails_with(&migration, "the task was stopped: Subscriptions stay enabled: ").await?;
        assert_eq!(rig.shards[0].connect().await?.one::<i64>(enabled).await?, 0);
        let named: i64 = rig
            .source
            .connect()
            .await?
            .one("SELECT count(*) FROM reshard.events WHERE kind = 'stopped' AND detail ->> 'detail' LIKE '%shard 1%'")
            .await?;
        assert_eq!(named, 1);
        tokio::task::block_in_place(|| rig.shards[1].start())?;
        migration.verb("reshard_resume").await?;
        wait_until(STEP, "all subscriptions to be enabled again", || async {
            let mut all = 0;
            for shard in &rig.shards {
                all += shard.connect().await?.one::<i64>(enabled).await?;
            }
            Ok(all == 2)
        })
        .await?;

        let reader = rig.shards[0].connect().await?;
        reader.execute("BEGIN; LOCK TABLE pg_catalog.pg_subscription IN SHARE MODE").await?;
        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
        migration.verb("reshard_cancel").await?;
        waits_for(&migration, "In the way: pid").await?;
        only_ends(&rig, &migration).await?;
        reader.execute("COMMIT").await?;
        waits_for(&migration, "shard 1").await?;
        tokio::task::block_in_place(|| rig.shards[1].start())?;
        migration.watch(&["cancelled"], STEP).await?;
        nothing_since(&rig, &before).await
    })
    .await;
}
