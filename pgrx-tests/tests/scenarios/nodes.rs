//! A source of several shards: the same promises as for one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reshard_scenarios::cluster::PASSWORD;
use reshard_scenarios::load::{Active, Load, LoadOptions};
use reshard_scenarios::migration::PUBLICATION;
use reshard_scenarios::oracle::{compare_when_quiet, helper_objects, Footprint};
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server, Session, Stop};
use tokio::sync::watch;

use super::common::{application_of_several, check_outcome, on_all, restart, run, KEY, STEP};

/// Runs a scenario on a source of so many shards.
pub async fn several<F, Fut>(sources: usize, shards: usize, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let options = RigOptions::several(sources, shards);
    run(options.source("log_statement", "ddl").shard("log_statement", "ddl"), body).await;
}

fn writers() -> LoadOptions {
    LoadOptions { followers: 6, ..LoadOptions::default() }
}

/// Omni tables of several sizes, beside `settings`. One refers to another: both have to come
/// from one node, or a TRUNCATE of both would end the replication.
const OMNI_TABLES: &str = "
CREATE TABLE catalog (id bigint PRIMARY KEY, stamp text NOT NULL, filler text NOT NULL);
INSERT INTO catalog SELECT g, 'seed', repeat(md5(g::text), 8) FROM generate_series(1, 4000) g;
CREATE TABLE prices (id bigint PRIMARY KEY REFERENCES catalog, stamp text NOT NULL);
INSERT INTO prices SELECT g, 'seed' FROM generate_series(1, 1000) g;
CREATE TABLE regions (id bigint PRIMARY KEY, stamp text NOT NULL, filler text NOT NULL);
INSERT INTO regions SELECT g, 'seed', repeat(md5(g::text), 8) FROM generate_series(1, 2000) g;
CREATE TABLE currencies (id bigint PRIMARY KEY, stamp text NOT NULL);
";

/// Each omni table comes from one node, the largest, and what refers to it, from another one than
/// the rest: so say the progress of the copy and the publications of all flows.
async fn check_nodes_of_omni_tables(rig: &Rig, migration: &Migration) -> Result<()> {
    const NAMES: &str = "('catalog', 'prices', 'regions', 'currencies', 'settings')";
    let nodes = ["0 catalog", "0 prices", "1 currencies", "1 regions", "1 settings"];
    let session = rig.source.connect().await?;
    let by_view = |view: &str| {
        format!(
            "SELECT DISTINCT format('%s %s', source_shard, table_name) FROM reshard.{view}
              WHERE task_id = {} AND table_name IN {NAMES} ORDER BY 1",
            migration.id
        )
    };
    assert_eq!(session.column(&by_view("table_copies")).await?, nodes);
    // One of them is empty: it has no part.
    let copied = ["0 catalog", "0 prices", "1 regions", "1 settings"];
    assert_eq!(session.column(&by_view("node_copies")).await?, copied);
    for (number, node) in rig.sources().into_iter().enumerate() {
        let node = node.connect().await?;
        let published = node
            .column(&format!(
                "SELECT format('%s %s in %s', {number}, tablename, count(*))
                   FROM pg_publication_tables
                  WHERE pubname <> '{PUBLICATION}' AND tablename IN {NAMES}
                  GROUP BY tablename ORDER BY 1"
            ))
            .await?;
        let own = nodes.iter().filter(|table| table.starts_with(&number.to_string()));
        let flows = rig.shards.len();
        assert_eq!(published, own.map(|table| format!("{table} in {flows}")).collect::<Vec<_>>());
    }
    Ok(())
}

/// Changes rows of omni tables of all nodes until told to stop: each change, one transaction,
/// on all copies of one cluster. One that is refused on the way is made again on all copies
/// of the other cluster. An UPDATE may well come twice.
async fn write_omni_tables(rig: Arc<Rig>, stop: watch::Receiver<bool>) -> Result<u64> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut active = connect_all(rig.sources()).await?;
    let mut closed = connect_all(&rig.shards).await?;
    let mut rounds = 0;
    while !*stop.borrow() {
        rounds += 1;
        let change: Vec<String> = ["catalog", "prices", "regions", "settings"]
            .into_iter()
            .map(|table| {
                let id = 1 + rounds % 97;
                format!("UPDATE {table} SET stamp = 'round {rounds}' WHERE id = {id}")
            })
            .collect();
        while let Err(error) = write_all(&active, &change.join("; ")).await {
            if error.sqlstate() != Some("25006") {
                return Err(error);
            }
            std::mem::swap(&mut active, &mut closed);
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(rounds)
}

async fn connect_all(servers: impl IntoIterator<Item = &Server>) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for server in servers {
        sessions.push(server.connect().await?);
    }
    Ok(sessions)
}

async fn write_all(copies: &[Session], change: &str) -> Result<()> {
    for copy in copies {
        copy.execute(change).await?;
    }
    Ok(())
}

/// Views about tasks, each with the columns that change from one look to the next.
const VIEWS: [(&str, &str); 10] = [
    ("schema_sync", ""),
    ("table_copies", ""),
    ("node_copies", ""),
    ("copy_totals", ""),
    ("replication_slots", ",active,confirmed_lsn,lag_bytes,retained_bytes,error,updated_at"),
    ("cutovers", ""),
    ("verifications", ""),
    ("differences", ""),
    ("events", ""),
    ("tasks", ",updated_at"),
];

/// Whether a view has no rows until something was switched, or compared.
fn may_be_empty(view: &str) -> bool {
    matches!(view, "cutovers" | "verifications" | "differences")
}

/// Every other node shows what the coordinator shows, and says that it is there.
async fn all_nodes_show_the_same(rig: &Rig) -> Result<()> {
    for node in &rig.nodes {
        for (view, moving) in VIEWS {
            let sql = format!(
                "SELECT (to_jsonb(v) - '{{node{moving}}}'::text[])::text FROM reshard.{view} AS v ORDER BY 1"
            );
            wait_for(STEP, format!("reshard.{view} on {}", node.name()), || async {
                let here = rig.source.connect().await?.column(&sql).await?;
                let there = node.connect().await?.column(&sql).await?;
                let is_there = !here.is_empty() || may_be_empty(view);
                Ok(match is_there && here == there {
                    true => Seen::Done(()),
                    false => {
                        Seen::NotYet(format!("{here:#?} on the coordinator, {there:#?} there"))
                    }
                })
            })
            .await?;
            let places = format!("SELECT DISTINCT node FROM reshard.{view}");
            let there = node.connect().await?.column(&places).await?;
            let expected = [coordinator(rig).to_string()];
            assert!(
                there == expected || there.is_empty() && may_be_empty(view),
                "{view}: {there:?}"
            );
            let here = rig.source.connect().await?.column(&places).await?;
            assert!(here.iter().all(String::is_empty), "{view}: {here:?}");
        }
    }
    Ok(())
}

/// Number of the source shard that tasks are started on.
fn coordinator(rig: &Rig) -> usize {
    rig.nodes.len()
}

/// A verb on another node says where the task is; `says` is how its message begins.
async fn refused_elsewhere(rig: &Rig, says: &str, calls: &[String]) -> Result<()> {
    let place = format!("{says} on shard {} of cluster \"prod\"", coordinator(rig));
    for call in calls {
        let refused = rig.nodes[0].execute(&format!("SELECT {call}")).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{call}: {refused}");
        let error = refused.sql().unwrap();
        assert_eq!(error.message, place, "{call}");
        let hint = error.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("port=") && hint.contains("dbname=app"), "{call}: {hint}");
        assert!(!error.full_text().contains("password"), "{call}: {hint}");
    }
    Ok(())
}

/// All verbs about a task, by its number.
fn verbs(id: i64) -> Vec<String> {
    let verbs =
        ["cutover", "rollback", "complete", "cancel", "stop_task", "resume", "wait", "verify"];
    verbs.map(|verb| format!("reshard_{verb}({id})")).to_vec()
}

/// A row that differs is named on every node, until it is mended.
async fn differences_are_shown_everywhere(rig: &Rig, migration: &Migration) -> Result<()> {
    let shard = rig.shards[0].connect().await?;
    shard.execute("SET application_name = 'reshard repair'").await?;
    let first = "WHERE id = (SELECT min(id) FROM orders)";
    shard.execute(&format!("UPDATE orders SET stamp = concat(stamp, '!') {first}")).await?;
    let task = migration.begin_verify().await?;
    task.watch(&["failed"], STEP).await?;
    all_nodes_show_the_same(rig).await?;
    let named = "SELECT table_name || ' ' || kind FROM reshard.differences";
    assert_eq!(rig.nodes[0].text(named).await?.as_deref(), Some("orders different"));
    shard.execute(&format!("UPDATE orders SET stamp = left(stamp, -1) {first}")).await?;
    task.verb("reshard_resume").await?;
    task.watch(&["succeeded"], STEP).await?;
    all_nodes_show_the_same(rig).await?;
    assert_eq!(rig.nodes[0].text(named).await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_move_to_three_shards_and_back_and_leave_nothing() {
    several(2, 3, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        on_all(rig.sources(), OMNI_TABLES).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        check_nodes_of_omni_tables(&rig, &migration).await?;
        on_all(
            rig.sources(),
            "TRUNCATE prices, catalog;
             INSERT INTO catalog SELECT g, 'new', '' FROM generate_series(1, 500) g;
             INSERT INTO prices SELECT g, 'new' FROM generate_series(1, 400) g;
             DELETE FROM regions WHERE id % 3 = 0;
             INSERT INTO currencies VALUES (1, 'first')",
        )
        .await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.verify(STEP).await?;
        all_nodes_show_the_same(&rig).await?;
        let mut calls = verbs(migration.id);
        calls.extend(["cutover", "rollback", "verify"].map(|verb| format!("reshard_{verb}()")));
        let runs = format!("task {} runs", migration.id);
        refused_elsewhere(&rig, &runs, &calls).await?;
        assert_eq!(migration.state().await?.phase, "replicating");
        differences_are_shown_everywhere(&rig, &migration).await?;
        migration.cutover(STEP).await?;
        all_nodes_show_the_same(&rig).await?;
        let flags = "SELECT active_cluster || ' ' || epoch FROM reshard.traffic";
        assert_eq!(rig.nodes[0].text(flags).await?.as_deref(), Some("prod_sharded 1"));
        let steps = "SELECT count(*) FROM reshard.cutovers WHERE step = 'commit'";
        assert_eq!(rig.nodes[0].text(steps).await?.as_deref(), Some("1"));
        for (number, node) in rig.sources().into_iter().enumerate() {
            let refused = node.execute("UPDATE orders SET stamp = stamp").await.unwrap_err();
            assert_eq!(refused.sqlstate(), Some("25006"), "node {number}");
        }
        for shard in &rig.shards {
            shard.execute("UPDATE orders SET stamp = 'there' WHERE id % 7 = 0").await?;
        }
        on_all(
            &rig.shards,
            "UPDATE settings SET stamp = 'whole' WHERE id = 1;
             UPDATE catalog SET stamp = 'there' WHERE id % 5 = 0; DELETE FROM prices WHERE id > 300;
             UPDATE regions SET stamp = 'there' WHERE id % 5 = 0;
             INSERT INTO currencies VALUES (2, 'second')",
        )
        .await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        let refused = rig.shards[0].execute("TRUNCATE events").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("0A000"), "{refused}");
        migration.rollback(STEP).await?;
        rig.nodes[0].execute("UPDATE orders SET stamp = 'again' WHERE id % 11 = 0").await?;
        on_all(
            rig.sources(),
            "DELETE FROM settings WHERE id = 2; UPDATE catalog SET stamp = 'again' WHERE id % 7 = 0;
             INSERT INTO prices VALUES (450, 'again'); DELETE FROM regions WHERE id % 7 = 0;
             UPDATE currencies SET stamp = 'again'",
        )
        .await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.cutover(STEP).await?;
        on_all(&rig.shards, "TRUNCATE prices, catalog; DELETE FROM regions WHERE id % 5 = 0")
            .await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.complete(STEP).await?;
        for server in rig.servers() {
            assert!(!server.log().contains(PASSWORD), "a password in the log of {}", server.name());
        }
        all_nodes_show_the_same(&rig).await?;
        let ended = "SELECT status || ' ' || phase FROM reshard.tasks WHERE parent_id IS NULL";
        assert_eq!(rig.nodes[0].text(ended).await?.as_deref(), Some("succeeded complete"));
        let ran = format!("task {} ran", migration.id);
        refused_elsewhere(&rig, &ran, &verbs(migration.id)).await?;
        let none = rig.nodes[0].execute("SELECT reshard_cutover()").await.unwrap_err();
        assert_eq!(none.sqlstate(), Some("42704"), "{none}");
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
        on_all(rig.sources(), OMNI_TABLES).await?;
        let load = Load::start(&rig, &writers());
        load.each_acknowledged(20, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        // Not before: preflight has compared the copies.
        let stop = watch::channel(false);
        let omni = tokio::spawn(write_omni_tables(Arc::clone(&rig), stop.1));
        migration.watch(&["replicating"], STEP).await?;
        let session = rig.source.connect().await?;
        let used = "SELECT count(DISTINCT source_shard) FROM reshard.table_copies";
        assert_eq!(session.one::<usize>(used).await?, sources);
        for number in 0..4 {
            match number % 2 {
                0 => migration.cutover(STEP).await?,
                _ => migration.rollback(STEP).await?,
            }
            load.each_acknowledged(30, STEP).await?;
        }
        migration.cutover(STEP).await?;
        load.each_acknowledged(20, STEP).await?;
        stop.0.send_replace(true);
        println!("{} changes of omni tables", omni.await.unwrap()?);
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

/// A tenant, with the number of its shard in each cluster.
#[derive(Debug, Clone, Copy)]
struct Home {
    tenant: i64,
    source: usize,
    destination: usize,
}

/// One transaction that writes a row for each of both tenants, where it is at home: prepared on
/// both shards before it is committed on either. A switch that waits for the first part holds the
/// second one: the client gives up before the switch does.
async fn commit_on_both(servers: [&Server; 2], homes: [Home; 2], id: u64) -> Result<()> {
    let sessions = [servers[0].connect().await?, servers[1].connect().await?];
    for (n, (session, home)) in sessions.iter().zip(homes).enumerate() {
        let part = format!(
            "SET lock_timeout = '500ms'; BEGIN; INSERT INTO pairs VALUES ({id}, {}); \
             PREPARE TRANSACTION 'pair {id}'",
            home.tenant
        );
        if let Err(error) = session.execute(&part).await {
            if n == 1 {
                sessions[0].execute(&format!("ROLLBACK PREPARED 'pair {id}'")).await?;
            }
            return Err(error);
        }
    }
    for session in &sessions {
        session.execute(&format!("COMMIT PREPARED 'pair {id}'")).await?;
    }
    Ok(())
}

/// Commits such transactions on the active cluster until told to stop; how many.
async fn write_pairs(rig: Arc<Rig>, homes: [Home; 2], stop: watch::Receiver<bool>) -> Result<u64> {
    const PAUSE: Duration = Duration::from_millis(5);
    let (mut written, mut moved) = (0, false);
    while !*stop.borrow() {
        let cluster = if moved { rig.destination() } else { rig.sources() };
        let servers = homes.map(|h| cluster[if moved { h.destination } else { h.source }]);
        match commit_on_both(servers, homes, written).await {
            Ok(()) => written += 1,
            Err(error) if error.sqlstate() == Some("25006") => moved = !moved,
            // Held by a switch that waits for its other part: once more.
            Err(error) if error.sqlstate() == Some("55P03") => {}
            Err(error) => {
                println!("transaction {written}: {error}");
                return Err(error);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(written)
}

/// The numbers of such transactions, once for each row, sorted.
async fn pairs_on(servers: &[&Server]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for server in servers {
        ids.extend(server.connect().await?.column("SELECT id FROM pairs").await?);
    }
    ids.sort();
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_two_nodes_keep_the_part_of_each() {
    const PREPARED: (&str, &str) = ("max_prepared_transactions", "10");
    let options = RigOptions::several(2, 3).source(PREPARED.0, PREPARED.1);
    run(options.shard(PREPARED.0, PREPARED.1), |rig| async move {
        application_of_several(&rig, 200).await?;
        let pairs = "CREATE TABLE pairs (id bigint, tenant_id bigint, PRIMARY KEY (id, tenant_id))";
        on_all(rig.sources(), pairs).await?;
        let home = |source: usize| {
            let homes = (1..100).map(|tenant| Home {
                tenant,
                source: rig.source_placement.shard_of(tenant, 2),
                destination: rig.placement.shard_of(tenant, 3),
            });
            let found = homes.into_iter().find(|h| h.source == source && h.destination == source);
            found.ok_or(Error::Unexpected("no tenant".to_owned()))
        };
        let homes = [home(0)?, home(1)?];
        let (stop, stopped) = watch::channel(false);
        let writer = tokio::spawn(write_pairs(Arc::clone(&rig), homes, stopped));
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for (switch, cluster) in [
            ("cutover", rig.destination()),
            ("rollback", rig.sources()),
            ("cutover", rig.destination()),
        ] {
            match switch {
                "cutover" => migration.cutover(STEP).await?,
                _ => migration.rollback(STEP).await?,
            }
            let before = pairs_on(&cluster).await?.len();
            wait_until(STEP, "transactions on the active cluster", || async {
                assert!(!writer.is_finished(), "the writer has ended");
                Ok(pairs_on(&cluster).await?.len() > before + 20)
            })
            .await?;
        }
        stop.send_replace(true);
        let written = writer.await.map_err(|e| Error::Unexpected(e.to_string()))??;
        let mut all: Vec<String> =
            (0..written).flat_map(|n| [n.to_string(), n.to_string()]).collect();
        all.sort();
        println!("{written} transactions of two nodes");
        assert_eq!(pairs_on(&rig.destination()).await?, all);
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}

/// Kills a server as soon as each phase is seen, and after each switch; the migration goes on by
/// itself.
async fn kill_in_each_phase(victim: fn(&Rig) -> &Server) {
    const PHASES: [&str; 5] = ["schema_pre", "copy", "schema_post", "catch_up", "replicating"];
    several(2, 3, move |rig| async move {
        application_of_several(&rig, 60_000).await?;
        on_all(rig.sources(), OMNI_TABLES).await?;
        let load = Load::start(&rig, &writers());
        let kill = || {
            let server = victim(&rig);
            tokio::task::block_in_place(|| server.kill9().and_then(|()| server.start()))
        };
        let migration = Migration::start(&rig, false).await?;
        let mut killed = Vec::new();
        for at in 0..PHASES.len() {
            let seen = migration.watch(&PHASES[at..], STEP).await?;
            if !killed.contains(&seen.phase) {
                kill()?;
                killed.push(seen.phase);
            }
        }
        println!("killed in {}", killed.join(", "));
        migration.watch(&["replicating"], STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        migration.cutover(STEP).await?;
        kill()?;
        load.each_acknowledged(10, STEP).await?;
        migration.rollback(STEP).await?;
        kill()?;
        load.each_acknowledged(10, STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await?;
        all_nodes_show_the_same(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_in_each_phase_does_not_stop_the_migration() {
    kill_in_each_phase(|rig| &rig.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_in_each_phase_does_not_stop_the_migration() {
    kill_in_each_phase(|rig| &rig.source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_killed_in_each_phase_does_not_stop_the_migration() {
    kill_in_each_phase(|rig| &rig.shards[1]).await;
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
