//! DDL while a migration runs: forbidden, or written down; and no cutover to
//! shards whose schema is another one.

use std::sync::Arc;
use std::time::Duration;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::{Error, Migration, Result, Rig, Session};

use super::common::{application, check_outcome, with_extension, STEP};

/// DDL that changes a table of the migration, or what belongs to it, in pairs of
/// a name in the error and the statement.
const FORBIDDEN: &[(&str, &str)] = &[
    ("public.orders", "ALTER TABLE orders ADD COLUMN extra int"),
    ("public.orders", "ALTER TABLE orders DROP COLUMN amount"),
    ("public.orders", "ALTER TABLE orders ALTER COLUMN owner TYPE bigint"),
    ("public.moved", "ALTER TABLE orders RENAME TO moved"),
    ("orders", "DROP TABLE orders"),
    ("public.new_table", "CREATE TABLE new_table (id int PRIMARY KEY)"),
    ("public.new_table", "CREATE TABLE new_table AS SELECT 1 AS id"),
    ("public.orders_extra", "CREATE INDEX orders_extra ON orders (owner)"),
    ("public.orders", "COMMENT ON TABLE orders IS 'x'"),
    ("orders", "CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"),
    ("orders", "CREATE POLICY p ON orders USING (true)"),
    ("orders", "CREATE RULE r AS ON DELETE TO orders DO INSTEAD NOTHING"),
    ("public.s", "CREATE STATISTICS s ON owner, stamp FROM orders"),
    ("public.mood", "ALTER TYPE mood ADD VALUE 'great'"),
    ("public.moods", "ALTER TABLE moods ADD CHECK (id > 0)"),
    ("public.pair", "ALTER TYPE pair ADD ATTRIBUTE c int"),
    ("public.pair", "ALTER TYPE pair RENAME ATTRIBUTE a TO z"),
    ("public.above", "ALTER TABLE above ADD COLUMN extra int"),
    ("public", "ALTER SCHEMA public RENAME TO private"),
    ("parted", "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)"),
    ("parted_1", "DROP TABLE parted_1"),
    ("all_tables", "ALTER PUBLICATION all_tables SET (publish = 'insert')"),
    ("all_tables", "DROP PUBLICATION all_tables"),
    ("extension reshard", "DROP EXTENSION reshard CASCADE"),
];

/// DDL that has nothing to do with the tables.
const HARMLESS: &[&str] = &[
    "CREATE TEMPORARY TABLE scratch (id int)",
    "DROP TABLE scratch",
    "CREATE UNLOGGED TABLE notes_of_mine (id int)",
    "ALTER TABLE notes_of_mine ADD COLUMN more int",
    "DROP TABLE notes_of_mine",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION f()",
    "CREATE VIEW orders_view AS SELECT id FROM orders",
    "DROP VIEW orders_view",
    "REINDEX TABLE orders",
    "VACUUM orders",
    "ANALYZE orders",
    "CREATE SCHEMA elsewhere",
    "DROP SCHEMA elsewhere",
];

async fn setting(rig: &Rig) -> Result<Session> {
    let session = rig.source.connect().await?;
    session
        .execute(
            "CREATE TYPE mood AS ENUM ('ok');
             CREATE TABLE moods (id bigint PRIMARY KEY, mood mood);
             CREATE TYPE pair AS (a int, b int); CREATE DOMAIN pairs AS pair[];
             CREATE TABLE paired (id bigint PRIMARY KEY, p pairs);
             CREATE UNLOGGED TABLE above (id bigint, note text);
             CREATE TABLE below (PRIMARY KEY (id)) INHERITS (above);
             CREATE DOMAIN stamped AS timestamptz DEFAULT clock_timestamp();
             CREATE DOMAIN lucky AS integer DEFAULT 7;
             CREATE TABLE parted (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)",
        )
        .await?;
    application(rig, 500).await?;
    Ok(session)
}

async fn start(rig: &Arc<Rig>, options: &str) -> Result<Migration> {
    Migration::call(
        rig,
        &format!(
            "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false, '{options}')"
        ),
    )
    .await
}

/// Each of the statements fails, and the error says why.
async fn all_forbidden(session: &Session, id: i64) -> Result<()> {
    for (name, statement) in FORBIDDEN {
        let error = match session.execute(statement).await {
            Err(error) => error,
            Ok(()) => return Err(Error::Unexpected(format!("not forbidden: {statement}"))),
        };
        let text = error.sql().unwrap().full_text();
        assert_eq!(error.sqlstate(), Some("55000"), "{statement}: {text}");
        for part in [*name, &format!("migration {id}"), "reshard_cancel"] {
            assert!(text.contains(part), "\"{part}\" is not in the error of {statement}: {text}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_on_the_tables_of_a_migration_is_forbidden_in_every_phase() {
    with_extension(2, |rig| async move {
        let session = setting(&rig).await?;
        // Before a migration, and after it, everything goes.
        session.execute("CREATE TABLE early (id int PRIMARY KEY); DROP TABLE early").await?;
        let run = start(&rig, "{}").await?;
        // Whatever phase it is in by now, also before the tables are listed.
        all_forbidden(&session, run.id).await?;
        run.watch(&["replicating"], STEP).await?;
        all_forbidden(&session, run.id).await?;
        // Whose index it was is known from the plan of the schema.
        let error = session.execute("DROP INDEX events_tenant").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("55000"), "{error}");
        for statement in HARMLESS {
            session.execute(statement).await?;
        }
        run.cutover(STEP).await?;
        all_forbidden(&session, run.id).await?;
        run.rollback(STEP).await?;
        all_forbidden(&session, run.id).await?;
        run.verb("reshard_stop_task").await?;
        run.watch(&["failed"], STEP).await?;
        all_forbidden(&session, run.id).await?;
        run.verb("reshard_resume").await?;
        run.watch(&["rolled_back"], STEP).await?;
        // One who takes care of the shards himself.
        for server in rig.servers() {
            let there = server.connect().await?;
            there
                .execute("SET reshard.ddl_guard = off; CREATE INDEX orders_owner ON orders (owner)")
                .await?;
        }
        run.cutover(STEP).await?;
        run.complete(STEP).await?;
        session.execute("ALTER TABLE orders ADD COLUMN later int").await?;
        session.execute("DROP EXTENSION reshard CASCADE").await?;
        session.execute("ALTER TABLE orders DROP COLUMN later").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_that_is_allowed_is_written_down_and_refuses_the_cutover_until_the_shards_have_it() {
    with_extension(2, |rig| async move {
        let session = setting(&rig).await?;
        let run = start(&rig, "{\"ddl\": \"allow\"}").await?;
        run.watch(&["replicating"], STEP).await?;
        let changes = "ALTER TABLE settings ADD COLUMN colour text DEFAULT 'red';
             CREATE INDEX settings_colour ON settings USING btree (colour);
             GRANT SELECT ON settings TO PUBLIC;
             DROP INDEX events_tenant";
        session.execute(changes).await?;
        let written = session
            .column(&format!("SELECT message FROM reshard.events WHERE task_id = {} AND kind = 'ddl' ORDER BY id", run.id))
            .await?;
        assert_eq!(
            written,
            [
                "ALTER TABLE on public.settings",
                "CREATE INDEX on public.settings_colour",
                "GRANT on public.settings",
                "DROP INDEX on public.events_tenant"
            ]
        );
        run.verb("reshard_cutover").await?;
        let error = run.wait("switched", STEP).await.unwrap_err();
        let text = error.sql().unwrap().full_text();
        println!("{text}");
        for part in ["schemas of source and shards differ", "shard 0", "shard 1", "colour", "GRANT SELECT", "still has: CREATE INDEX events_tenant"] {
            assert!(text.contains(part), "\"{part}\" is not in: {text}");
        }
        let traffic: String = session.one("SELECT active_cluster || ' ' || state FROM reshard.traffic").await?;
        assert_eq!(traffic, format!("{SOURCE} open"));
        rig.shards[0].execute(changes).await?;
        run.verb("reshard_cutover").await?;
        let error = run.wait("switched", STEP).await.unwrap_err();
        let text = error.sql().unwrap().full_text();
        assert!(text.contains("shard 1") && !text.contains("shard 0"), "{text}");
        rig.shards[1].execute(changes).await?;
        // Rows with the new column arrive.
        session.execute("INSERT INTO settings VALUES (-5, 0, 'x', 'blue')").await?;
        run.cutover(STEP).await?;
        for shard in &rig.shards {
            let colour: String = shard.connect().await?.one("SELECT colour FROM settings WHERE id = -5").await?;
            assert_eq!(colour, "blue");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_ddl_has_broken_says_which_ddl_it_was() {
    with_extension(1, |rig| async move {
        let session = setting(&rig).await?;
        let run = start(&rig, "{\"ddl\": \"allow\"}").await?;
        run.watch(&["replicating"], STEP).await?;
        session.execute("ALTER TABLE settings ADD COLUMN colour text").await?;
        session.execute("INSERT INTO settings VALUES (-5, 0, 'x', 'blue')").await?;
        reshard_scenarios::wait::wait_until(
            Duration::from_secs(60),
            "the cause to be named",
            || async {
                let error = run.state().await?.error.unwrap_or_default();
                Ok(error.contains("ALTER TABLE on public.settings"))
            },
        )
        .await?;
        rig.shards[0].execute("ALTER TABLE settings ADD COLUMN colour text").await?;
        run.cutover(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn additive_ddl_is_replayed_in_its_place_in_the_stream_under_writers() {
    with_extension(2, |rig| async move {
        let session = setting(&rig).await?;
        let run = start(&rig, "{\"ddl\": \"replay\"}").await?;
        run.watch(&["replicating"], STEP).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        load.each_acknowledged(10, STEP).await?;
        for round in 0..5 {
            session
                .execute(&format!("ALTER TABLE settings ADD COLUMN c{round} text DEFAULT 'a;''{round}', ADD n{round} integer NOT NULL DEFAULT {round}"))
                .await?;
            // Rows that need the column, at once, and in the transaction of the next DDL.
            session
                .execute(&format!("INSERT INTO settings (id, owner, stamp, c{round}, n{round}) VALUES (-{round} - 1, 0, 'x', 'own', 100 + {round})"))
                .await?;
            session.execute(&format!("CREATE INDEX settings_c{round} ON settings (c{round}, n{round})")).await?;
        }
        // Values mean the same wherever they are read.
        session.execute("SET DateStyle = 'SQL, DMY'; SET TimeZone = 'America/New_York'").await?;
        session
            .execute(
                "ALTER TABLE settings ADD COLUMN d date DEFAULT '03/04/2024',
                     ADD COLUMN at timestamptz DEFAULT '03/04/2024 12:00:00', ADD COLUMN l lucky",
            )
            .await?;
        session.execute("RESET DateStyle; RESET TimeZone").await?;
        // Functions and types are not watched, and not brought to the shards.
        session
            .execute(
                "CREATE FUNCTION unknown_there(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
                 CREATE TYPE unknown_type AS ENUM ('x')",
            )
            .await?;
        session.execute("BEGIN").await?;
        session.execute("ALTER TABLE parted ADD COLUMN late bigint").await?;
        session.execute("INSERT INTO parted VALUES (1, 42)").await?;
        session.execute("COMMIT").await?;
        for (statement, name) in [
            ("ALTER TABLE settings ADD COLUMN v uuid DEFAULT gen_random_uuid()", "public.settings"),
            ("ALTER TABLE settings ADD COLUMN t timestamptz DEFAULT now()", "public.settings"),
            ("ALTER TABLE settings ADD COLUMN s serial", "public.settings"),
            ("ALTER TABLE settings ADD COLUMN d2 stamped", "public.settings"),
            ("ALTER TABLE settings ADD COLUMN u int UNIQUE", "settings"),
            ("ALTER TABLE settings DROP COLUMN c0", "public.settings"),
            ("ALTER TABLE settings ADD COLUMN x int; ALTER TABLE settings ADD COLUMN y int", "public.settings"),
            ("DO $$ BEGIN ALTER TABLE settings ADD COLUMN z int; END $$", "public.settings"),
            ("CREATE INDEX ON settings (unknown_there(c0))", "public.settings_unknown_there_idx"),
            ("CREATE TABLE filled AS SELECT 1 AS id", "public.filled"),
            ("CREATE TABLE odd (id int PRIMARY KEY, t text DEFAULT unknown_there('x'))", "public.odd"),
            ("CREATE TABLE odd (id int PRIMARY KEY, t unknown_type)", "public.odd"),
            ("CREATE TABLE odd (id int PRIMARY KEY, a bigint REFERENCES accounts)", "public.odd"),
            ("DROP TABLE parted_1", "parted_1"),
        ] {
            let error = session.execute(statement).await.unwrap_err();
            let text = error.sql().unwrap().full_text();
            assert_eq!(error.sqlstate(), Some("55000"), "{statement}: {text}");
            assert!(text.contains(name) && text.contains("Replayed are"), "{statement}: {text}");
        }
        session.execute("DROP FUNCTION unknown_there; DROP TYPE unknown_type").await?;
        load.each_acknowledged(10, STEP).await?;
        run.verb("reshard_cutover").await?;
        run.watch(&["switched"], STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await?;
        for shard in &rig.shards {
            let there = shard.connect().await?;
            let rows: i64 = there
                .one("SELECT count(*) FROM settings WHERE id < 0 AND 'own' IN (c0, c1, c2, c3, c4)")
                .await?;
            assert_eq!(rows, 5);
            let indexes: i64 = there
                .one("SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'settings_c%'")
                .await?;
            assert_eq!(indexes, 5);
            let other: i64 = there
                .one("SELECT count(*) FROM settings WHERE (d, at, l) IS DISTINCT FROM (date '2024-04-03', timestamptz '2024-04-03 16:00:00+00', 7)")
                .await?;
            assert_eq!(other, 0);
        }
        let late: i64 = rig.shards[0].connect().await?.one("SELECT late FROM parted").await?;
        assert_eq!(late, 42);
        // Nobody would replay it now.
        let error = session.execute("ALTER TABLE orders ADD COLUMN x int").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("55000"), "{error}");
        Ok(())
    })
    .await;
}

/// What comes up while changes flow, with rows at once and in one transaction.
const NEW_TABLES: &[&str] = &[
    "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)",
    "INSERT INTO parted SELECT generate_series(10, 19)",
    "CREATE TABLE fresh (
         id bigserial PRIMARY KEY, tenant_id bigint NOT NULL, t text COLLATE \"C\" DEFAULT 'x',
         m mood DEFAULT 'ok', ms mood[],
         CHECK (tenant_id > 0), UNIQUE (tenant_id, t)) WITH (fillfactor = 80)",
    // Large enough to be stored out of line: a moved row must not lose it.
    "INSERT INTO fresh (tenant_id, t) SELECT g, string_agg(md5((g * i)::text), '')
       FROM generate_series(1, 50) g, generate_series(1, 80) i GROUP BY g",
    "UPDATE fresh SET tenant_id = tenant_id + 100",
    "CREATE TABLE computed (
         tenant_id bigint, id int, g bigint GENERATED ALWAYS AS (tenant_id * 2) STORED,
         PRIMARY KEY (tenant_id, id))",
    "INSERT INTO computed SELECT g % 3, g FROM generate_series(1, 9) AS g",
    "UPDATE computed SET tenant_id = 7 WHERE id = 4",
    "CREATE TABLE \"Odd \"\"Name\" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s bigint REFERENCES settings)",
    "INSERT INTO \"Odd \"\"Name\" (s) VALUES (NULL), (NULL)",
    "BEGIN; CREATE TABLE whole (id int PRIMARY KEY, v text); INSERT INTO whole VALUES (1, 'a'), (2, 'b');
       UPDATE whole SET v = 'c' WHERE id = 2; INSERT INTO whole VALUES (3, 'd'); COMMIT",
    "ALTER TABLE whole ADD COLUMN w int DEFAULT 7",
    "CREATE INDEX ON whole (lower(v)) WHERE w > 5",
    "BEGIN; CREATE TABLE never (id int PRIMARY KEY); INSERT INTO never VALUES (1); ROLLBACK",
    "CREATE TABLE keyless (a int, tenant_id bigint)",
    "INSERT INTO keyless VALUES (1, 1), (2, 2), (3, 3)",
    "UPDATE keyless SET a = 5 WHERE a = 1",
    "DELETE FROM keyless WHERE a = 2",
    "ALTER TABLE kept ADD COLUMN more int DEFAULT 3",
    "CREATE INDEX kept_more ON kept (more)",
    "CREATE SCHEMA late",
    "CREATE TABLE late.like_orders (LIKE orders INCLUDING ALL)",
    "INSERT INTO late.like_orders SELECT * FROM orders",
    "CREATE TABLE levels (tenant_id bigint, id int, at date, PRIMARY KEY (tenant_id, id, at)) PARTITION BY HASH (tenant_id)",
    "CREATE TABLE levels_0 PARTITION OF levels FOR VALUES WITH (MODULUS 1, REMAINDER 0) PARTITION BY RANGE (at)",
    "CREATE TABLE levels_0_a PARTITION OF levels_0 (id DEFAULT 9, CONSTRAINT positive CHECK (id > 3)) DEFAULT",
    "INSERT INTO levels VALUES (4, 5, '2020-01-01'), (5, 6, '2021-01-01')",
    "CREATE INDEX CONCURRENTLY orders_late ON orders (stamp)",
    "COMMENT ON TABLE whole IS 'it''s; \\ new'",
    "COMMENT ON COLUMN orders.stamp IS 'a column'",
    "COMMENT ON CONSTRAINT orders_pkey ON orders IS 'a key'",
    "GRANT SELECT, INSERT ON whole TO reader WITH GRANT OPTION",
    "GRANT UPDATE (stamp), SELECT ON orders TO reader",
    "REVOKE SELECT ON orders FROM reader",
    "GRANT SELECT ON settings TO PUBLIC",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_tables_comments_and_privileges_are_replayed_with_their_rows_and_there_is_a_way_back() {
    with_extension(2, |rig| async move {
        for server in rig.servers() {
            server.execute("CREATE ROLE reader").await?;
        }
        let session = setting(&rig).await?;
        session.execute("GRANT SELECT ON accounts TO reader").await?;
        // What is on the shards before stays there.
        for server in rig.servers() {
            server.execute("CREATE TABLE kept (id integer PRIMARY KEY)").await?;
        }
        rig.shards[0].execute("CREATE SCHEMA late").await?;
        let before = Footprint::of_rig(&rig).await?;
        let run = start(&rig, "{\"ddl\": \"replay\"}").await?;
        run.watch(&["replicating"], STEP).await?;
        for shard in &rig.shards {
            shard
                .execute(
                    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader;
                     ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO reader",
                )
                .await?;
        }
        for statement in NEW_TABLES {
            session.execute(statement).await?;
        }
        same_everywhere(&rig, &session).await?;
        for shard in &rig.shards {
            let granted: bool = shard
                .connect()
                .await?
                .one("SELECT (has_sequence_privilege('reader', 'fresh_id_seq', 'USAGE') OR has_sequence_privilege('reader', '\"Odd \"\"Name_id_seq\"', 'USAGE'))::text")
                .await?;
            assert!(!granted);
        }
        run.cutover(STEP).await?;
        // The way back has them too, also those of after it. Tables that each shard has
        // whole are written to on each.
        for shard in &rig.shards {
            shard.execute("INSERT INTO whole VALUES (10, 'shard', 1); UPDATE keyless SET a = 7").await?;
        }
        run.rollback(STEP).await?;
        let rows: i64 = session.one("SELECT count(*) FROM whole WHERE v = 'shard'").await?;
        assert_eq!(rows, 1);
        session
            .execute("CREATE TABLE later (id bigserial PRIMARY KEY, v text); INSERT INTO later (v) VALUES ('a')")
            .await?;
        run.cutover(STEP).await?;
        for shard in &rig.shards {
            shard.execute("INSERT INTO later VALUES (1000000, 'b')").await?;
        }
        run.rollback(STEP).await?;
        let values = session.column("SELECT v FROM later ORDER BY 1").await?;
        assert_eq!(values, ["a", "b"]);
        same_everywhere(&rig, &session).await?;
        // Nothing of it is left where it is taken back.
        run.cancel(STEP).await?;
        for (shard, before) in rig.shards.iter().zip(&before[1..]) {
            assert_eq!(Footprint::of(shard).await?.since(before), Vec::<String>::new());
            let columns: String = shard
                .connect()
                .await?
                .one("SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = 'kept'::regclass AND attnum > 0 AND NOT attisdropped")
                .await?;
            assert_eq!(columns, "id");
        }
        Ok(())
    })
    .await;
}

/// The rows of all new tables, and the schema, on source and shards.
async fn same_everywhere(rig: &Arc<Rig>, session: &Session) -> Result<()> {
    for (table, omni) in [
        ("parted", true),
        ("fresh", false),
        ("computed", false),
        ("\"Odd \"\"Name\"", true),
        ("whole", true),
        ("keyless", false),
        ("late.like_orders", false),
        ("levels", false),
    ] {
        let sum = format!(
            "SELECT count(*) || ' ' || coalesce(sum(hashtext(t::text)::bigint), 0) FROM {table} t"
        );
        reshard_scenarios::wait::wait_until(STEP, "the rows to be the same", || async {
            let here: String = session.one(&sum).await?;
            let mut counts = Vec::new();
            for shard in &rig.shards {
                let there: String = shard.connect().await?.one(&sum).await?;
                counts.push(there);
            }
            Ok(match omni {
                true => counts.iter().all(|there| *there == here),
                false => {
                    let parts = |text: &String| -> Vec<i64> {
                        text.split(' ').map(|n| n.parse().unwrap()).collect()
                    };
                    let total: Vec<i64> = (0..2)
                        .map(|part| counts.iter().map(|text| parts(text)[part]).sum())
                        .collect();
                    total == parts(&here)
                }
            })
        })
        .await?;
    }
    let differences: Vec<String> = reshard_scenarios::oracle::same_schema(rig)?
        .into_iter()
        // Replica identities are the run's, increments of sequences those of a switch.
        .filter(|d| !d.contains("REPLICA IDENTITY") && !d.contains("SEQUENCE"))
        // Those of the shards' own.
        .filter(|d| !d.contains("DEFAULT PRIVILEGES"))
        .collect();
    assert_eq!(differences, Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_that_commits_before_its_end_is_refused_before_it_begins() {
    with_extension(1, |rig| async move {
        let session = setting(&rig).await?;
        let run = start(&rig, "{}").await?;
        run.watch(&["replicating"], STEP).await?;
        session.execute("SET search_path = public").await?;
        for (statement, refused) in [
            (
                "CREATE INDEX CONCURRENTLY late ON orders (stamp)",
                "CREATE INDEX CONCURRENTLY on public.orders",
            ),
            (
                "CREATE UNIQUE INDEX CONCURRENTLY late ON public.orders (tenant_id, id)",
                "CREATE INDEX CONCURRENTLY on public.orders",
            ),
            (
                "DROP INDEX CONCURRENTLY IF EXISTS events_tenant",
                "DROP INDEX CONCURRENTLY on public.events_tenant",
            ),
            (
                "ALTER TABLE parted DETACH PARTITION parted_1 CONCURRENTLY",
                "DETACH PARTITION ... CONCURRENTLY on public.parted",
            ),
        ] {
            let error = session.execute(statement).await.unwrap_err();
            let text = error.sql().unwrap().full_text();
            assert_eq!(error.sqlstate(), Some("55000"), "{text}");
            assert!(text.contains(refused), "{text}");
        }
        let left: i64 = session
            .one("SELECT (SELECT count(*) FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)) + (SELECT count(*) FROM pg_inherits WHERE inhdetachpending)")
            .await?;
        assert_eq!(left, 0);
        session.execute("CREATE UNLOGGED TABLE mine (id int)").await?;
        session.execute("CREATE INDEX CONCURRENTLY late ON mine (id)").await?;
        session.execute("CREATE INDEX late_too ON mine (id)").await?;
        session.execute("DROP INDEX CONCURRENTLY late_too").await?;
        session.execute("DROP TABLE mine").await?;
        run.cutover(STEP).await?;
        // What is half done already may be ended.
        let reader = rig.source.connect().await?;
        reader.execute("BEGIN; SELECT FROM parted").await?;
        session.execute("SET statement_timeout = '1s'; SET reshard.ddl_guard = off").await?;
        let detach = "ALTER TABLE parted DETACH PARTITION parted_1 CONCURRENTLY";
        let error = session.execute(detach).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57014"), "{error}");
        reader.execute("COMMIT").await?;
        session.execute("RESET statement_timeout; RESET reshard.ddl_guard").await?;
        session.execute("ALTER TABLE parted DETACH PARTITION parted_1 FINALIZE").await?;
        let noted: i64 = session
            .one("SELECT count(*) FROM reshard.events WHERE kind = 'ddl' AND message = 'ALTER TABLE on public.parted'")
            .await?;
        assert_eq!(noted, 1);
        Ok(())
    })
    .await;
}

/// The SET clauses of a function without arguments.
fn settings<'s>(sql: &'s str, function: &str) -> Vec<&'s str> {
    let (_, definition) = sql.split_once(&format!("FUNCTION reshard.{function}()")).unwrap();
    let clauses = definition.lines().take_while(|line| !line.starts_with("AS $"));
    clauses.filter(|line| line.starts_with("SET ")).collect()
}

/// They are on two servers, so neither can call the other.
#[test]
fn replayed_statements_are_run_under_the_settings_they_were_written_under() {
    let written = settings(include_str!("../../../sql/ddl.sql"), "guard_ddl");
    let run = settings(include_str!("../../../sql/shard.sql"), "replay_ddl");
    assert!(written.len() > 4, "{written:?}");
    assert_eq!(written, run);
}
