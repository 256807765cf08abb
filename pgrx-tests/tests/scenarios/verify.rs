//! The comparison of both clusters: equal is said only of what is equal, and whatever
//! differs is found and named, while everybody writes.

use std::collections::BTreeSet;
use std::sync::Arc;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::placement::{shard_of, Placement};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Server, Stop};

use super::common::{
    application, application_of_several, check_outcome, restart, run, with_extension, KEY, STEP,
};

/// Many small chunks.
fn small_chunks(shards: usize) -> RigOptions {
    RigOptions::new(shards).source("reshard.verify_chunk_size", "1MB")
}

/// Changes a shard behind everybody's back.
async fn corrupt(server: &Server, sql: &str) -> Result<()> {
    let session = server.connect().await?;
    session.execute("SET application_name = 'reshard repair'").await?;
    match session.affected(sql).await? {
        0 => Err(reshard_scenarios::Error::Unexpected(format!("nothing to corrupt: {sql}"))),
        _ => Ok(()),
    }
}

/// Differences of a task, as "table kind shard key columns".
async fn differences(rig: &Rig, task: &Migration) -> Result<BTreeSet<String>> {
    let rows = rig
        .source
        .connect()
        .await?
        .column(&format!(
            "SELECT concat_ws(' ', table_name, kind, cluster || '/' || shard, key::text, array_to_string(columns, ','))
               FROM reshard.differences WHERE task_id = {}",
            task.id
        ))
        .await?;
    Ok(rows.into_iter().collect())
}

fn set(texts: &[String]) -> BTreeSet<String> {
    texts.iter().cloned().collect()
}

async fn ended(task: &Migration) -> Result<(String, String)> {
    let state = task.watch(&["succeeded", "failed"], STEP).await?;
    Ok((state.status, state.error.unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_migration_verifies_under_writers_and_after_every_switch() {
    run(small_chunks(3), |rig| async move {
        application(&rig, 30_000).await?;
        let load = Load::start(&rig, &LoadOptions::default());
        load.each_acknowledged(10, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let session = rig.source.connect().await?;
        for switch in ["", "reshard_cutover", "reshard_rollback", "reshard_cutover"] {
            match switch {
                "" => {}
                "reshard_rollback" => migration.rollback(STEP).await?,
                _ => migration.cutover(STEP).await?,
            }
            let task = migration.begin_verify().await?;
            let (status, error) = ended(&task).await?;
            assert_eq!(status, "succeeded", "{switch}: {error} {:?}", differences(&rig, &task).await?);
            let seen = session
                .rows(&format!(
                    "SELECT count(*), sum(rows) >= 60000, min(percent) = 100, bool_and(status = 'equal'), max(chunks) > 1,
                            bool_and(chunks = chunks_done), bool_and(finished_at IS NOT NULL)
                       FROM reshard.verifications WHERE task_id = {}",
                    task.id
                ))
                .await?;
            let expected = ["8", "t", "t", "t", "t", "t", "t"].map(|v| Some(v.to_owned())).to_vec();
            assert_eq!(seen, vec![expected], "{switch}");
            load.each_acknowledged(10, STEP).await?;
        }
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await?;
        // What was found stays after the end.
        migration.complete(STEP).await?;
        let kept: i64 = session.one("SELECT count(*) FROM reshard.tasks WHERE type = 'verify' AND status = 'succeeded'").await?;
        assert_eq!(kept, 4);
        let refused = session.execute("SELECT reshard_verify()").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("42704"), "{refused}");
        Ok(())
    })
    .await;
}

const CORRUPTIBLE: &str = "
CREATE TABLE blank (id int PRIMARY KEY, tenant_id bigint, v text, \"W w\" numeric);
INSERT INTO blank SELECT g, g, CASE WHEN g % 2 = 0 THEN 'v' || g END, g FROM generate_series(1, 2000) g;
CREATE TABLE bare (tenant_id bigint, v text); ALTER TABLE bare REPLICA IDENTITY FULL;
INSERT INTO bare SELECT g % 40, 'v' || g % 4 FROM generate_series(1, 4000) g;
CREATE TABLE \"Odd, \"\"name\" (\"K 1\" character(8), \"k'2\" timestamptz, tenant_id bigint, v jsonb, PRIMARY KEY (\"K 1\", \"k'2\"));
INSERT INTO \"Odd, \"\"name\" SELECT 'k''' || g, '2026-01-01'::timestamptz + g * interval '1 h', g, jsonb_build_object('g', g) FROM generate_series(1, 1000) g;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_damage_is_found_and_named_and_seen_to_be_mended() {
    run(small_chunks(3), |rig| async move {
        application(&rig, 20_000).await?;
        rig.source.execute(CORRUPTIBLE).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        load.each_acknowledged(10, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;

        let source = rig.source.connect().await?;
        let tenant_of = |table: &'static str, id: i64| {
            let source = &source;
            async move {
                source.one::<i64>(&format!("SELECT tenant_id FROM {table} WHERE id = {id}")).await
            }
        };
        let on = |tenant: i64| shard_of(tenant, 3);
        let mut expected: Vec<String> = Vec::new();
        let mut mend: Vec<(usize, String)> = Vec::new();
        let at = |shard: usize| format!("{DESTINATION}/{shard}");

        let lost = tenant_of("orders", 17).await?;
        corrupt(&rig.shards[on(lost)], "DELETE FROM orders WHERE id = 17").await?;
        expected.push(format!("orders missing {} {{\"id\": 17, \"tenant_id\": {lost}}}", at(on(lost))));
        mend.push((on(lost), "orders 17".into()));

        let changed = tenant_of("events", 23).await?;
        corrupt(&rig.shards[on(changed)], "UPDATE events SET stamp = 'other' WHERE id = 23").await?;
        expected.push(format!("events different {} {{\"id\": 23}} stamp", at(on(changed))));
        mend.push((on(changed), "events 23".into()));

        let toasted = tenant_of("docs", 5).await?;
        corrupt(
            &rig.shards[on(toasted)],
            "UPDATE docs SET body = overlay(body placing '#' from 3000 for 1) WHERE id = 5",
        )
        .await?;
        expected.push(format!("docs different {} {{\"id\": 5}} body", at(on(toasted))));
        mend.push((on(toasted), "docs 5".into()));

        corrupt(&rig.shards[on(101)], "UPDATE blank SET v = '' WHERE id = 101").await?;
        expected.push(format!("blank different {} {{\"id\": 101}} v", at(on(101))));
        mend.push((on(101), "blank 101".into()));
        corrupt(&rig.shards[on(102)], "UPDATE blank SET v = NULL, \"W w\" = 102.0 WHERE id = 102").await?;
        expected.push(format!("blank different {} {{\"id\": 102}} v,W w", at(on(102))));
        mend.push((on(102), "blank 102".into()));

        corrupt(&rig.shards[on(7)], "INSERT INTO tickets SELECT 999999999, 7, 0, 'extra'").await?;
        expected.push(format!("tickets extra {} {{\"id\": 999999999}}", at(on(7))));

        // One row on a wrong shard, one on its own and on another one.
        for (id, doubled) in [(200, false), (300, true)] {
            let (right, wrong) = (on(id), (on(id) + 1) % 3);
            corrupt(&rig.shards[wrong], &format!("INSERT INTO blank SELECT {id}, {id}, 'v{id}', {id}")).await?;
            expected.push(format!("blank misplaced {} {{\"id\": {id}}}", at(wrong)));
            if !doubled {
                corrupt(&rig.shards[right], &format!("DELETE FROM blank WHERE id = {id}")).await?;
                expected.push(format!("blank missing {} {{\"id\": {id}}}", at(right)));
                mend.push((right, format!("blank {id}")));
            }
        }

        corrupt(&rig.shards[on(11)], "INSERT INTO bare VALUES (11, 'v3')").await?;
        expected.push(format!("bare extra {} {{\"v\": \"v3\", \"tenant_id\": 11}}", at(on(11))));
        corrupt(&rig.shards[on(12)], "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE tenant_id = 12)").await?;
        expected.push(format!("bare missing {} {{\"v\": \"v0\", \"tenant_id\": 12}}", at(on(12))));

        corrupt(&rig.shards[1], "DELETE FROM settings WHERE id = 7").await?;
        expected.push(format!("settings missing {} {{\"id\": 7}}", at(1)));

        corrupt(&rig.shards[on(40)], "UPDATE \"Odd, \"\"name\" SET v = '{\"g\": 41}' WHERE tenant_id = 40").await?;
        expected.push(format!(
            "Odd, \"name different {} {{\"K 1\": \"k'40    \", \"k'2\": \"2026-01-02T16:00:00+00:00\"}} v",
            at(on(40))
        ));

        let task = migration.begin_verify().await?;
        let (status, error) = ended(&task).await?;
        assert_eq!(status, "failed");
        assert!(error.contains("the clusters differ"), "{error}");
        assert_eq!(differences(&rig, &task).await?, set(&expected), "{error}");
        let raised = task.wait("done", STEP).await.unwrap_err();
        assert_eq!(raised.sqlstate(), Some("23000"), "{raised}");
        let hint = source.text(&format!("SELECT hint FROM reshard.tasks WHERE id = {}", task.id)).await?;
        assert!(hint.as_deref().is_some_and(|h| h.contains("reshard.differences")), "{hint:?}");
        let counted: i64 = source
            .one(&format!("SELECT sum(differences) FROM reshard.verifications WHERE task_id = {}", task.id))
            .await?;
        assert_eq!(counted, expected.len() as i64);

        // Mended rows are looked at again, what was equal is not.
        for (shard, what) in mend {
            let (table, id) = what.split_once(' ').unwrap();
            let row = source.text(&format!("SELECT to_json(t) FROM {table} t WHERE id = {id}")).await?.unwrap();
            corrupt(
                &rig.shards[shard],
                &format!(
                    "WITH gone AS (DELETE FROM {table} WHERE id = {id} RETURNING 1)
                     SELECT count(*) FROM gone"
                ),
            )
            .await?;
            corrupt(
                &rig.shards[shard],
                &format!(
                    "INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, {})",
                    reshard_scenarios::session::literal(&row)
                ),
            )
            .await?;
        }
        corrupt(&rig.shards[on(7)], "DELETE FROM tickets WHERE id = 999999999").await?;
        for id in [200, 300] {
            corrupt(&rig.shards[(on(id) + 1) % 3], &format!("DELETE FROM blank WHERE id = {id}")).await?;
        }
        corrupt(&rig.shards[on(11)], "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE tenant_id = 11 AND v = 'v3')").await?;
        corrupt(&rig.shards[on(12)], "INSERT INTO bare VALUES (12, 'v0')").await?;
        corrupt(&rig.shards[1], "INSERT INTO settings SELECT 7, 0, 'seed7'").await?;
        corrupt(&rig.shards[on(40)], "UPDATE \"Odd, \"\"name\" SET v = '{\"g\": 40}' WHERE tenant_id = 40").await?;
        let equal = format!(
            "SELECT string_agg(concat(table_id, '/', chunk_no, ' ', finished_at), ',' ORDER BY table_id, chunk_no)
               FROM reshard.verification_chunk WHERE task_id = {} AND finished_at < ",
            task.id
        );
        let now = source.text("SELECT clock_timestamp()").await?.unwrap();
        let before = source.text(&format!("{equal} '{now}' AND status = 'equal'")).await?;
        task.verb("reshard_resume").await?;
        let (status, error) = ended(&task).await?;
        assert_eq!(status, "succeeded", "{error} {:?}", differences(&rig, &task).await?);
        assert_eq!(source.text(&format!("{equal} '{now}'")).await?, before);

        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_on_either_side_is_found_after_the_switch() {
    with_extension(3, |rig| async move {
        application(&rig, 3_000).await?;
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["switched"], STEP).await?;
        corrupt(&rig.source, "DELETE FROM orders WHERE id = 10").await?;
        corrupt(&rig.source, "UPDATE settings SET stamp = 'old' WHERE id = 3").await?;
        // Written by the application to one copy of an omni table only.
        rig.shards[2].execute("UPDATE settings SET stamp = 'here alone' WHERE id = 4").await?;
        // And to a wrong shard, from where it came to the source.
        let wrong = (shard_of(77, 3) + 1) % 3;
        rig.shards[wrong].execute("INSERT INTO events VALUES (5000000, 77, 0, 'astray')").await?;
        let task = migration.begin_verify().await?;
        let (status, error) = ended(&task).await?;
        assert_eq!(status, "failed", "{error}");
        let tenant = 11;
        let key = format!("{{\"id\": 10, \"tenant_id\": {tenant}}}");
        assert_eq!(
            differences(&rig, &task).await?,
            set(&[
                format!("orders missing {SOURCE}/0 {key}"),
                format!("settings different {SOURCE}/0 {{\"id\": 3}} stamp"),
                format!("settings different {DESTINATION}/2 {{\"id\": 4}} stamp"),
                format!("events misplaced {DESTINATION}/{wrong} {{\"id\": 5000000}}"),
            ])
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_filters_and_column_lists_of_the_publication_are_honoured() {
    with_extension(2, |rig| async move {
        rig.source
            .execute(
                "CREATE EXTENSION reshard;
                 CREATE TABLE part (id int, tenant_id bigint, v text, secret text, PRIMARY KEY (id, tenant_id));
                 INSERT INTO part SELECT g, g, 'v' || g, 's' || g FROM generate_series(1, 500) g;
                 CREATE TABLE dup (tenant_id bigint, v text); ALTER TABLE dup REPLICA IDENTITY FULL;
                 INSERT INTO dup SELECT g % 50, 'x' FROM generate_series(1, 500) g",
            )
            .await?;
        let session = rig.source.connect().await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', '{KEY}');
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE part (id, tenant_id, v) WHERE (id > 100), TABLE dup WHERE (tenant_id < 30)"
            ))
            .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        session.execute("UPDATE part SET v = 'w' WHERE id % 3 = 0; UPDATE part SET secret = 'more' WHERE id % 5 = 0").await?;
        let task = migration.verify(STEP).await?;
        let rows: Vec<String> = session
            .column(&format!("SELECT table_name || ' ' || rows FROM reshard.verifications WHERE task_id = {} ORDER BY 1", task.id))
            .await?;
        assert_eq!(rows, ["dup 300", "part 400"]);
        corrupt(&rig.shards[shard_of(5, 2)], "INSERT INTO part VALUES (5, 5, 'v5')").await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        let found = differences(&rig, &task).await?;
        assert_eq!(found, set(&[format!("part extra {DESTINATION}/{} {{\"id\": 5, \"tenant_id\": 5}}", shard_of(5, 2))]));
        corrupt(&rig.shards[shard_of(5, 2)], "DELETE FROM part WHERE id = 5").await?;
        migration.cutover(STEP).await?;
        migration.verify(STEP).await.map(drop)
    })
    .await;
}

async fn progress(rig: &Rig, task: &Migration) -> Result<i64> {
    rig.source
        .connect()
        .await?
        .one(&format!(
            "SELECT coalesce(sum(chunks_done), 0) FROM reshard.verifications WHERE task_id = {}",
            task.id
        ))
        .await
}

/// Begins a comparison that takes long, and returns when it has done some of its work.
async fn begin_slowly(rig: &Arc<Rig>, migration: &Migration) -> Result<Migration> {
    rig.source.set(&[("reshard.verify_rate_limit", "1500kB")])?;
    rig.source.execute("SELECT pg_reload_conf()").await?;
    let task = migration.begin_verify().await?;
    wait_until(STEP, "some chunks to be compared", || async {
        Ok(progress(rig, &task).await? >= 3)
    })
    .await?;
    Ok(task)
}

async fn speed_up(rig: &Rig) -> Result<()> {
    rig.source.set(&[("reshard.verify_rate_limit", "0")])?;
    rig.source.execute("SELECT pg_reload_conf()").await
}

async fn finished_chunks(rig: &Rig, task: &Migration) -> Result<BTreeSet<String>> {
    let rows = rig
        .source
        .connect()
        .await?
        .column(&format!(
            "SELECT concat(table_id, '/', chunk_no, ' ', finished_at) FROM reshard.verification_chunk
              WHERE task_id = {} AND status = 'equal'",
            task.id
        ))
        .await?;
    Ok(rows.into_iter().collect())
}

/// Breaks a comparison in the middle; what was compared before stays.
async fn goes_on_after<F, Fut>(how: F)
where
    F: FnOnce(Arc<Rig>) -> Fut + Send + 'static,
    Fut: std::future::Future<Output = Result<()>> + Send,
{
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 3, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        let before = finished_chunks(&rig, &task).await?;
        how(Arc::clone(&rig)).await?;
        wait_until(STEP, "the source to answer", || async { Ok(speed_up(&rig).await.is_ok()) })
            .await?;
        task.watch(&["succeeded"], STEP).await?;
        let after = finished_chunks(&rig, &task).await?;
        assert!(!before.is_empty() && before.is_subset(&after), "{before:?} {after:?}");
        drop(load.finish().await?);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_verify_worker_goes_on_where_it_was() {
    goes_on_after(|rig| async move {
        let pid: u32 = rig
            .source
            .connect()
            .await?
            .one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'reshard verify worker'")
            .await?;
        rig.source.kill9_process(pid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_survives_restarts_of_the_source_and_of_a_shard() {
    goes_on_after(|rig| async move {
        restart(&rig.shards[1], Stop::Immediate)?;
        restart(&rig.source, Stop::Fast)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_in_the_middle_of_a_comparison_raises_no_false_alarm() {
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let load = Load::start(&rig, &LoadOptions::default());
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        migration.cutover(STEP).await?;
        let done = progress(&rig, &task).await?;
        wait_until(STEP, "more chunks", || async { Ok(progress(&rig, &task).await? > done + 2) })
            .await?;
        migration.rollback(STEP).await?;
        speed_up(&rig).await?;
        let (status, error) = ended(&task).await?;
        assert_eq!(status, "succeeded", "{error} {:?}", differences(&rig, &task).await?);
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

/// No worker and no session of a comparison anywhere.
async fn nobody_compares(rig: &Rig) -> Result<()> {
    wait_until(STEP, "all sessions of the comparison to end", || async {
        let mut busy = 0;
        for server in rig.servers() {
            busy += server
                .connect()
                .await?
                .one::<i64>(
                    "SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type = 'reshard verify worker' OR application_name = 'reshard verify'",
                )
                .await?;
        }
        Ok(busy == 0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_is_stopped_resumed_and_cancelled_and_leaves_nothing() {
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let before = Footprint::of_rig(&rig).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        let session = rig.source.connect().await?;
        let again: i64 = session.one(&format!("SELECT reshard_verify({})", migration.id)).await?;
        assert_eq!(again, task.id);
        assert!(session.take_notices().iter().any(|n| n.contains("already")));
        // Its number is no migration's.
        for verb in ["reshard_cutover", "reshard_rollback", "reshard_complete"] {
            let refused = task.verb(verb).await.unwrap_err();
            assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        }

        task.verb("reshard_stop_task").await?;
        wait_until(STEP, "the task to be stopped", || async {
            Ok(task.state().await?.error.is_some_and(|e| e.contains("stopped")))
        })
        .await?;
        nobody_compares(&rig).await?;
        assert_eq!(migration.state().await?.status, "running");
        let before_resume = finished_chunks(&rig, &task).await?;
        speed_up(&rig).await?;
        task.verb("reshard_resume").await?;
        task.watch(&["succeeded"], STEP).await?;
        assert!(before_resume.is_subset(&finished_chunks(&rig, &task).await?));

        let task = begin_slowly(&rig, &migration).await?;
        task.verb("reshard_cancel").await?;
        task.watch(&["cancelled"], STEP).await?;
        nobody_compares(&rig).await?;

        // The end of the migration is the end of its comparisons.
        speed_up(&rig).await?;
        let task = begin_slowly(&rig, &migration).await?;
        migration.cancel(STEP).await?;
        assert_eq!(task.state().await?.status, "cancelled");
        nobody_compares(&rig).await?;
        let after = Footprint::of_rig(&rig).await?;
        for ((server, before), after) in rig.servers().zip(&before).zip(&after) {
            assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
        }
        let markers: i64 = session.one("SELECT count(*) FROM reshard.marker").await?;
        assert_eq!(markers, 0);
        let succeeded: i64 = session
            .one(
                "SELECT count(*) FROM reshard.tasks WHERE type = 'verify' AND status = 'succeeded'",
            )
            .await?;
        assert_eq!(succeeded, 1);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_calls_are_refused_before_anything_is_read() {
    with_extension(2, |rig| async move {
        application(&rig, 20_000).await?;
        rig.source.execute("CREATE TABLE later (tenant_id bigint PRIMARY KEY)").await?;
        let session = rig.source.connect().await?;
        let refused = |sql: &'static str| {
            let session = &session;
            async move {
                let error = session.execute(sql).await.unwrap_err();
                (error.sqlstate().unwrap_or_default().to_owned(), error.to_string())
            }
        };
        assert_eq!(refused("SELECT reshard_verify(77)").await.0, "42704");
        assert_eq!(refused("SELECT reshard_verify()").await.0, "42704");
        let migration = Migration::start(&rig, false).await?;
        let early = session.execute(&format!("SELECT reshard_verify({})", migration.id)).await;
        if let Err(early) = early {
            assert_eq!(early.sqlstate(), Some("55000"), "{early}");
        }
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(refused("SELECT reshard_verify(sample_percent => 0)").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(sample_percent => 'NaN')").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(tables => '{}')").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(tables => '{nowhere}')").await.0, "42P01");
        let (code, text) = refused("SELECT reshard_verify(tables => '{orders,pg_class}')").await;
        assert_eq!(code, "42704");
        assert!(text.contains("pg_class"), "{text}");
        let task =
            Migration::call(&rig, "SELECT reshard_verify(tables => '{orders,settings}')").await?;
        task.watch(&["succeeded"], STEP).await?;
        let tables = session
            .column(&format!(
                "SELECT table_name FROM reshard.verifications WHERE task_id = {} ORDER BY 1",
                task.id
            ))
            .await?;
        assert_eq!(tables, ["orders", "settings"]);
        session.execute("CREATE ROLE nobody LOGIN").await?;
        let stranger = rig.source.connect_as("nobody", "app").await?;
        let denied = stranger.execute("SELECT reshard_verify()").await.unwrap_err();
        assert_eq!(denied.sqlstate(), Some("42501"), "{denied}");
        let denied = stranger.execute("SELECT * FROM reshard.differences").await.unwrap_err();
        assert_eq!(denied.sqlstate(), Some("42501"), "{denied}");
        migration.verb("reshard_stop_task").await?;
        wait_until(STEP, "the task to be stopped", || async {
            Ok(migration.state().await?.status == "failed")
        })
        .await?;
        let refused =
            session.execute(&format!("SELECT reshard_verify({})", migration.id)).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_source_shards_are_compared_both_ways_under_writers() {
    let options = RigOptions::several(2, 3).source("reshard.verify_chunk_size", "1MB");
    run(options, |rig| async move {
        application_of_several(&rig, 20_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 6, ..LoadOptions::default() });
        load.each_acknowledged(10, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verify(STEP).await?;
        migration.cutover(STEP).await?;
        let lost = shard_of(8, 2);
        corrupt(rig.sources()[lost], "DELETE FROM accounts WHERE tenant_id = 8").await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        assert_eq!(
            differences(&rig, &task).await?,
            set(&[format!("accounts missing {SOURCE}/{lost} {{\"tenant_id\": 8}}")])
        );
        corrupt(rig.sources()[lost], "INSERT INTO accounts VALUES (8, 0, 'seed8')").await?;
        task.verb("reshard_resume").await?;
        task.watch(&["succeeded"], STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

const CHURNED: &str = "
CREATE TABLE counters (id int PRIMARY KEY, tenant_id bigint, n bigint); ALTER TABLE counters REPLICA IDENTITY FULL;
INSERT INTO counters SELECT g, g, 0 FROM generate_series(1, 40) g;
CREATE TABLE queue (tenant_id bigint, v text); ALTER TABLE queue REPLICA IDENTITY FULL;
INSERT INTO queue SELECT g % 7, 'v' || g % 3 FROM generate_series(1, 200) g;
";

/// Statements that make it as hard as can be: hot rows, rows that go and come back, rows
/// that move between shards, duplicates that come and go.
const CHURN: [&str; 4] = [
    "UPDATE counters SET n = n + 1 WHERE id = 1 + (random() * 9)::int",
    "BEGIN; DELETE FROM counters WHERE id = 21; INSERT INTO counters VALUES (21, 21, 5); COMMIT",
    "UPDATE counters SET tenant_id = tenant_id + 1 WHERE id = 31",
    "INSERT INTO queue VALUES (1 + (random() * 5)::int, 'v1');
     DELETE FROM queue WHERE ctid IN (SELECT ctid FROM queue WHERE v = 'v1' ORDER BY random() LIMIT 1)",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_written_without_a_pause_raise_no_false_alarm() {
    with_extension(2, |rig| async move {
        application(&rig, 2_000).await?;
        rig.source.execute(CHURNED).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let stop = tokio::sync::watch::channel(false);
        let writers: Vec<_> = CHURN
            .into_iter()
            .map(|sql| {
                let (rig, stopped) = (rig.clone(), stop.1.clone());
                tokio::spawn(async move {
                    let session = rig.source.connect().await?;
                    let mut rounds = 0_u64;
                    while !*stopped.borrow() {
                        session.execute(sql).await?;
                        rounds += 1;
                    }
                    Result::Ok(rounds)
                })
            })
            .collect();
        // One difference among all that noise.
        corrupt(&rig.shards[shard_of(15, 2)], "UPDATE counters SET n = -1 WHERE id = 15").await?;
        let expected =
            format!("counters different {DESTINATION}/{} {{\"id\": 15}} n", shard_of(15, 2));
        for round in 0..4 {
            let task = migration.begin_verify().await?;
            let (status, error) = ended(&task).await?;
            assert_eq!(status, "failed", "{error}");
            let found = differences(&rig, &task).await?;
            let (in_flux, known): (Vec<&String>, Vec<&String>) =
                found.iter().partition(|d| d.contains(" in_flux "));
            assert_eq!(known, vec![&expected], "round {round}: {error}");
            println!("round {round}: {} rows in flux: {in_flux:?}", in_flux.len());
        }
        stop.0.send_replace(true);
        for writer in writers {
            println!("{} rounds of a writer", writer.await.unwrap()?);
        }
        let task = migration.begin_verify().await?;
        ended(&task).await?;
        assert_eq!(differences(&rig, &task).await?, set(&[expected]));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_placed_by_range_are_compared_with_their_shards() {
    let placed = Placement::Range { bounds: vec![100] };
    run(RigOptions::new(2).placed(Placement::Hash, placed), |rig| async move {
        application(&rig, 2_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 3, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verify(STEP).await?;
        migration.cutover(STEP).await?;
        migration.verify(STEP).await?;
        migration.rollback(STEP).await?;
        // A guard refuses such rows.
        rig.shards[1].execute("ALTER TABLE tickets DISABLE TRIGGER reshard_placement").await?;
        corrupt(&rig.shards[1], "INSERT INTO tickets VALUES (999999999, 5, 0, 'astray')").await?;
        rig.shards[1]
            .execute("ALTER TABLE tickets ENABLE ALWAYS TRIGGER reshard_placement")
            .await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        assert_eq!(
            differences(&rig, &task).await?,
            set(&[format!("tickets misplaced {DESTINATION}/1 {{\"id\": 999999999}}")])
        );
        corrupt(&rig.shards[1], "DELETE FROM tickets WHERE id = 999999999").await?;
        task.verb("reshard_resume").await?;
        task.watch(&["succeeded"], STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}
