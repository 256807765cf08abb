//! Changes during the run, each of a kind that went wrong elsewhere.

use std::sync::Arc;

use reshard_scenarios::oracle::compare_when_quiet;
use reshard_scenarios::{Migration, Result, Rig};

use super::common::{application, with_extension, KEY, STEP};

/// Runs `sql` on the source between the copy and the cutover, and again the
/// other way round after a cutover and a rollback.
async fn while_replicating(rig: Arc<Rig>, setup: &str, changes: &[&str]) -> Result<()> {
    application(&rig, 300).await?;
    rig.source.execute(setup).await?;
    let migration = Migration::start(&rig, false).await?;
    migration.watch(&["replicating"], STEP).await?;
    for sql in changes {
        rig.source.execute(sql).await?;
    }
    compare_when_quiet(&rig, KEY, STEP).await?;
    migration.cutover(STEP).await?;
    compare_when_quiet(&rig, KEY, STEP).await?;
    migration.rollback(STEP).await?;
    compare_when_quiet(&rig, KEY, STEP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_to_another_shard_takes_its_unchanged_toast_along() {
    with_extension(4, |rig| async move {
        while_replicating(
            rig,
            "CREATE TABLE wide (id int PRIMARY KEY, tenant_id bigint, a text, b text, c int);
             ALTER TABLE wide ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
             INSERT INTO wide SELECT g, g, repeat(md5(g::text), 400), CASE WHEN g % 2 = 0 THEN repeat(md5('b' || g), 2000) END, NULL
             FROM generate_series(1, 60) g",
            &[
                "UPDATE wide SET tenant_id = tenant_id + 1000",
                "UPDATE docs SET tenant_id = tenant_id + 7",
                "UPDATE wide SET c = id WHERE id % 3 = 0",
                "UPDATE wide SET tenant_id = NULL WHERE id % 5 = 0",
                "UPDATE wide SET tenant_id = 5 WHERE tenant_id IS NULL AND id % 2 = 0",
                "BEGIN; UPDATE wide SET tenant_id = tenant_id + 1; UPDATE wide SET tenant_id = tenant_id - 3; COMMIT",
            ],
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_without_primary_key_keep_their_duplicates() {
    with_extension(4, |rig| async move {
        while_replicating(
            rig,
            "CREATE TABLE bare (tenant_id bigint, v text, n int);
             ALTER TABLE bare REPLICA IDENTITY FULL;
             INSERT INTO bare SELECT g % 20, 'v' || g % 3, NULLIF(g % 4, 0) FROM generate_series(1, 400) g",
            &[
                "INSERT INTO bare SELECT g % 20, 'v' || g % 3, NULLIF(g % 4, 0) FROM generate_series(1, 100) g",
                "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE n IS NULL)",
                "UPDATE bare SET v = 'w' WHERE ctid = (SELECT max(ctid) FROM bare WHERE n = 1)",
                "UPDATE bare SET tenant_id = 1000 + n WHERE n IS NOT NULL",
                "INSERT INTO bare VALUES (NULL, NULL, NULL), (NULL, NULL, NULL)",
                "DELETE FROM bare WHERE tenant_id = 1002",
            ],
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_with_generated_columns_take_updates_on_both_sides() {
    with_extension(2, |rig| async move {
        application(&rig, 100).await?;
        // From PostgreSQL 18 on they can't have FULL.
        rig.source
            .execute(
                "CREATE TABLE computed (
                     id int PRIMARY KEY, tenant_id bigint NOT NULL, v text,
                     size int GENERATED ALWAYS AS (length(v)) STORED);
                 ALTER TABLE computed ALTER v SET STORAGE EXTERNAL;
                 INSERT INTO computed SELECT g, g, repeat('v', 5000 + g) FROM generate_series(1, 100) AS g",
            )
            .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        rig.source
            .execute(
                "UPDATE computed SET tenant_id = tenant_id + 50 WHERE id % 2 = 0;
                 UPDATE computed SET v = v || 'w' WHERE id % 3 = 0;
                 DELETE FROM computed WHERE id % 7 = 0",
            )
            .await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.cutover(STEP).await?;
        for shard in &rig.shards {
            shard
                .execute("UPDATE computed SET v = v || 'x' WHERE id % 5 = 0; DELETE FROM computed WHERE id % 11 = 0")
                .await?;
        }
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.rollback(STEP).await?;
        migration.cancel(STEP).await?;
        rig.source.execute("UPDATE computed SET v = 'y' WHERE id = 1").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_outside_the_primary_key_never_breaks_the_applications_writes() {
    with_extension(2, |rig| async move {
        application(&rig, 300).await?;
        rig.source
            .execute(
                "CREATE TABLE keyed (id int PRIMARY KEY, tenant_id bigint NOT NULL, v int, UNIQUE (tenant_id, id));
                 INSERT INTO keyed SELECT g, g, 0 FROM generate_series(1, 200) g",
            )
            .await?;
        let stop = tokio::sync::watch::channel(false);
        let writer = {
            let (rig, stopped) = (rig.clone(), stop.1);
            tokio::spawn(async move {
                let session = rig.source.connect().await?;
                let mut rounds = 0;
                while !*stopped.borrow() {
                    session.execute("UPDATE keyed SET v = v + 1, tenant_id = tenant_id + 1 WHERE id % 10 = 0").await?;
                    session.execute("UPDATE events SET tenant_id = tenant_id + 1 WHERE id % 50 = 0").await?;
                    session.execute("DELETE FROM keyed WHERE id = 7; INSERT INTO keyed VALUES (7, 7, 7)").await?;
                    rounds += 1;
                }
                Result::Ok(rounds)
            })
        };
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        stop.0.send_replace(true);
        let rounds: u32 = writer.await.unwrap()?;
        assert!(rounds > 3, "{rounds}");
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omni_tables_are_equal_on_every_shard() {
    with_extension(3, |rig| async move {
        while_replicating(
            rig,
            "CREATE TABLE rates (id serial PRIMARY KEY, name text UNIQUE, v numeric);
             INSERT INTO rates (name, v) SELECT 'r' || g, g FROM generate_series(1, 100) g;
             CREATE TABLE flags (name text); ALTER TABLE flags REPLICA IDENTITY FULL; INSERT INTO flags VALUES ('a'), ('a'), (NULL)",
            &[
                "UPDATE rates SET v = v * 2 WHERE id % 2 = 0",
                "DELETE FROM rates WHERE id % 5 = 0",
                "INSERT INTO rates (name, v) VALUES ('new', NULL)",
                "UPDATE rates SET id = id + 1000 WHERE id < 20",
                "INSERT INTO flags VALUES ('b'), ('b')",
                "DELETE FROM flags WHERE name = 'a'",
                "UPDATE settings SET stamp = 'changed'",
            ],
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_during_the_run_reaches_every_shard() {
    with_extension(2, |rig| async move {
        while_replicating(
            rig,
            "SELECT 1",
            &[
                "TRUNCATE events",
                "INSERT INTO events SELECT g, g, 0, 'after' FROM generate_series(1, 50) g",
                "TRUNCATE settings, notes",
                "INSERT INTO settings VALUES (1, 0, 'after')",
            ],
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_partitions_are_copied_and_replicated() {
    with_extension(2, |rig| async move {
        while_replicating(
            rig,
            "CREATE TABLE log (tenant_id bigint NOT NULL, at date NOT NULL, v text, PRIMARY KEY (tenant_id, at)) PARTITION BY RANGE (at);
             CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
             CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (tenant_id);
             CREATE TABLE log_2a PARTITION OF log_2 FOR VALUES IN (1, 2, 3);
             CREATE TABLE log_2b PARTITION OF log_2 DEFAULT;
             INSERT INTO log SELECT g, '2026-01-01'::date + g % 50, 'v' || g FROM generate_series(1, 500) g",
            &[
                "UPDATE log SET v = 'u' WHERE tenant_id % 3 = 0",
                "UPDATE log SET at = at + 25 WHERE at < '2026-01-05'",
                "DELETE FROM log_1 WHERE tenant_id % 7 = 0",
                "INSERT INTO log_2a VALUES (2, '2026-02-17', 'leaf')",
                "UPDATE log SET tenant_id = tenant_id + 5000 WHERE tenant_id < 20",
            ],
        )
        .await
    })
    .await;
}
