//! Writers raise no false alarm, and hide nothing.

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::DESTINATION;
use reshard_scenarios::placement::shard_of;
use reshard_scenarios::{Migration, Result};

use super::super::common::{application, check_outcome, run, with_extension, STEP};
use super::{corrupt, differences, ended, set, small_chunks};

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
