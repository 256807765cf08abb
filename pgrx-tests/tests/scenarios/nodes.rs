//! A source of several shards: the same promises as for one.

use std::future::Future;
use std::sync::Arc;

use reshard_scenarios::load::{Active, Load, LoadOptions};
use reshard_scenarios::oracle::{compare_when_quiet, helper_objects, Footprint};
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Stop};

use super::common::{application_of_several, check_outcome, restart, run, KEY, STEP};

async fn several<F, Fut>(sources: usize, shards: usize, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    run(RigOptions::several(sources, shards), body).await;
}

fn writers() -> LoadOptions {
    LoadOptions { followers: 6, ..LoadOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_move_to_three_shards_and_back_and_leave_nothing() {
    several(2, 3, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.cutover(STEP).await?;
        for (number, node) in rig.sources().into_iter().enumerate() {
            let refused = node.execute("UPDATE orders SET stamp = stamp").await.unwrap_err();
            assert_eq!(refused.sqlstate(), Some("25006"), "node {number}");
        }
        for shard in &rig.shards {
            shard.execute("UPDATE orders SET stamp = 'there' WHERE id % 7 = 0").await?;
        }
        rig.shards[0].execute("UPDATE settings SET stamp = 'whole' WHERE id = 1").await?;
        for shard in &rig.shards[1..] {
            shard.execute("UPDATE settings SET stamp = 'whole' WHERE id = 1").await?;
        }
        compare_when_quiet(&rig, KEY, STEP).await?;
        let refused = rig.shards[0].execute("TRUNCATE events").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("0A000"), "{refused}");
        migration.rollback(STEP).await?;
        rig.nodes[0].execute("UPDATE orders SET stamp = 'again' WHERE id % 11 = 0").await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.cutover(STEP).await?;
        migration.complete(STEP).await?;
        for server in rig.servers() {
            let fenced = rig.sources().iter().any(|s| s.name() == server.name());
            let left = helper_objects(server, fenced).await?;
            assert_eq!(left, Vec::<String>::new(), "{}", server.name());
        }
        rig.nodes[0].execute("SELECT reshard_unfence('prod')").await?;
        rig.nodes[0].execute("UPDATE orders SET stamp = stamp").await
    })
    .await;
}

/// There and back twice, under writers on all nodes.
async fn switches_under_writers(sources: usize, shards: usize) {
    several(sources, shards, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        let load = Load::start(&rig, &writers());
        load.each_acknowledged(20, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for number in 0..4 {
            match number % 2 {
                0 => migration.cutover(STEP).await?,
                _ => migration.rollback(STEP).await?,
            }
            load.each_acknowledged(30, STEP).await?;
        }
        migration.cutover(STEP).await?;
        load.each_acknowledged(20, STEP).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.active, Active::Shards);
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_to_three_shards_under_writers_lose_nothing() {
    switches_under_writers(2, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_to_one_shard_under_writers_lose_nothing() {
    switches_under_writers(4, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_to_two_shards_under_writers_lose_nothing() {
    switches_under_writers(4, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_to_four_shards_under_writers_lose_nothing() {
    switches_under_writers(3, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_leaves_nothing_behind_on_any_node() {
    several(2, 3, |rig| async move {
        application_of_several(&rig, 20_000).await?;
        let before = Footprint::of_rig(&rig).await?;
        for phases in [&["copy", "schema_post", "catch_up", "replicating"][..], &["replicating"]] {
            let migration = Migration::start(&rig, false).await?;
            migration.watch(phases, STEP).await?;
            migration.cancel(STEP).await?;
            let after = Footprint::of_rig(&rig).await?;
            for ((server, before), after) in rig.servers().zip(&before).zip(&after) {
                assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
            }
            let joined: i64 = rig.nodes[0]
                .connect()
                .await?
                .one("SELECT count(*) FROM reshard.joined_task")
                .await?;
            assert_eq!(joined, 0);
        }
        Ok(())
    })
    .await;
}

/// Kills another node in a phase; the migration goes on by itself.
async fn kill_in(phases: &'static [&'static str]) {
    several(2, 3, move |rig| async move {
        application_of_several(&rig, 60_000).await?;
        let load = Load::start(&rig, &writers());
        let migration = Migration::start(&rig, false).await?;
        let seen = migration.watch(phases, STEP).await?;
        println!("killed in phase {}", seen.phase);
        tokio::task::block_in_place(|| rig.nodes[0].kill9().and_then(|()| rig.nodes[0].start()))?;
        migration.watch(&["replicating"], STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_does_not_stop_the_copy() {
    kill_in(&["copy", "schema_post", "catch_up", "replicating"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_does_not_stop_the_replication() {
    kill_in(&["replicating"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_on_another_node_is_refused_while_it_is_moved() {
    several(2, 2, |rig| async move {
        application_of_several(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let refused = rig.nodes[0].execute("ALTER TABLE orders ADD note text").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        restart(&rig.nodes[0], Stop::Immediate)?;
        migration.cutover(STEP).await
    })
    .await;
}
