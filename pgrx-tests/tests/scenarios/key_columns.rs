//! Sharding keys of several columns: each row on the shard whose partition of a table
//! `PARTITION BY HASH` it would be in, whatever the columns' types and whatever is written.

use std::sync::Arc;

use reshard_scenarios::load::{Active, Load, LoadOptions};
use reshard_scenarios::migration::{declare_shards, PUBLICATION};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::placement::Placement;
use reshard_scenarios::wait::{wait_for, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions};

use super::common::{
    application, application_of_several, check_outcome, complete_without_trace, run, switch_thrice,
    with_extension, STEP,
};

/// There, back and there again under writers, which update one of the key's columns.
async fn switches_under_writers(rig: Arc<Rig>) -> Result<()> {
    let load = Load::start(&rig, &LoadOptions { followers: 6, ..LoadOptions::default() });
    load.each_acknowledged(15, STEP).await?;
    let migration = Migration::start(&rig, false).await?;
    migration.watch(&["replicating"], STEP).await?;
    migration.verify(STEP).await?;
    switch_thrice(&migration, &load).await?;
    let outcome = load.finish().await?;
    assert_eq!(outcome.active, Active::Shards);
    check_outcome(&rig, &outcome).await?;
    migration.verify(STEP).await?;
    complete_without_trace(&rig, &migration).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_hash_of_two_columns_under_writers_nothing_is_lost_or_misplaced() {
    let options = RigOptions::new(3).placed(Placement::Hash, Placement::HashWithOwner);
    run(options, |rig| async move {
        application(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_to_three_shards_by_two_columns_lose_nothing() {
    let options =
        RigOptions::several(2, 3).placed(Placement::HashWithOwner, Placement::HashWithOwner);
    run(options, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

/// Each cluster has a key of its own, as where one column alone spread the rows badly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_column_to_two_under_writers_nothing_is_lost_or_misplaced() {
    let options = RigOptions::several(2, 3).placed(Placement::Hash, Placement::HashWithOwner);
    run(options, |rig| async move {
        application_of_several(&rig, 2_000).await?;
        switches_under_writers(rig).await
    })
    .await;
}

/// Types of two columns, and SQL that makes values of them from `g` and `h`.
const TYPES: &[(&str, &str, &str, &str)] = &[
    ("bigint", "g * 10000000000", "integer", "h - 50"),
    ("smallint", "g", "numeric(20, 4)", "h / 7.0"),
    ("text", "'t' || g", "varchar(12)", "'ä' || h"),
    ("char(6)", "'c' || g", "\"char\"", "chr(60 + h % 60)"),
    ("uuid", "md5('a' || g)", "boolean", "h % 2 = 0"),
    (
        "date",
        "'2026-01-01'::date + g",
        "timestamptz",
        "'2026-01-01'::timestamptz + h * interval '61 s'",
    ),
    (
        "timestamp",
        "'1999-01-01'::timestamp + g * interval '1 h'",
        "interval",
        "h * interval '25 h'",
    ),
    (
        "time",
        "'00:00'::time + g * interval '7 min'",
        "timetz",
        "'00:00+01'::timetz + h * interval '9 min'",
    ),
    ("double precision", "g / 3.0", "real", "CASE WHEN h % 9 = 0 THEN '-0' ELSE h / 3.0 END"),
    ("bytea", "decode(md5('x' || g), 'hex')", "jsonb", "jsonb_build_object('k', h)"),
    ("inet", "'10.0.0.0'::inet + g", "cidr", "set_masklen('10.0.0.0'::cidr + h * 256, 24)"),
    ("macaddr", "('08002b0102' || to_char(g % 90 + 10, 'FM00'))::macaddr", "name", "'n' || h"),
    ("integer[]", "ARRAY[g, NULL, h]", "text[]", "ARRAY['a' || h, 'b']"),
    ("int4range", "int4range(g, g + h)", "numrange", "numrange(h, NULL)"),
    ("oid", "g::oid", "pg_lsn", "'0/0'::pg_lsn + h"),
    ("text COLLATE \"C\"", "repeat('long' || g, 900)", "bigint", "h"),
];

/// A table for each pair of types, with nulls in either column and in both.
fn tables() -> String {
    let mut sql = String::new();
    for (number, (a, make_a, b, make_b)) in TYPES.iter().enumerate() {
        let (of_a, of_b) = (a.split('(').next().unwrap(), b.split('(').next().unwrap());
        let cast_a = if a.contains("COLLATE") { "text" } else { of_a };
        sql.push_str(&format!(
            "CREATE TABLE pair_{number} (id int PRIMARY KEY, a {a}, v text, b {b});
             ALTER TABLE pair_{number} ALTER v SET STORAGE EXTERNAL;
             INSERT INTO pair_{number} (id, a, b, v)
             SELECT g, CASE WHEN g % 11 <> 0 THEN ({make_a})::{cast_a} END,
                    CASE WHEN g % 7 <> 0 THEN ({make_b})::{of_b} END,
                    CASE WHEN g % 20 = 0 THEN repeat(md5(g::text), 200) END
               FROM generate_series(1, 200) AS g, LATERAL (SELECT g * 37 % 101 AS h) AS x;"
        ));
    }
    // A key of many columns in another order than the table's, and one over partitions.
    sql.push_str(
        "CREATE TABLE five (id int PRIMARY KEY, e int, d text, c uuid, b date, a bigint);
         INSERT INTO five SELECT g, nullif(g % 5, 0), nullif('d' || g % 9, 'd1'), md5(g::text)::uuid,
                '2026-01-01'::date + g, g FROM generate_series(1, 200) g;
         CREATE TABLE parts (a int NOT NULL, b text NOT NULL, at date NOT NULL, v int,
                             PRIMARY KEY (a, b, at)) PARTITION BY RANGE (at);
         CREATE TABLE parts_1 (at date NOT NULL, b text NOT NULL, v int, a int NOT NULL);
         ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
         INSERT INTO parts SELECT g, 'b' || g % 7, '2026-01-01'::date + g % 50, g
           FROM generate_series(1, 200) g;",
    );
    sql
}

/// Keys of the tables, and what tells their rows apart.
fn keys() -> Vec<(String, &'static str, &'static str)> {
    let pairs = (0..TYPES.len()).map(|n| (format!("pair_{n}"), "a, b", "id"));
    pairs
        .chain([
            ("five".to_owned(), "a, c, b, e, d", "id"),
            ("parts".to_owned(), "a, b", "a, b, at"),
        ])
        .collect()
}

/// Where PostgreSQL's own hash partitions have the rows of the source, `row shard`.
async fn partitioned(rig: &Rig, table: &str, key: &str, id: &str) -> Result<Vec<String>> {
    let session = rig.source.connect().await?;
    let count = rig.shards.len();
    session
        .execute(&format!("CREATE TEMP TABLE whole (LIKE {table}) PARTITION BY HASH ({key})"))
        .await?;
    for shard in 0..count {
        session
            .execute(&format!(
                "CREATE TEMP TABLE whole_{shard} PARTITION OF whole FOR VALUES WITH (MODULUS {count}, REMAINDER {shard})"
            ))
            .await?;
    }
    session.execute(&format!("INSERT INTO whole SELECT * FROM {table}")).await?;
    let rows = session
        .column(&format!(
            "SELECT concat_ws('/', {id}, md5(w::text)) || ' ' || right(tableoid::regclass::text, 1)
               FROM whole AS w ORDER BY 1"
        ))
        .await?;
    Ok(rows)
}

/// The same, as the shards have the rows.
async fn placed(rig: &Rig, table: &str, id: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (number, shard) in rig.shards.iter().enumerate() {
        let sql =
            format!("SELECT concat_ws('/', {id}, md5(w::text)) || ' {number}' FROM {table} AS w");
        all.extend(shard.connect().await?.column(&sql).await?);
    }
    all.sort();
    Ok(all)
}

/// All tables lie on the shards as in partitions, and `reshard_shard_for` says so.
async fn lie_as_partitions(rig: &Rig) -> Result<()> {
    for (table, key, id) in keys() {
        let mut expected = partitioned(rig, &table, key, id).await?;
        expected.sort();
        wait_for(STEP, format!("{table} to lie as partitions do"), || async {
            let found = placed(rig, &table, id).await?;
            let wrong = found.iter().filter(|row| expected.binary_search(row).is_err());
            let shown: Vec<&String> = wrong.take(3).collect();
            Ok(match found == expected {
                true => Seen::Done(()),
                false => Seen::NotYet(format!("{} of {}: {shown:?}", found.len(), expected.len())),
            })
        })
        .await?;
        let spread: std::collections::BTreeSet<_> =
            expected.iter().map(|r| r.chars().last()).collect();
        assert_eq!(spread.len(), rig.shards.len(), "{table} is not spread");
    }
    Ok(())
}

async fn say_the_same(rig: &Rig) -> Result<()> {
    for (table, key, id) in keys() {
        let says = rig
            .source
            .connect()
            .await?
            .column(&format!(
                "SELECT concat_ws('/', {id}, md5(w::text)) || ' '
                        || reshard_shard_for('prod_sharded', ROW({key})) FROM {table} AS w"
            ))
            .await?;
        let (mut says, mut found) = (says, placed(rig, &table, id).await?);
        says.sort();
        found.sort();
        assert_eq!(says, found, "{table}");
    }
    Ok(())
}

async fn declared(rig: &Rig, tables: &str, keys: &str) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute(tables).await?;
    session.execute("CREATE EXTENSION reshard").await?;
    declare_shards(rig, &session).await?;
    session.execute(keys).await?;
    session.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_lie_as_in_hash_partitions_whatever_the_types() {
    with_extension(3, |rig| async move {
        declared(
            &rig,
            &tables(),
            "SELECT reshard_set_sharding_key('prod_sharded', '{a,b}'::text[]);
             SELECT reshard_set_sharding_key('prod_sharded', ARRAY['a', 'c', 'b', 'e', 'd'], relation => 'five')",
        )
        .await?;
        let before = Footprint::of_rig(&rig).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        lie_as_partitions(&rig).await?;
        say_the_same(&rig).await?;
        let shown = rig
            .source
            .connect()
            .await?
            .text("SELECT key_column FROM reshard.table_copies WHERE table_name = 'five'")
            .await?;
        assert_eq!(shown.as_deref(), Some("a, c, b, e, d"));

        // Rows come, go and move, by one of the columns and by both, with values out of line.
        for number in 0..TYPES.len() {
            rig.source
                .execute(&format!(
                    "UPDATE pair_{number} AS p SET a = o.a FROM pair_{number} AS o WHERE p.id % 3 = 0 AND o.id = 201 - p.id;
                     UPDATE pair_{number} AS p SET b = o.b FROM pair_{number} AS o WHERE p.id % 3 = 1 AND o.id = 201 - p.id;
                     UPDATE pair_{number} SET a = NULL WHERE id % 13 = 0;
                     UPDATE pair_{number} SET b = NULL WHERE id % 17 = 0;
                     INSERT INTO pair_{number} (id, a, b, v) SELECT id + 1000, a, b, v FROM pair_{number} WHERE id % 5 = 0;
                     DELETE FROM pair_{number} WHERE id % 4 = 0"
                ))
                .await?;
        }
        rig.source
            .execute(
                "UPDATE five SET c = md5('new' || id)::uuid WHERE id % 2 = 0; UPDATE five SET d = NULL, e = NULL WHERE id % 5 = 0;
                 UPDATE parts SET b = b || 'x' WHERE a % 3 = 0; UPDATE parts SET at = at + 25 WHERE at < '2026-01-05'",
            )
            .await?;
        lie_as_partitions(&rig).await?;
        migration.verify(STEP).await?;
        migration.cutover(STEP).await?;
        migration.rollback(STEP).await?;
        lie_as_partitions(&rig).await?;
        migration.cutover(STEP).await?;
        // Shards write, and it comes back.
        for shard in &rig.shards {
            shard
                .execute(
                    "UPDATE pair_0 SET v = 'shard' WHERE id % 2 = 0; DELETE FROM pair_11 WHERE id % 7 = 3;
                     UPDATE parts SET v = -v WHERE a % 2 = 0",
                )
                .await?;
        }
        migration.rollback(STEP).await?;
        lie_as_partitions(&rig).await?;
        migration.cancel(STEP).await?;
        for ((server, before), after) in rig.servers().zip(&before).zip(&Footprint::of_rig(&rig).await?) {
            assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_over_all_columns_is_the_identity_and_moved_rows_are_whole() {
    with_extension(3, |rig| async move {
        declared(
            &rig,
            "CREATE TABLE wide (id int PRIMARY KEY, a int NOT NULL, b text NOT NULL, v text, w text, UNIQUE (b, id, a));
             CREATE TABLE bare (id int PRIMARY KEY, a int NOT NULL, b text NOT NULL, v text, UNIQUE (a, id), UNIQUE (b, id));
             ALTER TABLE wide ALTER v SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL;
             INSERT INTO wide SELECT g, g % 9, 'b' || g % 5, repeat(md5(g::text), 400), repeat(md5('w' || g), 2000) FROM generate_series(1, 60) g;
             INSERT INTO bare SELECT g, g % 9, 'b' || g % 5, repeat(md5(g::text), 400) FROM generate_series(1, 60) g",
            "SELECT reshard_set_sharding_key('prod_sharded', '{a,b}'::text[])",
        )
        .await?;
        let migration = Migration::call(
            &rig,
            r#"SELECT reshard_start('prod', 'prod_sharded', 'all_tables', false, '{"replica_identity": "index"}')"#,
        )
        .await?;
        migration.watch(&["replicating"], STEP).await?;
        for server in rig.servers() {
            let found = server
                .connect()
                .await?
                .column("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indisreplident")
                .await?;
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(found.iter().any(|i| i.contains("(id, a, b)")), "{found:?}");
            assert!(found.iter().any(|i| i.contains("(b, id, a)")), "{found:?}");
        }
        let changes = [
            "UPDATE wide SET a = a + 1 WHERE id % 2 = 0; UPDATE bare SET b = b || 'x' WHERE id % 2 = 0",
            "UPDATE wide SET b = 'c' || id WHERE id % 3 = 0; UPDATE bare SET a = -a WHERE id % 3 = 0",
            "UPDATE wide SET a = a - 5, b = b || '!' WHERE id % 5 = 0; UPDATE wide SET w = NULL WHERE id = 7",
        ];
        for sql in changes {
            rig.source.execute(sql).await?;
        }
        for round in 0..2 {
            for table in ["wide", "bare"] {
                let expected = partitioned(&rig, table, "a, b", "id").await?;
                wait_for(STEP, format!("{table} to be equal, {round}"), || async {
                    let mut expected = expected.clone();
                    expected.sort();
                    let found = placed(&rig, table, "id").await?;
                    Ok(match found == expected {
                        true => Seen::Done(()),
                        false => Seen::NotYet(format!("{found:?}")),
                    })
                })
                .await?;
            }
            if round == 0 {
                migration.cutover(STEP).await?;
                migration.rollback(STEP).await?;
                rig.source.execute(changes[0]).await?;
            }
        }
        migration.verify(STEP).await?;
        migration.cancel(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_in_keys_of_several_columns_are_told() {
    with_extension(2, |rig| async move {
        declared(
            &rig,
            "CREATE TABLE t (id int PRIMARY KEY, a int, b text, c int, d tsvector, e int GENERATED ALWAYS AS (a + 1) STORED, UNIQUE (a, id), UNIQUE (a, b, id));
             CREATE TABLE child (a int, b text, x int, y text, t_id int, FOREIGN KEY (a, b, t_id) REFERENCES t (a, b, id));
             CREATE TABLE swapped (a text, b int, t_id int REFERENCES t);
             ALTER TABLE child REPLICA IDENTITY FULL; ALTER TABLE swapped REPLICA IDENTITY FULL;
             INSERT INTO t SELECT g, nullif(g % 5, 0), nullif('b' || g % 3, 'b0'), g FROM generate_series(1, 100) g;
             INSERT INTO child SELECT a, b, a + 1, b, id FROM t",
            "SELECT 1",
        )
        .await?;
        let source = &rig.source;
        let set = |rest: &str| format!("SELECT reshard_set_sharding_key('prod_sharded', {rest})");
        for (rest, code, name) in [
            ("'a,b'", "0A000", "ARRAY['a', 'b']"),
            ("ARRAY['a', 'b'], 'list'", "0A000", "hash"),
            ("ARRAY['a', 'b'], 'range'", "0A000", "range"),
            ("ARRAY['a', 'a']", "22023", "twice"),
            ("'{}'::text[]", "22023", "at least one"),
            ("ARRAY['a', NULL]", "22023", "null"),
            ("ARRAY['a', 'nowhere'], relation => 't'", "42703", "nowhere"),
            ("(SELECT array_agg('c' || g) FROM generate_series(1, 33) g)", "54011", "32"),
        ] {
            let Err(Error::Sql(error)) = source.execute(&set(rest)).await else {
                return Err(Error::Unexpected(format!("not refused: {rest}")));
            };
            println!("{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{rest}: {error}");
            assert!(error.full_text().contains(name), "{rest}: {error}");
        }
        let session = source.connect().await?;
        session.execute(&set("'a'")).await?;
        session.execute(&set("ARRAY['a', 'b']")).await?;
        session.execute(&set("ARRAY['a', 'b']")).await?;
        session.execute(&set("ARRAY['x', 'y'], relation => 'child'")).await?;
        let shown = session.text("SELECT sharding_keys::text FROM reshard.clusters WHERE name = 'prod_sharded'").await?;
        assert_eq!(shown.as_deref(), Some(r#"{a,"(a, b)","public.child.(x, y)"}"#));
        let places = session.column("SELECT DISTINCT column_name FROM reshard.placements ORDER BY 1").await?;
        assert_eq!(places, ["a", "a, b", "x, y"]);

        // The value says which key is meant, by how many columns it has.
        let one = "reshard_shard_for('prod_sharded', 5)::text";
        let two = "reshard_shard_for('prod_sharded', ROW(5, NULL::text))::text";
        let same = session.text(&format!("SELECT ({one} = {two})::text")).await?;
        assert_eq!(same.as_deref(), Some("true"), "a null column contributes nothing");
        for (call, code) in [
            ("reshard_shard_for('prod_sharded', ROW(1, 2, 3))", "22023"),
            ("reshard_shard_for('prod_sharded', 5, 'x')", "22023"),
            ("reshard_shard_for('prod_sharded', 5, 'nothing')", "42704"),
        ] {
            let Err(Error::Sql(error)) = session.execute(&format!("SELECT {call}")).await else {
                return Err(Error::Unexpected(format!("not refused: {call}")));
            };
            assert_eq!(error.code.as_deref(), Some(code), "{call}: {error}");
        }

        let found = findings(&rig).await?;
        let has = |check: &str, text: &str| {
            assert!(found.iter().any(|f| f.starts_with(check) && f.contains(text)), "{check} {text}: {found:#?}");
        };
        has("unique_constraints", "\"t_a_id_key\"");
        has("unique_constraints", "\"t_pkey\"");
        assert!(!found.iter().any(|f| f.contains("t_a_b_id_key")), "{found:#?}");
        has("foreign_keys", "child_a_b_t_id_fkey");
        has("foreign_keys", "placed in different ways");
        has("replica_identity", "\"a\", \"b\"");
        has("sharding_key_null", "\"a\", \"b\"");

        session.execute("SELECT reshard_drop_sharding_key('prod_sharded', ARRAY['x', 'y'], 'child')").await?;
        assert!(!findings(&rig).await?.iter().any(|f| f.contains("child_a_b_t_id_fkey")));
        session.execute(&set("ARRAY['a', 'd'], relation => 't'")).await?;
        session.execute(&set("ARRAY['e', 'a'], relation => 'child'")).await.unwrap_err();
        let found = findings(&rig).await?;
        assert!(found.iter().any(|f| f.starts_with("sharding_key_type") && f.contains("\"d\"")), "{found:#?}");
        session
            .execute(
                "SELECT reshard_drop_sharding_key('prod_sharded', ARRAY['a', 'd'], 't');
                 SELECT reshard_set_sharding_key('prod_sharded', ARRAY['a', 'e'], relation => 't');
                 DROP PUBLICATION all_tables; CREATE PUBLICATION all_tables FOR TABLE t (id, c, b)",
            )
            .await?;
        let found = findings(&rig).await?;
        let published = found.iter().filter(|f| f.starts_with("sharding_key_published")).count();
        assert_eq!(published, 2, "{found:#?}");
        let Err(Error::Sql(error)) = source.execute("SELECT reshard_start('prod', 'prod_sharded', 'all_tables')").await else {
            return Err(Error::Unexpected("started without its key".to_owned()));
        };
        println!("{error}");
        Ok(())
    })
    .await;
}

async fn findings(rig: &Rig) -> Result<Vec<String>> {
    rig.source
        .connect()
        .await?
        .column(
            "SELECT concat_ws(' ', check_name, severity, object, detail, hint)
               FROM reshard_preflight('prod', 'prod_sharded', 'all_tables')",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_on_the_wrong_node_are_told_before_a_run() {
    let options =
        RigOptions::several(2, 3).placed(Placement::HashWithOwner, Placement::HashWithOwner);
    run(options, |rig| async move {
        application_of_several(&rig, 500).await?;
        let strays = || async {
            rig.source
                .connect()
                .await?
                .column(
                    "SELECT concat_ws(' ', severity, object, detail, hint)
                       FROM reshard_preflight('prod', 'prod_sharded', 'all_tables')
                      WHERE check_name = 'node_rows' ORDER BY 1",
                )
                .await
        };
        assert_eq!(strays().await?, Vec::<String>::new());
        // Keys of these belong to the other node.
        let wrong = |shard| (1..).find(|k| Placement::HashWithOwner.shard_of(*k, 2) != shard);
        let keys = [wrong(0).unwrap(), wrong(1).unwrap()];
        for (node, key) in rig.sources().iter().zip(keys) {
            node.execute(&format!(
                "INSERT INTO notes SELECT {key}, 100000 + g, 0, 'stray' FROM generate_series(1, 3) g"
            ))
            .await?;
        }
        let found = strays().await?;
        assert_eq!(found.len(), 2, "{found:#?}");
        for (number, key) in keys.iter().enumerate() {
            let example = format!("({key}', '0') belongs to shard {}", 1 - number).replace('(', "('");
            assert!(
                found.iter().any(|f| f.contains("3 of its rows")
                    && f.contains("\"prod\"")
                    && f.contains(&example)
                    && f.contains("notes")),
                "{example}: {found:#?}"
            );
        }
        Ok(())
    })
    .await;
}
