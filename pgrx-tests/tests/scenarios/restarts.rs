//! The source restarts in each phase; the migration goes on by itself.

use std::time::Duration;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::traffic;
use reshard_scenarios::{Migration, Stop};

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
