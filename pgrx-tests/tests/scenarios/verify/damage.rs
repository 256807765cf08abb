//! Whatever differs is found and named, on either side, and seen to be mended.

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::{DESTINATION, SOURCE};
use reshard_scenarios::placement::shard_of;
use reshard_scenarios::Migration;

use super::super::common::{application, check_outcome, run, with_extension, STEP};
use super::{corrupt, differences, ended, set, small_chunks};

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
