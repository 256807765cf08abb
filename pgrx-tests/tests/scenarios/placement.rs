//! Placement by list and by range: each row on the shard that its key is mapped to,
//! whatever is written when, and no row that no shard takes.

use std::sync::Arc;

use reshard_scenarios::load::{tenants, Active, Load, LoadOptions};
use reshard_scenarios::migration::{DESTINATION, PUBLICATION};
use reshard_scenarios::oracle::{compare_when_quiet, Footprint};
use reshard_scenarios::placement::Placement;
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server, SqlError};

use super::common::{
    application, application_of_several, check_outcome, complete_without_trace, run, switch_thrice,
    with_extension, KEY, STEP,
};

const FOLLOWERS: u32 = 6;

fn writers() -> LoadOptions {
    LoadOptions { followers: FOLLOWERS, ..LoadOptions::default() }
}

/// A list of the clients' keys.
fn list(shards: usize) -> Placement {
    let keys = (1..=i64::from(FOLLOWERS)).flat_map(tenants).chain(1..=60);
    Placement::list(keys, shards)
}

/// Bounds in the middle of clients' keys, so that rows cross them.
fn range() -> Placement {
    Placement::Range { bounds: vec![2_000_006, 4_000_011] }
}

/// There and back twice, under writers.
async fn switches_under_writers(rig: Arc<Rig>) -> Result<()> {
    let load = Load::start(&rig, &writers());
    load.each_acknowledged(15, STEP).await?;
    let migration = Migration::start(&rig, false).await?;
    migration.watch(&["replicating"], STEP).await?;
    switch_thrice(&migration, &load).await?;
    let outcome = load.finish().await?;
    assert_eq!(outcome.active, Active::Shards);
    check_outcome(&rig, &outcome).await?;
    complete_without_trace(&rig, &migration).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_list_with_a_default_under_writers_nothing_is_lost_or_misplaced() {
    run(RigOptions::new(3).placed(Placement::Hash, list(3)), |rig| async move {
        application(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_range_under_writers_nothing_is_lost_or_misplaced() {
    run(RigOptions::new(3).placed(Placement::Hash, range()), |rig| async move {
        application(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_hash_to_list_under_writers_nothing_is_lost_or_misplaced() {
    let options = RigOptions::several(2, 3).placed(Placement::Hash, list(3));
    run(options, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_range_to_hash_under_writers_nothing_is_lost_or_misplaced() {
    let options = RigOptions::several(3, 2).placed(range(), Placement::Hash);
    run(options, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

/// Numbers of rows of a table on each shard.
async fn counts(rig: &Rig, table: &str) -> Result<Vec<i64>> {
    let mut counts = Vec::new();
    for shard in &rig.shards {
        let sql = format!("SELECT count(*) FROM {table}");
        counts.push(shard.connect().await?.one(&sql).await?);
    }
    Ok(counts)
}

async fn refused(server: &Server, sql: &str) -> Result<SqlError> {
    match server.execute(sql).await {
        Err(Error::Sql(error)) => Ok(*error),
        Err(other) => Err(other),
        Ok(()) => Err(Error::Unexpected(format!("not refused: {sql}"))),
    }
}

/// A row without a place is refused, with the key and the table named.
async fn unplaced(server: &Server, sql: &str, names: &[&str]) -> Result<()> {
    let error = refused(server, sql).await?;
    assert_eq!(error.code.as_deref(), Some("23514"), "{sql}: {error}");
    for name in names {
        assert!(error.full_text().contains(name), "\"{name}\" is not named: {error}");
    }
    assert!(error.hint.is_some(), "{error}");
    Ok(())
}

/// Both clusters and the publication, but no sharding key.
async fn declared(rig: &Rig, tables: &str) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute(tables).await?;
    session.execute("CREATE EXTENSION reshard").await?;
    reshard_scenarios::migration::declare_shards(rig, &session).await?;
    session.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await
}

const REGIONS: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, region varchar(20), v int DEFAULT 0);
    INSERT INTO customers SELECT g, (ARRAY['eu', 'us', 'it''s', 'b\\a\"c', NULL])[1 + g % 5], 0
      FROM generate_series(1, 500) g;
    CREATE TABLE visits (region text, at date NOT NULL, v int) PARTITION BY RANGE (at);
    CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
    ALTER TABLE visits_1 REPLICA IDENTITY FULL; ALTER TABLE visits_2 REPLICA IDENTITY FULL;
    INSERT INTO visits SELECT (ARRAY['eu', 'us'])[1 + g % 2], '2026-01-01'::date + g % 50, g
      FROM generate_series(1, 300) g;";

const MAP_REGIONS: &str = r#"
    SELECT reshard_set_sharding_key('prod_sharded', 'region', 'list');
    SELECT reshard_map_values('prod_sharded', 'region', ARRAY['eu', 'it''s'], 0);
    SELECT reshard_map_values('prod_sharded', 'region', ARRAY['us', 'b\a"c'], 1);
    SELECT reshard_map_values('prod_sharded', 'region', ARRAY[NULL], 2);"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_place_are_refused_in_every_phase() {
    with_extension(3, |rig| async move {
        declared(&rig, REGIONS).await?;
        rig.source.execute(MAP_REGIONS).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(counts(&rig, "customers").await?, [200, 200, 100]);
        assert_eq!(counts(&rig, "visits").await?, [150, 150, 0]);

        let source = &rig.source;
        let names = ["customers", "region", "'mars'", DESTINATION];
        unplaced(source, "INSERT INTO customers VALUES (1001, 'mars')", &names).await?;
        unplaced(source, "UPDATE customers SET region = 'mars' WHERE id = 1", &names).await?;
        unplaced(source, "UPDATE visits SET region = NULL WHERE v = 1; UPDATE visits SET region = 'mars' WHERE v = 1", &["visits_1", "'mars'"]).await?;
        unplaced(source, "INSERT INTO visits VALUES ('mars', '2026-02-03', 1)", &["visits_2"]).await?;
        unplaced(source, "INSERT INTO visits_1 VALUES ('mars', '2026-01-03', 1)", &["visits_1"]).await?;
        unplaced(source, "SET session_replication_role = replica; INSERT INTO customers VALUES (1001, 'mars')", &names).await?;
        unplaced(source, "COPY customers (id, region) FROM PROGRAM 'echo 1001,mars' (FORMAT csv)", &names).await?;
        source
            .execute(
                "INSERT INTO customers VALUES (1002, 'us'), (1003, NULL);
                 UPDATE customers SET region = 'us' WHERE region = 'eu' AND id % 10 = 0;
                 UPDATE customers SET region = NULL WHERE id = 2;
                 UPDATE visits SET region = 'us', at = at + 20 WHERE v % 3 = 0 AND at < '2026-01-25';
                 DELETE FROM visits_1 WHERE v % 7 = 0",
            )
            .await?;
        equal(&rig).await?;

        migration.cutover(STEP).await?;
        let own = ["customers", "shard 0", "'us'"];
        unplaced(&rig.shards[0], "INSERT INTO customers VALUES (2001, 'us')", &own).await?;
        unplaced(&rig.shards[0], "INSERT INTO customers VALUES (2001, 'mars')", &["'mars'"]).await?;
        unplaced(&rig.shards[1], "INSERT INTO customers VALUES (2001)", &["shard 1", "NULL"]).await?;
        unplaced(&rig.shards[1], "UPDATE visits SET region = 'eu'", &["visits_", "'eu'"]).await?;
        unplaced(&rig.shards[1], "INSERT INTO visits_1 VALUES ('eu', '2026-01-03', 1)", &["visits_1"]).await?;
        rig.shards[0].execute("INSERT INTO customers VALUES (2002, 'it''s'); UPDATE customers SET v = 1").await?;
        rig.shards[1].execute("UPDATE customers SET region = 'b\\a\"c' WHERE id % 2 = 0").await?;
        rig.shards[2].execute("INSERT INTO customers VALUES (2003)").await?;
        equal(&rig).await?;

        migration.rollback(STEP).await?;
        unplaced(source, "INSERT INTO customers VALUES (3001, 'mars')", &names).await?;
        source.execute("UPDATE customers SET region = 'us' WHERE id = 2002").await?;
        equal(&rig).await?;
        migration.cutover(STEP).await?;
        migration.complete(STEP).await?;
        // Nothing guards the tables any more.
        rig.shards[0].execute("INSERT INTO customers VALUES (4001, 'mars')").await?;
        source.execute("SELECT reshard_unfence('prod')").await?;
        source.execute("INSERT INTO customers VALUES (4001, 'mars')").await
    })
    .await;
}

/// Source and shards hold the same rows of [`REGIONS`], each where it is mapped to.
async fn equal(rig: &Rig) -> Result<()> {
    const PLACE: [&str; 3] =
        ["region IN ('eu', 'it''s')", "region IN ('us', 'b\\a\"c')", "region IS NULL"];
    reshard_scenarios::wait::wait_until(STEP, "the shards to be equal", || async {
        for table in ["customers", "visits_1", "visits_2"] {
            for (shard, place) in rig.shards.iter().zip(PLACE) {
                let of = |filter: &str| format!(
                    "SELECT count(*) || '/' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t WHERE {filter}"
                );
                let here = rig.source.connect().await?.text(&of(place)).await?;
                if here != shard.connect().await?.text(&of("true")).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_place_are_found_before_anything_is_touched() {
    with_extension(3, |rig| async move {
        declared(&rig, REGIONS).await?;
        rig.source
            .execute(
                "SELECT reshard_set_sharding_key('prod_sharded', 'region', 'list');
                 SELECT reshard_map_values('prod_sharded', 'region', '{eu}', 0),
                        reshard_map_values('prod_sharded', 'region', '{us}', 1)",
            )
            .await?;
        let before = Footprint::of_rig(&rig).await?;
        let start = "SELECT reshard_start('prod', 'prod_sharded', 'all_tables', false)";
        unplaced(&rig.source, start, &["300 rows", "customers", "3 values", "NULL", "'it''s'"]).await?;
        for ((server, before), after) in rig.servers().zip(&before).zip(&Footprint::of_rig(&rig).await?) {
            assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
        }
        let session = rig.source.connect().await?;
        let warned = session
            .column("SELECT object FROM reshard_preflight('prod', 'prod_sharded', 'all_tables') WHERE check_name = 'sharding_key_shards'")
            .await?;
        assert_eq!(warned.len(), 1, "{warned:?}");
        // Only rows that move need a place.
        rig.source
            .execute(
                "DROP PUBLICATION all_tables;
                 ALTER TABLE customers REPLICA IDENTITY FULL;
                 CREATE PUBLICATION all_tables FOR TABLE customers WHERE (region = 'eu' OR region = 'us' OR id > 10000)",
            )
            .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(counts(&rig, "customers").await?, [100, 100, 0]);
        rig.source.execute("INSERT INTO customers VALUES (1001, 'mars')").await?;
        unplaced(&rig.source, "INSERT INTO customers VALUES (10001, 'mars')", &["'mars'"]).await?;
        migration.cancel(STEP).await?;
        rig.source.execute("INSERT INTO customers VALUES (10001, 'mars')").await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_a_place_stops_the_copy_and_is_named() {
    with_extension(2, |rig| async move {
        declared(
            &rig,
            "CREATE TABLE readings (id int PRIMARY KEY, at timestamptz, v text);
             INSERT INTO readings SELECT g, '2026-01-01 00:00+00'::timestamptz + g * interval '1 hour', repeat('x', 500)
               FROM generate_series(1, 2000) g",
        )
        .await?;
        rig.source
            .execute(
                "SET TimeZone = 'Europe/Rome';
                 SELECT reshard_set_sharding_key('prod_sharded', 'at', 'range');
                 SELECT reshard_map_range('prod_sharded', 'at', NULL, '2026-02-01', 0),
                        reshard_map_range('prod_sharded', 'at', '2026-02-01', '2030-01-01', 1)",
            )
            .await?;
        // The row comes after preflight and is committed before the guard.
        rig.source.set(&[("reshard.lock_timeout", "100ms")])?;
        let writer = rig.source.connect().await?;
        writer.execute("BEGIN; INSERT INTO readings VALUES (9001, '2031-05-05 00:00+00', 'late')").await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["copy"], STEP).await?;
        writer.execute("COMMIT").await?;
        let state = match migration.watch(&["replicating"], STEP).await {
            Err(Error::Unexpected(_)) => migration.state().await?,
            Err(error) => return Err(error),
            Ok(state) => return Err(Error::Unexpected(format!("{state:?}"))),
        };
        let error = state.error.unwrap_or_default();
        for name in ["readings", "\"at\"", "2031-05-05", DESTINATION] {
            assert!(error.contains(name), "\"{name}\" is not named: {error}");
        }
        rig.source.execute("DELETE FROM readings WHERE id = 9001").await?;
        migration.verb("reshard_resume").await?;
        migration.watch(&["replicating"], STEP).await?;
        unplaced(&rig.source, "UPDATE readings SET at = '2031-01-01' WHERE id = 5", &["readings", "2031"]).await?;
        unplaced(&rig.source, "INSERT INTO readings VALUES (9002)", &["NULL"]).await?;
        // Midnight of Rome is where the shards part.
        assert_eq!(counts(&rig, "readings WHERE at < '2026-01-31 23:00+00'").await?, [742, 0]);
        assert_eq!(counts(&rig, "readings").await?, [742, 1258]);
        rig.source.execute("UPDATE readings SET at = at + interval '31 days' WHERE id % 2 = 0").await?;
        migration.cutover(STEP).await?;
        assert_eq!(counts(&rig, "readings WHERE at < '2026-01-31 23:00+00'").await?, [371, 0]);
        migration.rollback(STEP).await?;
        migration.cancel(STEP).await?;
        rig.source.execute("INSERT INTO readings VALUES (9002)").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_keys_are_placed_by_range_in_the_columns_own_order() {
    with_extension(3, |rig| async move {
        declared(
            &rig,
            r#"CREATE TABLE words (word text COLLATE "C" NOT NULL, "Id" bigint GENERATED ALWAYS AS IDENTITY, n int, PRIMARY KEY (word, "Id"));
               INSERT INTO words (word, n) SELECT chr(65 + g % 58) || g, g FROM generate_series(1, 580) g"#,
        )
        .await?;
        rig.source
            .execute(
                "SELECT reshard_set_sharding_key('prod_sharded', 'word', 'range');
                 SELECT reshard_map_range('prod_sharded', 'word', NULL, 'M', 0),
                        reshard_map_range('prod_sharded', 'word', 'a', NULL, 1),
                        reshard_map_default('prod_sharded', 'word', 2)",
            )
            .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(counts(&rig, "words").await?, [120, 260, 200]);
        rig.source
            .execute("UPDATE words SET word = lower(word) WHERE word < 'C'; UPDATE words SET word = 'Q' || word WHERE n % 10 = 0")
            .await?;
        migration.cutover(STEP).await?;
        for (shard, place) in
            rig.shards.iter().zip(["word < 'M'", "word >= 'a'", "word >= 'M' AND word < 'a'"])
        {
            let sql = format!("SELECT count(*) FROM words WHERE NOT ({place})");
            let strangers: i64 = shard.connect().await?.one(&sql).await?;
            assert_eq!(strangers, 0);
        }
        assert_eq!(counts(&rig, "words").await?.iter().sum::<i64>(), 580);
        unplaced(&rig.shards[2], "INSERT INTO words (word) VALUES ('z')", &["'z'", "shard 2"]).await?;
        migration.rollback(STEP).await?;
        let all: i64 = rig.source.connect().await?.one("SELECT count(*) FROM words").await?;
        assert_eq!(all, 580);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_in_mappings_are_told_when_they_are_made() {
    with_extension(2, |rig| async move {
        declared(
            &rig,
            "CREATE TABLE a (tenant bigint, at timestamptz, n int);
             CREATE TABLE b (tenant bigint, code text)",
        )
        .await?;
        rig.source
            .execute(
                "SELECT reshard_set_sharding_key('prod_sharded', 'tenant', 'list');
                 SELECT reshard_set_sharding_key('prod_sharded', 'n', 'range', 'a');
                 SELECT reshard_map_values('prod_sharded', 'tenant', '{1,2,NULL}', 0);
                 SELECT reshard_map_values('prod_sharded', 'tenant', '{3}', 1);
                 SELECT reshard_map_range('prod_sharded', 'n', '0', '10', 0)",
            )
            .await?;
        let mistakes = [
            ("reshard_map_values('prod_sharded', 'tenant', '{abc}', 0)", "22023", "abc"),
            ("reshard_map_values('prod_sharded', 'tenant', '{02}', 1)", "42710", "'2'"),
            ("reshard_map_values('prod_sharded', 'tenant', '{NULL}', 1)", "42710", "NULL"),
            ("reshard_map_values('prod_sharded', 'tenant', '{9}', 2)", "22023", "shard 2"),
            ("reshard_map_values('prod_sharded', 'tenant', '{9}', -1)", "22023", "shard -1"),
            ("reshard_map_values('prod_sharded', 'nothing', '{9}', 0)", "42704", "nothing"),
            ("reshard_map_values('prod_sharded', 'n', '{9}', 0)", "42704", "range"),
            ("reshard_map_range('prod_sharded', 'tenant', '1', '2', 0)", "42704", "list"),
            ("reshard_map_range('prod_sharded', 'n', '9', '20', 1)", "22023", "overlaps"),
            ("reshard_map_range('prod_sharded', 'n', NULL, NULL, 1)", "22023", "overlaps"),
            ("reshard_map_range('prod_sharded', 'n', '30', '20', 1)", "22023", "no key"),
            ("reshard_map_range('prod_sharded', 'n', '20', '20', 1)", "22023", "no key"),
            ("reshard_map_range('prod_sharded', 'n', 'x', '20', 1)", "22023", "'x'"),
            ("reshard_set_sharding_key('prod_sharded', 'tenant', 'range')", "42710", "list"),
            ("reshard_set_sharding_key('prod_sharded', 'tenant')", "42710", "list"),
            ("reshard_set_sharding_key('prod_sharded', 'tenant', 'round_robin')", "0A000", "list"),
            ("reshard_shard_for('prod_sharded', 1)", "42P08", "column_name"),
        ];
        for (call, code, name) in mistakes {
            let error = refused(&rig.source, &format!("SELECT {call}")).await?;
            println!("{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{call}: {error}");
            assert!(error.full_text().contains(name), "{call}: {error}");
        }
        let session = rig.source.connect().await?;
        // Repeated, they change nothing.
        session
            .execute(
                "SELECT reshard_set_sharding_key('prod_sharded', 'tenant', 'list');
                 SELECT reshard_map_values('prod_sharded', 'tenant', '{1,02,NULL}', 0);
                 SELECT reshard_map_range('prod_sharded', 'n', '00', '10', 0)",
            )
            .await?;
        let shown = session
            .column("SELECT column_name || ' ' || keys || ' ' || shard FROM reshard.placements ORDER BY 1")
            .await?;
        assert_eq!(shown, ["n ['0', '10') 0", "tenant '1' 0", "tenant '2' 0", "tenant '3' 1", "tenant NULL 0"]);
        let shards = session
            .column(
                "SELECT coalesce(reshard_shard_for('prod_sharded', k, 'tenant')::text, 'none')
                   FROM unnest('{1,3,7,NULL}'::bigint[]) AS k",
            )
            .await?;
        assert_eq!(shards, ["0", "1", "none", "0"]);
        session
            .execute(
                "SELECT reshard_map_default('prod_sharded', 'tenant', 1);
                 SELECT reshard_unmap_values('prod_sharded', 'tenant', '{2}')",
            )
            .await?;
        let moved: i32 = session.one("SELECT reshard_shard_for('prod_sharded', 2::bigint, 'tenant')").await?;
        assert_eq!(moved, 1);
        // A mapping that the type only contradicts once it is known.
        session
            .execute(
                "SELECT reshard_set_sharding_key('prod_sharded', 'later', 'list');
                 SELECT reshard_map_values('prod_sharded', 'later', '{1,one}', 0);
                 ALTER TABLE b ADD later int",
            )
            .await?;
        session.execute("SELECT reshard_drop_sharding_key('prod_sharded', 'tenant')").await?;
        let error = refused(&rig.source, "SELECT reshard_start('prod', 'prod_sharded', 'all_tables', false)").await?;
        assert_eq!(error.code.as_deref(), Some("22023"), "{error}");
        assert!(error.full_text().contains("'one'"), "{error}");
        let left: i64 = session.one("SELECT count(*) FROM reshard.placements WHERE column_name = 'tenant'").await?;
        assert_eq!(left, 0);

        // Of two keys of all tables the first one wins; a cluster without shards has none.
        session.take_notices();
        session.execute("SELECT reshard_set_sharding_key('prod_sharded', 'code')").await?;
        let said = session.take_notices().join("; ");
        assert!(said.contains("public.b"), "{said}");
        session
            .execute("SELECT reshard_drop_shard('prod_sharded', 0), reshard_drop_shard('prod_sharded', 1)")
            .await?;
        let said = session.take_notices().join("; ");
        assert!(said.contains("3 sharding keys and 3 mappings"), "{said}");
        let left: i64 = session
            .one("SELECT (SELECT count(*) FROM reshard.sharding_rule) + (SELECT count(*) FROM reshard.key_mapping)")
            .await?;
        assert_eq!(left, 0);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mapped_keys_can_not_change_while_rows_move() {
    run(RigOptions::new(3).placed(Placement::Hash, list(3)), |rig| async move {
        application(&rig, 300).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for call in [
            "reshard_map_values('prod_sharded', 'tenant_id', '{123456}', 0)",
            "reshard_unmap_values('prod_sharded', 'tenant_id', '{1}')",
            "reshard_unmap_default('prod_sharded', 'tenant_id')",
            "reshard_drop_sharding_key('prod_sharded', 'tenant_id')",
        ] {
            let error = refused(&rig.source, &format!("SELECT {call}")).await?;
            assert_eq!(error.code.as_deref(), Some("55000"), "{call}: {error}");
        }
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}
