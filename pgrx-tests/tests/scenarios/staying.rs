//! Shards that are in both clusters: only rows of the shards that join them move, and these
//! are gone from where they were only when the migration is complete.

use std::sync::Arc;

use reshard_scenarios::load::{tenants, Active, Load, LoadOptions, Outcome};
use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::{
    check_record_but, compare_moved_when_quiet, helper_objects, Footprint,
};
use reshard_scenarios::placement::Placement;
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server, SqlError, Stop};

use super::common::{application, application_of_several, restart, run, switch_thrice, KEY, STEP};

const FOLLOWERS: u32 = 6;

fn writers() -> LoadOptions {
    LoadOptions { followers: FOLLOWERS, ..LoadOptions::default() }
}

/// What a server refuses.
async fn refused(server: &Server, sql: &str) -> Result<SqlError> {
    match server.execute(sql).await {
        Err(Error::Sql(error)) => Ok(*error),
        Err(other) => Err(other),
        Ok(()) => Err(Error::Unexpected(format!("not refused: {sql}"))),
    }
}

/// The clients' record against the active cluster. Rows that have moved stay where they
/// were until `removed`.
pub async fn check(rig: &Rig, outcome: &Outcome, removed: bool) -> Result<()> {
    let failed = outcome.failed();
    assert!(failed.is_empty(), "{failed:#?}");
    let (sources, destination) = (rig.sources(), rig.destination());
    let nodes = sources.len() as u64;
    let homes = |tenant: i64| {
        let there = rig.placement.shard_of(tenant, destination.len() as u64);
        (rig.source_placement.shard_of(tenant, nodes), there)
    };
    let rows = match outcome.active {
        Active::Source => {
            let arrived = |tenant, server| homes(tenant).0 != server && homes(tenant).1 == server;
            check_record_but(&sources, outcome, arrived).await?.into_result()?
        }
        Active::Shards => {
            let left =
                |tenant, server| !removed && homes(tenant).0 == server && homes(tenant).1 != server;
            check_record_but(&destination, outcome, left).await?.into_result()?
        }
    };
    println!("{rows} rows as acknowledged; {:?}", outcome.counts());
    compare_moved_when_quiet(rig, KEY, removed, STEP).await
}

/// Completes a migration under writers: rows that have moved are gone from where they were,
/// and nothing else of it is left.
async fn complete_under_writers(rig: &Rig, migration: &Migration, load: Load) -> Result<()> {
    migration.complete(STEP).await?;
    load.each_acknowledged(10, STEP).await?;
    check(rig, &load.finish().await?, true).await?;
    for server in rig.servers() {
        let left = helper_objects(server, false).await?;
        assert_eq!(left, Vec::<String>::new(), "{}", server.name());
    }
    let session = rig.source.connect().await?;
    let removed: i64 = session
        .one(&format!("SELECT sum(rows) FROM reshard.removals WHERE task_id = {}", migration.id))
        .await?;
    assert!(removed > 0);
    let unfinished =
        "SELECT count(*) FROM reshard.removals WHERE percent < 100 OR finished_at IS NULL";
    assert_eq!(session.one::<i64>(unfinished).await?, 0);
    // The other shards of the source show the same.
    let shown = format!(
        "SELECT to_jsonb(r) - 'node' FROM reshard.removals AS r WHERE task_id = {} ORDER BY 1",
        migration.id
    );
    let removals = session.column(&shown).await?;
    for node in &rig.nodes {
        let what = format!("{} to show what was removed", node.name());
        let session = node.connect().await?;
        wait_until(STEP, &what, || async { Ok(session.column(&shown).await? == removals) }).await?;
    }
    Ok(())
}

/// There and back twice, under writers, to the end.
async fn there_and_back(rig: Arc<Rig>, flows: usize) -> Result<()> {
    let load = Load::start(&rig, &writers());
    load.each_acknowledged(15, STEP).await?;
    let migration = Migration::start(&rig, false).await?;
    migration.watch(&["replicating"], STEP).await?;
    let slots: usize = rig
        .source
        .connect()
        .await?
        .one("SELECT count(*) FROM reshard.replication_slots WHERE direction = 'forward'")
        .await?;
    assert_eq!(slots, flows);
    switch_thrice(&migration, &load).await?;
    migration.verify(STEP).await?;
    migration.rollback(STEP).await?;
    load.each_acknowledged(10, STEP).await?;
    migration.verify(STEP).await?;
    migration.cutover(STEP).await?;
    load.each_acknowledged(10, STEP).await?;
    complete_under_writers(&rig, &migration, load).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shards_become_four_by_hash_under_writers_and_lose_nothing() {
    run(RigOptions::staying(2, 2), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        there_and_back(rig, 4).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shard_becomes_three_by_hash_under_writers_and_loses_nothing() {
    run(RigOptions::staying(1, 2), |rig| async move {
        application(&rig, 2_000).await?;
        there_and_back(rig, 2).await
    })
    .await;
}

/// Keys of two shards; with `moved`, each fifth one is on a third.
fn list(moved: bool) -> Placement {
    let keys = (1..=i64::from(FOLLOWERS)).flat_map(tenants).chain(1..=200).enumerate();
    let shard_of = |n: usize| if moved && n % 5 == 4 { 2 } else { n % 2 };
    Placement::List { keys: keys.map(|(n, key)| (key, shard_of(n))).collect(), default: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_list_move_to_a_shard_that_joins_under_writers() {
    run(RigOptions::staying(2, 1).placed(list(false), list(true)), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        there_and_back(rig, 2).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_split_and_one_part_moves_under_writers() {
    let placements = (
        Placement::Range { bounds: vec![2_000_006] },
        Placement::Range { bounds: vec![2_000_006, 4_000_011] },
    );
    run(RigOptions::staying(2, 1).placed(placements.0, placements.1), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        // Whether bounds are the same only the server knows.
        there_and_back(rig, 4).await
    })
    .await;
}

/// The same without a third shard: each fifth key of the first one is on the second.
fn tenants_moved() -> Placement {
    let Placement::List { keys, default } = list(false) else { unreachable!() };
    let moved = |(n, (key, shard))| (key, if n % 5 == 0 { 1 } else { shard });
    Placement::List { keys: keys.into_iter().enumerate().map(moved).collect(), default }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_move_from_one_shard_that_stays_to_another_under_writers() {
    run(RigOptions::staying(2, 0).placed(list(false), tenants_moved()), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        there_and_back(rig, 2).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_to_a_cluster_that_was_declared_by_the_present_one() {
    run(RigOptions::staying(2, 0).placed(list(false), list(false)), |rig| async move {
        application_of_several(&rig, 1_000).await?;
        let session = rig.source.connect().await?;
        let tenant: i64 = rig.nodes[0]
            .connect()
            .await?
            .one("SELECT tenant_id FROM orders GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1")
            .await?;
        let counts = |rig: Arc<Rig>| async move {
            let mut counts = Vec::new();
            for server in rig.sources() {
                let count = "SELECT count(*) FROM orders";
                let own = format!("{count} WHERE tenant_id = {tenant}");
                let session = server.connect().await?;
                counts.push((session.one::<i64>(&own).await?, session.one::<i64>(count).await?));
            }
            Ok::<_, Error>(counts)
        };
        let before = counts(Arc::clone(&rig)).await?;
        assert!(before[0].0 > 0 && before[1].0 == 0, "{before:?}");

        for (call, code) in [
            ("reshard_clone_cluster('nowhere', 'prod_b')", "42704"),
            ("reshard_clone_cluster('prod', 'prod_sharded')", "42710"),
            ("reshard_clone_cluster('prod', ' ')", "22023"),
            ("reshard_clone_cluster('prod', NULL)", "22004"),
        ] {
            let error = refused(&rig.source, &format!("SELECT {call}")).await?;
            assert_eq!(error.code.as_deref(), Some(code), "{call}: {error}");
        }
        session.execute("SELECT reshard_clone_cluster('prod', 'prod_b')").await?;
        let placements = |cluster| {
            format!(
                "SELECT to_jsonb(p) - 'cluster' FROM reshard.placements AS p
                  WHERE cluster = '{cluster}' ORDER BY 1"
            )
        };
        let present = session.column(&placements(SOURCE)).await?;
        assert_eq!(present, session.column(&placements("prod_b")).await?);
        for call in [
            format!("reshard_unmap_values('prod_b', 'tenant_id', '{{{tenant}}}')"),
            format!("reshard_map_values('prod_b', 'tenant_id', '{{{tenant}}}', 1)"),
        ] {
            session.execute(&format!("SELECT {call}")).await?;
        }
        let migration = Migration::call(
            &rig,
            &format!(
                "SELECT reshard_start('{SOURCE}', 'prod_b', '{PUBLICATION}', true,
                                      '{{\"staying_shards\": true}}')"
            ),
        )
        .await?;
        migration.watch(&["switched"], STEP).await?;
        migration.complete(STEP).await?;
        let after = counts(Arc::clone(&rig)).await?;
        let moved = before[0].0;
        assert_eq!(after, [(0, before[0].1 - moved), (moved, before[1].1 + moved)]);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shards_become_three_by_hash_and_rows_move_between_those_that_stay() {
    run(RigOptions::staying(2, 1), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        there_and_back(rig, 4).await
    })
    .await;
}

/// A tenant on that shard of the destination.
async fn tenant_on(rig: &Rig, shard: usize) -> Result<i64> {
    rig.source
        .connect()
        .await?
        .one(&format!(
            "SELECT min(g) FROM generate_series(1, 1000) g
              WHERE reshard_shard_for('{DESTINATION}', g::bigint) = {shard}"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_have_moved_are_not_written_to_where_they_were() {
    run(RigOptions::staying(1, 1), |rig| async move {
        application(&rig, 500).await?;
        let [stays, moves] = [tenant_on(&rig, 0).await?, tenant_on(&rig, 1).await?];
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        rig.source
            .execute(&format!("UPDATE orders SET stamp = 'a' WHERE tenant_id = {moves}"))
            .await?;
        migration.cutover(STEP).await?;

        let change = |tenant| format!("UPDATE orders SET stamp = 'b' WHERE tenant_id = {tenant}");
        let insert = |tenant| format!("INSERT INTO orders VALUES ({tenant}, 99999, 0, 'b', 1)");
        for sql in [
            change(moves),
            format!("DELETE FROM orders WHERE tenant_id = {moves}"),
            insert(moves),
            format!("UPDATE orders SET tenant_id = {moves} WHERE tenant_id = {stays}"),
            "UPDATE orders SET stamp = 'b'".to_owned(),
        ] {
            let error = refused(&rig.source, &sql).await?;
            assert_eq!(error.code.as_deref(), Some("25006"), "{sql}: {error}");
            assert!(error.full_text().contains("tenant_id"), "{sql}: {error}");
            assert!(error.hint.is_some(), "{sql}: {error}");
        }
        rig.source.execute(&change(stays)).await?;
        rig.source.execute(&insert(stays)).await?;
        // One statement for all shards.
        for server in rig.destination() {
            server
                .execute("SET reshard.skip_moved_rows = on; UPDATE orders SET stamp = 'c'")
                .await?;
        }
        let error = refused(&rig.source, "TRUNCATE orders").await?;
        assert_eq!(error.code.as_deref(), Some("0A000"), "{error}");
        let error = refused(&rig.shards[0], "TRUNCATE orders").await?;
        assert_eq!(error.code.as_deref(), Some("0A000"), "{error}");
        compare_moved_when_quiet(&rig, KEY, false, STEP).await?;

        migration.rollback(STEP).await?;
        rig.source.execute("UPDATE orders SET stamp = 'd'").await?;
        rig.source.execute(&insert(moves)).await?;
        compare_moved_when_quiet(&rig, KEY, false, STEP).await?;
        migration.cutover(STEP).await?;
        migration.complete(STEP).await?;
        compare_moved_when_quiet(&rig, KEY, true, STEP).await?;
        rig.source.execute("UPDATE orders SET stamp = 'e'").await
    })
    .await;
}

/// Definitions and positions of the application's sequence.
async fn sequence(server: &Server) -> Result<String> {
    server
        .connect()
        .await?
        .one(
            "SELECT concat_ws(' ', seqincrement, seqmin, seqmax, seqstart) FROM pg_sequence
              WHERE seqrelid = 'tickets_id_seq'::regclass",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_leaves_shards_that_stay_as_they_were() {
    run(RigOptions::staying(2, 1), |rig| async move {
        application_of_several(&rig, 2_000).await?;
        let before = Footprint::of_rig(&rig).await?;
        let mut sequences = Vec::new();
        for server in rig.sources() {
            sequences.push(sequence(server).await?);
        }
        let load = Load::start(&rig, &writers());
        for switches in [false, true] {
            let migration = Migration::start(&rig, false).await?;
            migration.watch(&["replicating"], STEP).await?;
            if switches {
                Migration::call(
                    &rig,
                    &format!("SELECT reshard_cutover({}, dry_run => true)", migration.id),
                )
                .await
                .ok();
                migration.watch(&["replicating"], STEP).await?;
                migration.cutover(STEP).await?;
                load.each_acknowledged(20, STEP).await?;
                assert_ne!(sequence(&rig.source).await?, sequences[1]);
                migration.rollback(STEP).await?;
                load.each_acknowledged(20, STEP).await?;
            }
            migration.cancel(STEP).await?;
            let after = Footprint::of_rig(&rig).await?;
            for ((server, before), after) in rig.servers().zip(&before).zip(&after) {
                assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
            }
            for (server, before) in rig.sources().into_iter().zip(&sequences) {
                assert_eq!(sequence(server).await?, *before, "{}", server.name());
            }
        }
        let outcome = load.finish().await?;
        assert!(outcome.failed().is_empty(), "{:#?}", outcome.failed());
        let sources = rig.sources();
        check_record_but(&sources, &outcome, |_, _| false).await?.into_result().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_interrupted_goes_on_where_it_was() {
    run(RigOptions::staying(2, 2), |rig| async move {
        application_of_several(&rig, 20_000).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        let session = rig.source.connect().await?;
        session.execute("ALTER SYSTEM SET reshard.removal_rate_limit = '512kB'").await?;
        session.execute("SELECT pg_reload_conf()").await?;
        migration.verb("reshard_complete").await?;
        let begun = "SELECT count(*) FROM reshard.removals WHERE percent > 0";
        wait_for(STEP, "rows to be removed", || async {
            Ok(match rig.source.connect().await?.one::<i64>(begun).await? {
                0 => Seen::NotYet("none yet".to_owned()),
                _ => Seen::Done(()),
            })
        })
        .await?;
        let error =
            refused(&rig.source, &format!("SELECT reshard_rollback({})", migration.id)).await?;
        assert_eq!(error.code.as_deref(), Some("55000"), "{error}");
        migration.verb("reshard_stop_task").await?;
        wait_for(STEP, "the task to be stopped", || async {
            let state = migration.state().await?;
            Ok(match state.status.as_str() {
                "failed" => Seen::Done(()),
                _ => Seen::NotYet(format!("{state:?}")),
            })
        })
        .await?;
        restart(&rig.nodes[0], Stop::Immediate)?;
        migration.verb("reshard_resume").await?;
        tokio::task::block_in_place(|| rig.source.kill9().and_then(|()| rig.source.start()))?;
        let session = rig.source.connect().await?;
        session.execute("ALTER SYSTEM RESET reshard.removal_rate_limit").await?;
        session.execute("SELECT pg_reload_conf()").await?;
        migration.watch(&["succeeded"], STEP).await?;
        compare_moved_when_quiet(&rig, KEY, true, STEP).await
    })
    .await;
}

/// `reshard_start` with these options.
fn start(options: &str) -> String {
    format!(
        "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false, '{options}')"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_meant_or_not_supported_is_refused() {
    run(RigOptions::staying(2, 1), |rig| async move {
        application_of_several(&rig, 500).await?;
        // Nobody stays without being asked to.
        let error = refused(&rig.source, &start("{}")).await?;
        assert!(error.message.contains("are the same database"), "{error}");
        assert!(error.full_text().contains("staying_shards"), "{error}");
        for (options, says) in [
            (r#"{"staying_shards": true, "sequences": "blocks"}"#, "sequences"),
            (r#"{"staying_shards": true, "ddl": "replay"}"#, "ddl"),
        ] {
            let error = refused(&rig.source, &start(options)).await?;
            assert_eq!(error.code.as_deref(), Some("0A000"), "{error}");
            assert!(error.message.contains(says), "{error}");
        }
        let session = rig.source.connect().await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{SOURCE}', 'id', 'hash', 'settings')"
            ))
            .await?;
        let error = refused(&rig.source, &start(r#"{"staying_shards": true}"#)).await?;
        assert_eq!(error.code.as_deref(), Some("0A000"), "{error}");
        assert!(error.message.contains("settings is sharded in one"), "{error}");
        session
            .execute(&format!(
                "SELECT reshard_drop_sharding_key('{SOURCE}', 'id', 'settings');
                 CREATE PUBLICATION part FOR TABLE orders WHERE (tenant_id > 5)"
            ))
            .await?;
        rig.nodes[0].execute("CREATE PUBLICATION part FOR TABLE orders WHERE (tenant_id > 5)").await?;
        let part = start(r#"{"staying_shards": true}"#).replace(PUBLICATION, "part");
        let error = refused(&rig.source, &part).await?;
        assert!(error.message.contains("leaves out a part of table"), "{error}");
        for node in rig.sources() {
            node.execute("DROP PUBLICATION part").await?;
        }
        let shown = session
            .column(&format!(
                "SELECT object || ' ' || severity FROM reshard_preflight('{SOURCE}', '{DESTINATION}',
                        '{PUBLICATION}', '{{\"staying_shards\": true}}')
                  WHERE check_name = 'staying_shards' ORDER BY 1"
            ))
            .await?;
        let infos = [0, 1].map(|n| format!("shard {n} of cluster \"{DESTINATION}\" info"));
        assert_eq!(shown, infos);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_come_are_not_written_to_before_the_switch_and_strays_stop_it() {
    run(RigOptions::staying(2, 0).placed(list(false), tenants_moved()), |rig| async move {
        application_of_several(&rig, 500).await?;
        let session = rig.source.connect().await?;
        let comes: i64 = session
            .one(&format!(
                "SELECT min(g) FROM generate_series(1, 50) g
                  WHERE reshard_shard_for('{SOURCE}', g::bigint) = 0
                    AND reshard_shard_for('{DESTINATION}', g::bigint) = 1"
            ))
            .await?;
        // A row that is there already could not be told from those that come.
        let stray = format!("INSERT INTO orders VALUES ({comes}, 99999, 0, 'stray', 1)");
        rig.source.execute(&stray).await?;
        let failed = Migration::start(&rig, false).await?;
        failed.watch(&["cancelled"], std::time::Duration::from_secs(1)).await.unwrap_err();
        wait_for(STEP, "the task to fail", || async {
            let state = failed.state().await?;
            Ok(match state.error {
                Some(error) if state.status == "failed" => Seen::Done(error),
                _ => Seen::NotYet(format!("{state:?}")),
            })
        })
        .await
        .map(|error| assert!(error.contains("has rows of other shards"), "{error}"))?;
        failed.cancel(STEP).await?;
        let kept = "SELECT count(*) FROM orders WHERE stamp = 'stray'";
        assert_eq!(rig.source.connect().await?.one::<i64>(kept).await?, 1);
        rig.source.execute("DELETE FROM orders WHERE stamp = 'stray'").await?;

        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let change = format!("UPDATE orders SET stamp = 'b' WHERE tenant_id = {comes}");
        rig.nodes[0].execute(&change).await?;
        compare_moved_when_quiet(&rig, KEY, false, STEP).await?;
        for sql in [&change, &stray] {
            let error = refused(&rig.source, sql).await?;
            assert_eq!(error.code.as_deref(), Some("25006"), "{sql}: {error}");
            assert!(error.message.contains("shard 1 of cluster \"prod\""), "{sql}: {error}");
        }
        migration.cutover(STEP).await?;
        rig.source.execute(&change).await?;
        rig.source.execute(&stray).await?;
        let error = refused(&rig.nodes[0], &change).await?;
        assert_eq!(error.code.as_deref(), Some("25006"), "{error}");
        compare_moved_when_quiet(&rig, KEY, false, STEP).await?;
        migration.rollback(STEP).await?;
        migration.cancel(STEP).await?;
        let left = format!("SELECT count(*) FROM orders WHERE tenant_id = {comes}");
        assert_eq!(rig.source.connect().await?.one::<i64>(&left).await?, 0);
        assert!(rig.nodes[0].connect().await?.one::<i64>(&left).await? > 1);
        Ok(())
    })
    .await;
}
