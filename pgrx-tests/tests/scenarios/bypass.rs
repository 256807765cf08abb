//! Nobody writes to a closed cluster, whichever way he takes.

use std::time::Duration;

use reshard_scenarios::oracle::fingerprint;
use reshard_scenarios::session::literal;
use reshard_scenarios::{Error, Migration, Result, Rig, Server, Session};

use super::common::{application, with_extension, STEP};

/// Tables that only these scenarios have.
const MORE: &str = "
CREATE TABLE parts (tenant_id bigint NOT NULL, id bigint NOT NULL, stamp text, PRIMARY KEY (tenant_id, id))
    PARTITION BY RANGE (tenant_id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (1000);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (1000) TO (MAXVALUE);
INSERT INTO parts SELECT g * 40, g, 'seed' FROM generate_series(1, 50) g;
CREATE VIEW order_view AS SELECT tenant_id, id, owner, stamp FROM orders;
CREATE FUNCTION write_order() RETURNS void LANGUAGE sql SECURITY DEFINER
    AS 'INSERT INTO orders (tenant_id, id, owner, stamp) VALUES (1, 900001, 0, ''f'')';
";

/// Ways to write, each in a session of its own: what it is, and its statements.
const WAYS: &[(&str, &str)] = &[
    ("a superuser", "INSERT INTO settings VALUES (900001, 0, 'x')"),
    (
        "a session that is set to write",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; SET default_transaction_read_only = off;
         UPDATE orders SET stamp = 'x' WHERE id = 1",
    ),
    ("a transaction in SERIALIZABLE", "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; DELETE FROM orders WHERE id = 1; COMMIT"),
    ("COPY", r#"COPY settings FROM PROGRAM 'printf "900002\t0\tx\n"'"#),
    (
        "MERGE",
        "MERGE INTO settings AS s USING (VALUES (1), (900003)) AS v (id) ON s.id = v.id
         WHEN MATCHED THEN UPDATE SET stamp = 'x' WHEN NOT MATCHED THEN INSERT VALUES (v.id, 0, 'x')",
    ),
    ("TRUNCATE", "TRUNCATE settings"),
    ("TRUNCATE of a partitioned table", "TRUNCATE parts"),
    ("a partitioned table", "INSERT INTO parts VALUES (40, 900004, 'x')"),
    ("a partition", "UPDATE parts_low SET stamp = 'x'"),
    ("a writable CTE", "WITH gone AS (DELETE FROM orders WHERE id < 5 RETURNING 1) SELECT count(*) FROM gone"),
    ("ON CONFLICT", "INSERT INTO settings VALUES (1, 0, 'x') ON CONFLICT (id) DO UPDATE SET stamp = 'x'"),
    ("a view", "UPDATE order_view SET stamp = 'x' WHERE id = 2"),
    ("a function", "SELECT write_order()"),
    ("an anonymous block", "DO $$ BEGIN EXECUTE 'DELETE FROM notes'; END $$"),
    ("a prepared statement", "PREPARE p AS UPDATE notes SET stamp = 'x'; EXECUTE p"),
    ("a session that calls itself a replica", "SET session_replication_role = replica; DELETE FROM events"),
    ("row security left out", "SET row_security = off; DELETE FROM accounts"),
];

/// Outside of the fence: they change no table that moves.
const NOT_FENCED: &[&str] = &[
    "SELECT nextval('tickets_id_seq')",
    "SELECT lo_unlink(lo_from_bytea(0, 'x'))",
    "SET reshard.ddl_guard = off; CREATE TABLE elsewhere (v int); INSERT INTO elsewhere VALUES (1); DROP TABLE elsewhere",
    "CREATE TEMP TABLE t AS SELECT * FROM orders; DELETE FROM t",
    "SELECT * FROM orders LIMIT 1 FOR UPDATE",
    "ANALYZE orders",
];

async fn refused(session: &Session, what: &str, sql: &str) -> Result<()> {
    match session.execute(sql).await {
        Err(error) if error.sqlstate() == Some("25006") => Ok(()),
        Err(error) => Err(Error::Unexpected(format!("{what}: another error: {error}"))),
        Ok(()) => Err(Error::Unexpected(format!("{what} wrote to a closed cluster"))),
    }
}

async fn contents(server: &Server) -> Result<Vec<(u64, String)>> {
    let mut all = Vec::new();
    for table in ["accounts", "orders", "events", "notes", "docs", "tickets", "settings", "parts"] {
        all.push(fingerprint(&[server], table, "true").await?);
    }
    Ok(all)
}

/// Tries all ways on one server of the closed cluster. `cron` was opened, and has
/// written, while the cluster was open.
async fn try_all(server: &Server, through: Option<&Server>, cron: &Session) -> Result<()> {
    let before = contents(server).await?;
    for (what, sql) in WAYS {
        refused(&server.connect().await?, what, sql).await?;
    }
    refused(cron, "a session from before the switch", "EXECUTE job").await?;
    if let Some(other) = through {
        let session = other.connect_as("postgres", "postgres").await?;
        session
            .execute(&format!(
                "DROP EXTENSION IF EXISTS postgres_fdw CASCADE; CREATE EXTENSION postgres_fdw;
                 CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host {}, port '{}', dbname 'app');
                 CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'postgres', password_required 'false');
                 CREATE FOREIGN TABLE far_settings (id bigint, owner int, stamp text)
                     SERVER far OPTIONS (table_name 'settings')",
                literal(&server.folder().to_string_lossy()),
                server.port()
            ))
            .await?;
        refused(&session, "a foreign table", "INSERT INTO far_settings VALUES (900005, 0, 'x')")
            .await?;
        refused(&session, "a foreign table", "UPDATE far_settings SET stamp = 'x'").await?;
    }
    for sql in NOT_FENCED {
        server.execute(sql).await?;
    }
    match contents(server).await? == before {
        true => Ok(()),
        false => Err(Error::Unexpected(format!("rows on {} have changed", server.name()))),
    }
}

async fn open_job(server: &Server) -> Result<Session> {
    let session = server.connect().await?;
    session
        .execute("PREPARE job AS UPDATE orders SET stamp = stamp WHERE id = 1; EXECUTE job")
        .await?;
    Ok(session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_leads_into_a_closed_cluster() {
    with_extension(2, |rig| async move {
        rig.source.execute("CREATE SCHEMA IF NOT EXISTS public").await?;
        application(&rig, 500).await?;
        rig.source.execute(MORE).await?;
        let fdw: i64 = rig
            .source
            .connect()
            .await?
            .one("SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'")
            .await?;
        let through = |other| (fdw > 0).then_some(other);
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let cron = open_job(&rig.source).await?;
        migration.cutover(STEP).await?;
        try_all(&rig.source, through(&rig.shards[0]), &cron).await?;

        let mut jobs = Vec::new();
        for shard in &rig.shards {
            jobs.push(open_job(shard).await?);
        }
        migration.rollback(STEP).await?;
        for (shard, job) in rig.shards.iter().zip(&jobs) {
            try_all(shard, through(&rig.source), job).await?;
        }
        a_fence_that_was_taken_off_is_put_back(&rig, &migration).await?;
        a_subscription_of_someone_else_stops_a_cutover(&rig, &migration).await
    })
    .await;
}

async fn a_fence_that_was_taken_off_is_put_back(rig: &Rig, migration: &Migration) -> Result<()> {
    rig.source
        .execute("SET reshard.ddl_guard = off; ALTER TABLE orders DISABLE TRIGGER ALL; DROP TRIGGER reshard_fence ON settings")
        .await?;
    migration.cutover(STEP).await?;
    let session = rig.source.connect().await?;
    refused(&session, "a table whose triggers were disabled", "DELETE FROM orders").await?;
    refused(&session, "a table whose trigger was dropped", "DELETE FROM settings").await?;
    migration.rollback(STEP).await
}

async fn a_subscription_of_someone_else_stops_a_cutover(
    rig: &Rig,
    migration: &Migration,
) -> Result<()> {
    rig.shards[0].execute("CREATE PUBLICATION others FOR TABLE settings").await?;
    let sql = format!(
        "CREATE SUBSCRIPTION others CONNECTION {} PUBLICATION others WITH (copy_data = false)",
        literal(&rig.shards[0].conninfo())
    );
    rig.source.execute(&sql).await?;
    migration.verb("reshard_cutover").await?;
    let error = migration.wait("switched", Duration::from_secs(60)).await.unwrap_err();
    let error = error.sql().unwrap().full_text();
    assert!(error.contains("others") && error.contains("settings"), "{error}");
    rig.source.execute("DROP SUBSCRIPTION others").await?;
    migration.cutover(STEP).await
}
