//! Second waves: tables that are copied anew, once and whole.

use std::sync::Arc;

use reshard_scenarios::cluster::process::copy_workers;
use reshard_scenarios::migration::{declare, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Stop};

use super::common::{application, restart, run, KEY, STEP};
use super::copy::{equal, fails_with, limit};

/// Copies into tables that the shards have already.
async fn copy_data(rig: &Arc<Rig>) -> Result<Migration> {
    let what = format!("'{SOURCE}', '{DESTINATION}', '{PUBLICATION}'");
    Migration::call(rig, &format!("SELECT reshard_copy_data({what})")).await
}

async fn everywhere(rig: &Rig, sql: &str) -> Result<()> {
    for server in rig.servers() {
        server.execute(sql).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_that_takes_the_claims_of_parts_back_doubles_no_row() {
    // Commits that are not waited for are in no file when the source crashes.
    let options = RigOptions::new(2)
        .source("wal_writer_delay", "10s")
        .source("wal_writer_flush_after", "64MB")
        .source("autovacuum", "off");
    run(options, |rig| async move {
        everywhere(
            &rig,
            "DO $$ BEGIN FOR i IN 1..320 LOOP
                 EXECUTE format('CREATE TABLE bare%s (tenant_id bigint, filler text)', i);
             END LOOP; END $$",
        )
        .await?;
        rig.source
            .execute(
                "DO $$ BEGIN FOR i IN 1..320 LOOP
                     EXECUTE format('INSERT INTO bare%s SELECT g, repeat(md5(g::text), 8)
                                       FROM generate_series(1, 20) AS g', i);
                 END LOOP; END $$",
            )
            .await?;
        declare(&rig, KEY).await?;
        limit(&rig, 300).await?;
        let migration = copy_data(&rig).await?;
        let session = rig.source.connect().await?;
        wait_until(STEP, "a third of the tables to be copied", || async {
            let copied: i64 = session
                .one("SELECT count(*) FROM reshard.table_copies WHERE status = 'copied'")
                .await?;
            Ok(copied > 100)
        })
        .await?;
        restart(&rig.source, Stop::Immediate)?;
        limit(&rig, 0).await?;
        migration.watch(&["replicating"], STEP).await?;
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_shard_drops_and_tables_that_others_hold_are_errors_until_they_are_mended() {
    let options = RigOptions::new(2).source("reshard.copy_part_size", "1MB");
    run(options, |rig| async move {
        everywhere(
            &rig,
            "CREATE TABLE parent (tenant_id bigint PRIMARY KEY, filler text);
             CREATE TABLE child (tenant_id bigint PRIMARY KEY REFERENCES parent)",
        )
        .await?;
        rig.source
            .execute(
                "INSERT INTO parent SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 40000) AS g;
                 INSERT INTO child SELECT g FROM generate_series(1, 1000) AS g",
            )
            .await?;
        rig.shards[0]
            .execute(
                "CREATE FUNCTION dropped() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN IF NEW.tenant_id % 100 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$;
                 CREATE TRIGGER dropped BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION dropped();
                 ALTER TABLE parent ENABLE ALWAYS TRIGGER dropped",
            )
            .await?;
        declare(&rig, KEY).await?;
        let migration = copy_data(&rig).await?;
        fails_with(&migration, " rows of ").await?;
        // Nothing of it was taken for copied.
        migration.verb("reshard_resume").await?;
        fails_with(&migration, " rows of ").await?;
        rig.shards[0].execute("DROP FUNCTION dropped() CASCADE").await?;

        limit(&rig, 1_000).await?;
        migration.verb("reshard_resume").await?;
        let session = rig.source.connect().await?;
        wait_until(STEP, "parts of the table to be copied", || async {
            let done: i64 = session
                .one(
                    "SELECT count(*) FROM reshard.copy_part AS p JOIN reshard.copy_table AS t USING (task_id, table_id)
                      WHERE t.table_name = 'parent' AND p.status = 'done'",
                )
                .await?;
            Ok(done >= 2)
        })
        .await?;
        migration.verb("reshard_stop_task").await?;
        fails_with(&migration, "stopped").await?;
        wait_until(STEP, "the workers to end", || async { Ok(copy_workers(&rig.source)?.is_empty()) }).await?;
        // As after a rewrite that was noticed while other parts of the table were on their way.
        let rewritten = "UPDATE reshard.copy_table SET status = 'rewritten' WHERE table_name = 'parent' AND status = 'running'";
        assert_eq!(session.affected(rewritten).await?, 1);

        let holder = rig.shards[1].connect().await?;
        holder.execute("BEGIN; LOCK TABLE parent IN ACCESS SHARE MODE").await?;
        limit(&rig, 0).await?;
        migration.verb("reshard_resume").await?;
        wait_until(STEP, "the task to name who holds the table", || async {
            let error = migration.state().await?.error.unwrap_or_default();
            Ok(error.contains("In the way: pid"))
        })
        .await?;
        holder.execute("ROLLBACK").await?;
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(session.one::<i64>("SELECT max(wave) FROM reshard.table_copies").await?, 2);
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_to_begin_a_wave_without_a_free_slot_are_no_waves() {
    run(RigOptions::new(2), |rig| async move {
        application(&rig, 500).await?;
        let begin = format!(
            "SELECT reshard_stop_task(reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}'))"
        );
        let migration = Migration::call(&rig, &begin).await?;
        fails_with(&migration, "stopped").await?;
        let session = rig.source.connect().await?;
        session
            .execute(
                "SELECT pg_create_physical_replication_slot('taken_' || g)
                   FROM generate_series(1, current_setting('max_replication_slots')::int
                                           - (SELECT count(*)::int FROM pg_replication_slots)) AS g",
            )
            .await?;
        let waves = "SELECT count(DISTINCT wave) FROM reshard.wave";
        for _ in 0..2 {
            migration.verb("reshard_resume").await?;
            fails_with(&migration, "all replication slots are in use").await?;
            assert!(session.one::<i64>(waves).await? <= 1);
        }
        session
            .execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                  WHERE slot_name LIKE 'taken%'",
            )
            .await?;
        migration.verb("reshard_resume").await?;
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(session.one::<i64>(waves).await?, 1);
        let told = "SELECT count(*) FROM reshard.events WHERE kind = 'wave'";
        assert_eq!(session.one::<i64>(told).await?, 0);
        equal(&rig).await
    })
    .await;
}
