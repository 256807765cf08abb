//! Objects of every kind, and the schemas of real applications.

use std::path::PathBuf;
use std::sync::Arc;

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::{dump, objects, run_script, same_schema};
use reshard_scenarios::{Migration, Result, Rig};

use super::super::common::{with_extension, STEP};
use super::{declare_whole, has_extension, named_oddly, sync, ODD_NAMES};

/// A schema of the planner's tests.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema-plan/tests/fixtures")).join(name)
}

/// Roles and tablespaces belong to the server: a DBA makes them on the shards.
const GLOBALS: &str = "CREATE ROLE fixture_owner; CREATE ROLE fixture_reader; \
                       CREATE ROLE \"Fixture \"\"Grantor\"\"\"";

/// The whole schema of the source is the same on the shards.
async fn arrives_unchanged(rig: &Arc<Rig>) -> Result<()> {
    declare_whole(rig).await?;
    sync(rig, "pre", "{}").await?;
    sync(rig, "post", "{}").await?;
    let differences = same_schema(rig)?;
    assert_eq!(differences, Vec::<String>::new(), "{}", differences.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_object_is_the_same_on_the_shards() {
    with_extension(1, |rig| async move {
        run_script(&rig.source, &fixture("schema.sql"))?;
        let session = rig.source.connect().await?;
        for name in ODD_NAMES {
            session.execute(&named_oddly(name)).await?;
        }
        if has_extension(&rig, "btree_gist").await? {
            run_script(&rig.source, &fixture("contrib.sql"))?;
        }
        if rig.source.installation().major() >= 18 {
            run_script(&rig.source, &fixture("pg18.sql"))?;
        }
        let shard = rig.shards[0].connect().await?;
        shard.execute(GLOBALS).await?;
        shard.execute("SET allow_in_place_tablespaces = on").await?;
        shard.execute("CREATE TABLESPACE \"Fixture Space\" LOCATION ''").await?;
        let count = objects(&dump(&rig.source)?)?;
        println!("{count} objects");
        assert!(count >= 350, "{count}");
        arrives_unchanged(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_of_real_applications_are_the_same_on_the_shards() {
    with_extension(1, |rig| async move {
        for name in ["wagtail", "graphile-worker", "pg-boss", "prefect"] {
            if name == "prefect" && !has_extension(&rig, "pg_trgm").await? {
                println!("{name} needs pg_trgm, which this PostgreSQL lacks");
                continue;
            }
            run_script(&rig.source, &fixture(&format!("applications/{name}.sql")))?;
        }
        let count = objects(&dump(&rig.source)?)?;
        println!("{count} objects");
        assert!(count >= 400, "{count}");
        arrives_unchanged(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_without_columns_and_those_that_an_extension_has_filled_are_no_obstacle() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        if !has_extension(&rig, "lo").await? {
            println!("extension lo is not installed");
            return Ok(());
        }
        // Each extension may fill its own tables.
        for server in rig.servers() {
            server
                .execute(
                    "CREATE EXTENSION lo; CREATE TABLE member (id int PRIMARY KEY);
                     INSERT INTO member VALUES (1), (2); ALTER EXTENSION lo ADD TABLE member",
                )
                .await?;
        }
        session
            .execute(
                "UPDATE member SET id = 3 WHERE id = 2; CREATE TABLE hollow ();
                 CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)",
            )
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'nowhere'), reshard_set_sharding_key('{DESTINATION}', 'id', relation => 't');
                 CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        let told = session
            .column(&format!(
                "SELECT check_name || ' ' || object FROM reshard_preflight('{SOURCE}', '{DESTINATION}', '{PUBLICATION}')
                  WHERE check_name IN ('columnless_tables', 'extension_tables') ORDER BY 1"
            ))
            .await?;
        assert_eq!(told, ["columnless_tables public.hollow", "extension_tables public.member"]);
        let run = Migration::start(&rig, false).await?;
        run.watch(&["replicating"], STEP).await?;
        session.execute("INSERT INTO member VALUES (4)").await?;
        run.cutover(STEP).await?;
        for shard in &rig.shards {
            let rows = shard.connect().await?.column("SELECT id::text FROM member ORDER BY 1").await?;
            assert_eq!(rows, ["1", "3", "4"]);
        }
        run.complete(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_for_the_replica_identity_where_that_is_asked_for_and_goes_again() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE \"Ev ents\" (\"i d\" bigint PRIMARY KEY, tenant bigint NOT NULL, body text);
                 CREATE TABLE nullable (id bigint PRIMARY KEY, tenant bigint);
                 CREATE TABLE has_one (id bigint PRIMARY KEY, tenant bigint NOT NULL, UNIQUE (tenant, id));
                 INSERT INTO \"Ev ents\" SELECT g, g % 10, repeat('x', 3000) FROM generate_series(1, 500) g;
                 INSERT INTO nullable SELECT g, g % 10 FROM generate_series(1, 500) g;
                 INSERT INTO has_one SELECT g, g % 10 FROM generate_series(1, 500) g",
            )
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'tenant'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        let run = Migration::call(
            &rig,
            &format!("SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false, '{{\"replica_identity\": \"index\"}}')"),
        )
        .await?;
        // The build must not wait for those who wait for it.
        run.wait("replicating", STEP).await?;
        let identities = "SELECT relname || ' ' || relreplident::text FROM pg_class WHERE relname IN ('Ev ents', 'nullable', 'has_one') ORDER BY 1";
        let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'reshard%'";
        assert_eq!(session.column(identities).await?, ["Ev ents i", "has_one i", "nullable f"]);
        for server in rig.servers() {
            let count: i64 = server.connect().await?.one(indexes).await?;
            assert_eq!(count, 1, "{}", server.name());
        }
        session
            .execute("UPDATE \"Ev ents\" SET tenant = tenant + 1; DELETE FROM \"Ev ents\" WHERE \"i d\" > 400")
            .await?;
        run.cutover(STEP).await?;
        let mut rows = 0;
        for shard in &rig.shards {
            let there = shard.connect().await?;
            let whole: i64 = there.one("SELECT count(*) FROM \"Ev ents\" WHERE length(body) = 3000").await?;
            rows += whole;
            there.execute("UPDATE \"Ev ents\" SET body = 'short' WHERE \"i d\" <= 10").await?;
        }
        assert_eq!(rows, 400);
        run.rollback(STEP).await?;
        let short: i64 = session.one("SELECT count(*) FROM \"Ev ents\" WHERE body = 'short'").await?;
        assert_eq!(short, 10);
        run.cutover(STEP).await?;
        run.complete(STEP).await?;
        assert_eq!(session.column(identities).await?, ["Ev ents d", "has_one d", "nullable d"]);
        for server in rig.servers() {
            let count: i64 = server.connect().await?.one(indexes).await?;
            assert_eq!(count, 0, "{}", server.name());
        }
        Ok(())
    })
    .await;
}
