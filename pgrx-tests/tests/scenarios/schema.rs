//! The schema on the shards is that of the source, whatever it consists of.

use std::path::PathBuf;
use std::sync::Arc;

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::{dump, objects, run_script, same_schema};
use reshard_scenarios::session::{identifier, literal};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, Server, Session};

use super::common::{with_extension, STEP};

/// A schema of the planner's tests.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema-plan/tests/fixtures")).join(name)
}

/// Roles and tablespaces belong to the server: a DBA makes them on the shards.
const GLOBALS: &str = "CREATE ROLE fixture_owner; CREATE ROLE fixture_reader; \
                       CREATE ROLE \"Fixture \"\"Grantor\"\"\"";

/// CREATE EXTENSION, both clusters, a publication of all tables; no sharding key.
async fn declare_whole(rig: &Rig) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute("CREATE EXTENSION IF NOT EXISTS reshard").await?;
    declare_shards(rig, &session).await?;
    session.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await
}

/// Resumes a failed task and waits until a worker is on it.
async fn resume(task: &Migration) -> Result<()> {
    task.verb("reshard_resume").await?;
    wait_until(STEP, "the task to go on", || async { Ok(task.state().await?.status != "failed") })
        .await
}

/// One phase of the schema, to its end.
async fn sync(rig: &Arc<Rig>, phase: &str, options: &str) -> Result<Migration> {
    let task = Migration::call(
        rig,
        &format!(
            "SELECT reshard_schema_sync('{phase}', '{SOURCE}', '{DESTINATION}', '{PUBLICATION}', \
             options => '{options}')"
        ),
    )
    .await?;
    task.watch(&["succeeded"], STEP).await?;
    Ok(task)
}

/// Names that break what isn't quoted, or cut, or compared as it should be.
const ODD_NAMES: &[&str] = &[
    "select",
    "UPPER lower",
    "quo\"te",
    "apo'strophe",
    "back\\slash",
    "semi;colon --",
    "$$",
    "dot.ted",
    "%I %s {}",
    " space ",
    "new\nline",
    "grün 表 🐘",
    // 63 bytes, the most that a name can have.
    "a23456789012345678901234567890123456789012345678901234567890123",
];

/// Objects of many kinds with the same odd name.
fn named_oddly(name: &str) -> String {
    let n = identifier(name);
    format!(
        "CREATE SCHEMA {n};
         CREATE TYPE {n}.{n} AS ENUM ({v}, 'ok');
         CREATE DOMAIN {n}.\"d\" AS text CONSTRAINT {n} CHECK (VALUE <> {v});
         CREATE SEQUENCE {n}.\"s\" INCREMENT 3;
         CREATE FUNCTION {n}.{n}({n} integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1';
         CREATE FUNCTION {n}.\"t\"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
         CREATE TABLE {n}.\"parent\" ({n} integer PRIMARY KEY, \"e\" {n}.{n} DEFAULT {v});
         CREATE TABLE {n}.\"child\" (
             {n} integer, \"d\" {n}.\"d\", \"i\" bigint GENERATED ALWAYS AS IDENTITY,
             \"n\" bigint DEFAULT nextval({s}), CONSTRAINT {n} UNIQUE ({n}, \"i\"),
             CONSTRAINT \"fk\" FOREIGN KEY ({n}) REFERENCES {n}.\"parent\" ({n}) ON DELETE CASCADE);
         ALTER SEQUENCE {n}.\"s\" OWNED BY {n}.\"child\".\"n\";
         CREATE INDEX \"ix\" ON {n}.\"child\" (({n}.{n}({n}))) WHERE {n} > 0;
         CREATE VIEW {n}.\"v\" AS SELECT {n} FROM {n}.\"child\";
         CREATE MATERIALIZED VIEW {n}.\"m\" AS SELECT count(*) AS {n} FROM {n}.\"child\";
         CREATE TRIGGER {n} BEFORE INSERT ON {n}.\"child\" FOR EACH ROW EXECUTE FUNCTION {n}.\"t\"({v});
         CREATE POLICY {n} ON {n}.\"child\" USING ({n} > 0);
         CREATE STATISTICS {n}.\"st\" ON {n}, \"i\" FROM {n}.\"child\";
         CREATE TABLE {n}.\"parts\" ({n} integer) PARTITION BY LIST ({n});
         CREATE TABLE {n}.\"part\" PARTITION OF {n}.\"parts\" FOR VALUES IN (1);
         COMMENT ON COLUMN {n}.\"child\".{n} IS {v}",
        v = literal(name),
        s = literal(&format!("{n}.\"s\"")),
    )
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
        declare_whole(&rig).await?;
        sync(&rig, "pre", "{}").await?;
        sync(&rig, "post", "{}").await?;
        let differences = same_schema(&rig)?;
        assert_eq!(differences, Vec::<String>::new(), "{}", differences.join("\n"));
        Ok(())
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
        declare_whole(&rig).await?;
        sync(&rig, "pre", "{}").await?;
        sync(&rig, "post", "{}").await?;
        let differences = same_schema(&rig)?;
        assert_eq!(differences, Vec::<String>::new(), "{}", differences.join("\n"));
        Ok(())
    })
    .await;
}

/// Whether an extension can be had from the source's installation.
async fn has_extension(rig: &Rig, name: &str) -> Result<bool> {
    let found: i64 = rig
        .source
        .connect()
        .await?
        .one(&format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'"))
        .await?;
    Ok(found > 0)
}

/// One published table that stands on much, and much that it doesn't need.
const SCOPED: &str = "
CREATE SCHEMA needed; CREATE SCHEMA \"not needed\";
CREATE TYPE needed.mood AS ENUM ('ok');
CREATE DOMAIN needed.positive AS integer CONSTRAINT positive_check CHECK (VALUE > 0);
COMMENT ON CONSTRAINT positive_check ON DOMAIN needed.positive IS 'a domain''s';
CREATE FUNCTION needed.first() RETURNS needed.mood LANGUAGE sql IMMUTABLE RETURN 'ok'::needed.mood;
CREATE FUNCTION needed.first(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION needed.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE SEQUENCE needed.numbers;
CREATE TABLE needed.kinds (id integer PRIMARY KEY);
CREATE TABLE needed.things (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind integer REFERENCES needed.kinds,
    mood needed.mood DEFAULT needed.first(), amount needed.positive,
    number bigint DEFAULT nextval('needed.numbers')) PARTITION BY RANGE (id);
CREATE TABLE needed.things_1 PARTITION OF needed.things FOR VALUES FROM (0) TO (1000);
CREATE INDEX ON needed.things (needed.first(kind));
CREATE TRIGGER touch BEFORE UPDATE ON needed.things FOR EACH ROW EXECUTE FUNCTION needed.touch();
CREATE POLICY all_of_them ON needed.things USING (true);
CREATE STATISTICS needed.both ON id, kind FROM needed.things_1;
COMMENT ON COLUMN needed.things.kind IS 'a comment';
CREATE TABLE \"not needed\".other (id integer PRIMARY KEY, thing bigint);
CREATE VIEW needed.view_on_things AS SELECT id FROM needed.things;
CREATE FUNCTION \"not needed\".idle() RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE TABLE public.unpublished (id integer);
ALTER DEFAULT PRIVILEGES IN SCHEMA needed GRANT SELECT ON TABLES TO PUBLIC;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_publication_needs_comes_along_where_that_is_asked_for() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        session.execute(SCOPED).await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "CREATE PUBLICATION {PUBLICATION} FOR TABLE needed.things, needed.kinds"
            ))
            .await?;
        let options = "{\"schema_scope\": \"publication\"}";
        sync(&rig, "pre", options).await?;
        sync(&rig, "post", options).await?;
        let differences = same_schema(&rig)?;
        for lacking in ["not needed", "view_on_things", "unpublished", "DEFAULT PRIVILEGES"] {
            assert!(differences.iter().any(|d| d.contains(lacking)), "{lacking} came along");
        }
        let others: Vec<&String> = differences
            .iter()
            .filter(|d| {
                !["not needed", "view_on_things", "unpublished", "DEFAULT PRIVILEGES"]
                    .iter()
                    .any(|known| d.contains(known))
            })
            .collect();
        assert!(others.is_empty(), "{others:#?}");
        let left_out: i64 = session
            .one("SELECT count(*) FROM reshard.events WHERE kind = 'schema_left_out' AND detail::text LIKE '%schema_scope%'")
            .await?;
        assert!(left_out > 0);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn excluded_schemas_stay_behind_and_unfit_foreign_keys_are_treated_as_asked() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE SCHEMA \"Left \"\"Out\"\"\"; CREATE TABLE \"Left \"\"Out\"\"\".t (id integer);
                 CREATE TABLE accounts (tenant bigint PRIMARY KEY);
                 CREATE TABLE orders (tenant bigint, id bigint, PRIMARY KEY (tenant, id),
                     CONSTRAINT fits FOREIGN KEY (tenant) REFERENCES accounts);
                 CREATE TABLE omni (id bigint PRIMARY KEY, account bigint,
                     CONSTRAINT unfit FOREIGN KEY (account) REFERENCES accounts);
                 COMMENT ON CONSTRAINT unfit ON omni IS 'a comment';
                 INSERT INTO accounts SELECT generate_series(1, 100);
                 INSERT INTO orders SELECT g, g FROM generate_series(1, 100) g;
                 INSERT INTO omni SELECT g, g FROM generate_series(1, 100) g",
            )
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'tenant');
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE accounts, orders, omni"
            ))
            .await?;
        let start = |options: &str| {
            format!(
                "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false, '{options}')"
            )
        };
        let refused = session.execute(&start("{}")).await.unwrap_err();
        let text = refused.sql().unwrap().full_text();
        assert!(text.contains("foreign key \"unfit\"") && !text.contains("\"fits\""), "{text}");
        for (choice, expected) in [("not_valid", vec!["fits t", "unfit f"]), ("skip", vec!["fits t"])] {
            let options = format!(
                "{{\"foreign_keys\": \"{choice}\", \"exclude_schemas\": [\"Left \\\"Out\\\"\"]}}"
            );
            let run = Migration::call(&rig, &start(&options)).await?;
            run.watch(&["replicating"], STEP).await?;
            for shard in &rig.shards {
                let there = shard.connect().await?;
                let keys = there
                    .column("SELECT conname || ' ' || left(convalidated::text, 1) FROM pg_constraint WHERE contype = 'f' ORDER BY 1")
                    .await?;
                assert_eq!(keys, expected, "{choice}");
                let schemas: i64 = there
                    .one("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'Left%'")
                    .await?;
                assert_eq!(schemas, 0);
            }
            run.cancel(STEP).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shard_has_already_is_used_where_it_is_the_same_and_shown_where_it_is_not() {
    with_extension(1, |rig| async move {
        let schema = "CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('ok');
             CREATE TABLE s.t (id bigint NOT NULL, mood s.mood);
             ALTER TABLE ONLY s.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);
             CREATE INDEX t_mood ON s.t USING btree (mood);
             COMMENT ON TABLE s.t IS 'a table';
             CREATE VIEW s.v AS SELECT id FROM s.t;
             CREATE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'";
        let session = rig.source.connect().await?;
        session.execute(schema).await?;
        session.execute("INSERT INTO s.t SELECT g, 'ok' FROM generate_series(1, 100) g").await?;
        let there = rig.shards[0].connect().await?;
        there.execute(schema).await?;
        there.execute("CREATE OR REPLACE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 2'").await?;
        declare_whole(&rig).await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["failed"], STEP).await?;
        let shown: String = session
            .one(&format!("SELECT error || ' HINT ' || hint FROM reshard.tasks WHERE id = {}", run.id))
            .await?;
        println!("{shown}");
        for part in ["function \"s.f\" has another definition", "SELECT 1", "SELECT 2", "reshard_resume"] {
            assert!(shown.contains(part), "\"{part}\" is not in: {shown}");
        }
        there.execute("CREATE OR REPLACE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'").await?;
        resume(&run).await?;
        run.watch(&["replicating"], STEP).await?;
        let skipped = session
            .column(&format!("SELECT kind || ' ' || object_name FROM reshard.schema_sync WHERE task_id = {} AND status = 'skipped' ORDER BY ordinal", run.id))
            .await?;
        for object in ["table t", "primary_key t_pkey", "index t_mood", "view v", "function f"] {
            assert!(skipped.iter().any(|s| s == object), "{object}: {skipped:?}");
        }
        let rows: i64 = there.one("SELECT count(*) FROM s.t").await?;
        assert_eq!(rows, 100);
        // What was there before stays, empty as it was.
        run.cancel(STEP).await?;
        let rows: i64 = there.one("SELECT count(*) FROM s.t").await?;
        assert_eq!(rows, 0);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_fails_is_shown_and_the_rest_goes_on_where_it_was() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE parent (id bigint PRIMARY KEY);
                 CREATE TABLE child (id bigint PRIMARY KEY, parent bigint);
                 CREATE INDEX child_parent ON child (parent);
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w OPTIONS (host 'h', password 'hush-1');
                 CREATE USER MAPPING FOR postgres SERVER far OPTIONS (\"user\" 'u', password 'hush-2');
                 ALTER TABLE child ADD CONSTRAINT to_parent FOREIGN KEY (parent) REFERENCES parent NOT VALID;
                 CREATE EXTENSION reshard",
            )
            .await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'id'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        sync(&rig, "pre", "{\"foreign_keys\": \"not_valid\"}").await?;
        rig.shards[1].execute("INSERT INTO child VALUES (1, 1), (2, 1)").await?;
        rig.shards[1].execute("CREATE UNIQUE INDEX in_the_way ON child (parent) WHERE id > 1").await?;
        rig.shards[1].execute("ALTER TABLE child RENAME COLUMN parent TO elsewhere").await?;
        let post = Migration::call(
            &rig,
            &format!("SELECT reshard_schema_sync('post', '{SOURCE}', '{DESTINATION}', '{PUBLICATION}', options => '{{\"foreign_keys\": \"not_valid\"}}')"),
        )
        .await?;
        post.watch(&["failed"], STEP).await?;
        let failed = session
            .rows(&format!("SELECT shard, kind, object_name, error FROM reshard.schema_sync WHERE task_id = {} AND status = 'failed'", post.id))
            .await?;
        println!("{failed:?}");
        assert!(failed.iter().any(|row| row[0].as_deref() == Some("1") && row[2].as_deref() == Some("child_parent")), "{failed:?}");
        rig.shards[1].execute("ALTER TABLE child RENAME COLUMN elsewhere TO parent").await?;
        rig.shards[1].execute("DROP INDEX in_the_way").await?;
        resume(&post).await?;
        post.watch(&["succeeded"], STEP).await?;
        let shown = session.column("SELECT sql || coalesce(error, '') FROM reshard.schema_sync").await?;
        assert!(!shown.iter().any(|text| text.contains("hush-")), "a password is shown");
        let made: String = rig.shards[1].connect().await?.one("SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'far'").await?;
        assert!(made.contains("hush-2"));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two thousand tables"]
async fn two_thousand_tables_take_less_than_twice_as_long_as_pg_restore_and_little_memory() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        for chunk in 0..20 {
            session
                .execute(&format!(
                    "DO $$ BEGIN FOR n IN {}..{} LOOP
                         EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a integer, b text, c timestamptz DEFAULT now(), CHECK (a > 0))', n);
                         EXECUTE format('CREATE INDEX ON t%s (a)', n);
                         EXECUTE format('CREATE INDEX ON t%s (b, c)', n);
                     END LOOP; END $$",
                    chunk * 100,
                    chunk * 100 + 99
                ))
                .await?;
        }
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'id'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;

        let began = std::time::Instant::now();
        let spare = tokio::task::block_in_place(|| rig.add_server("spare"))?;
        println!("a server more: {:?}", began.elapsed());
        let restored = tokio::task::block_in_place(|| restore_pre_data(&rig.source, &spare))?;

        let what = format!("'{SOURCE}', '{DESTINATION}', '{PUBLICATION}'");
        let began = std::time::Instant::now();
        let findings: i64 = session
            .one(&format!("SELECT count(*) FROM reshard_preflight({what}) WHERE severity = 'error'"))
            .await?;
        println!("preflight: {:?}", began.elapsed());
        assert_eq!(findings, 0);
        sync(&rig, "pre", "{}").await?;
        let took: f64 = session
            .one("SELECT extract(epoch FROM finished_at - started_at) FROM reshard.tasks ORDER BY id DESC LIMIT 1")
            .await?;
        let memory = coordinator_memory(&session).await?;
        println!("pg_dump and pg_restore --section=pre-data: {restored:?}; phase pre: {took:.1} s; coordinator: {memory} kB");
        assert!(took < 2.0 * restored.as_secs_f64(), "{took} s against {restored:?}");
        assert!(memory < 600_000, "{memory} kB");
        let began = std::time::Instant::now();
        sync(&rig, "post", "{}").await?;
        println!("phase post: {:?}", began.elapsed());
        Ok(())
    })
    .await;
}

/// Time that pg_dump and pg_restore take for the same.
fn restore_pre_data(source: &Server, spare: &Server) -> Result<std::time::Duration> {
    let began = std::time::Instant::now();
    let script = format!(
        "'{dump}' -Fc -s -N reshard -h '{}' -p {} -U postgres app | '{restore}' --section=pre-data -h '{}' -p {} -U postgres -d app",
        source.folder().display(),
        source.port(),
        spare.folder().display(),
        spare.port(),
        dump = source.installation().program("pg_dump").display(),
        restore = source.installation().program("pg_restore").display(),
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(reshard_scenarios::Error::io("run pg_restore"))?;
    print!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(began.elapsed())
}

/// The most memory that the coordinator has used, in kB.
async fn coordinator_memory(session: &Session) -> Result<u64> {
    let pid: String = session
        .one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'reshard coordinator'")
        .await?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    Ok(line.split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_progress_of_an_index_is_told_while_it_is_built() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE t (id bigint PRIMARY KEY, a text, b text);
                 INSERT INTO t SELECT g, md5(g::text), md5((g + 1)::text) FROM generate_series(1, 1500000) g;
                 CREATE INDEX t_a ON t (a, b)",
            )
            .await?;
        declare_whole(&rig).await?;
        rig.shards[0].execute("ALTER SYSTEM SET maintenance_work_mem = '2MB'").await?;
        rig.shards[0].execute("SELECT pg_reload_conf()").await?;
        let run = Migration::start(&rig, false).await?;
        let mut seen = std::collections::BTreeSet::new();
        let what = format!(
            "SELECT status || ' ' || coalesce(percent::text, '') FROM reshard.schema_sync
             WHERE task_id = {} AND object_name = 't_a'",
            run.id
        );
        let deadline = std::time::Instant::now() + STEP;
        loop {
            let state = session.text(&what).await?.unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "{state}");
            match state.split_once(' ') {
                Some(("succeeded", _)) => break,
                Some(("running", percent)) if !percent.is_empty() => drop(seen.insert(percent.to_owned())),
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        println!("{seen:?}");
        assert!(seen.len() >= 2, "{seen:?}");
        run.cancel(STEP).await
    })
    .await;
}

/// What a database has outside of schemas of its own, and changes of what each
/// database begins with.
const OUTSIDE: &str = "
CREATE FOREIGN DATA WRAPPER \"f w\"; CREATE SERVER \"s 1\" FOREIGN DATA WRAPPER \"f w\";
CREATE USER MAPPING FOR CURRENT_USER SERVER \"s 1\" OPTIONS (\"user\" 'u');
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER \"e t\" ON ddl_command_end EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER \"e t\" DISABLE;
ALTER SCHEMA public OWNER TO owner; COMMENT ON SCHEMA public IS 'changed';
GRANT ALL ON SCHEMA public TO reader; REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA public GRANT ALL ON TABLES TO reader WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
CREATE TYPE pair AS (a int, b int); CREATE CAST (pair AS text) WITH INOUT AS ASSIGNMENT;
CREATE OPERATOR public.=== (FUNCTION = int4eq, LEFTARG = int4, RIGHTARG = int4);
CREATE OPERATOR FAMILY hashed USING hash;
CREATE OPERATOR CLASS hashed_int FOR TYPE int4 USING hash FAMILY hashed AS OPERATOR 1 ===, FUNCTION 1 hashint4(int4);
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE CONVERSION conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH CONFIGURATION search (COPY = simple);
CREATE TABLE t (id bigint PRIMARY KEY);
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_leaves_no_object_behind_whatever_its_kind() {
    with_extension(1, |rig| async move {
        for server in rig.servers() {
            server.execute("CREATE ROLE owner; CREATE ROLE reader").await?;
        }
        if has_extension(&rig, "lo").await? {
            // It was there before, and stays, with what depends on it.
            rig.source.execute("CREATE EXTENSION lo").await?;
            rig.shards[0].execute("CREATE EXTENSION lo; CREATE TABLE of_the_dba (l lo)").await?;
        }
        let before = dump(&rig.shards[0])?;
        rig.source.execute(OUTSIDE).await?;
        declare_whole(&rig).await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["replicating"], STEP).await?;
        assert_ne!(body(&dump(&rig.shards[0])?), body(&before));
        run.cancel(STEP).await?;
        assert_eq!(body(&dump(&rig.shards[0])?), body(&before));
        Ok(())
    })
    .await;
}

/// A dump without what differs each time.
fn body(dump: &str) -> Vec<&str> {
    dump.lines().filter(|line| !line.contains("restrict ")).collect()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phase_cutover_sets_the_sequences_of_the_shards_and_says_so() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE t (id bigserial PRIMARY KEY, tenant bigint); CREATE SEQUENCE \"odd ;\" INCREMENT -2;
                 INSERT INTO t (tenant) SELECT generate_series(1, 100); SELECT nextval('\"odd ;\"')",
            )
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'tenant'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        sync(&rig, "pre", "{}").await?;
        sync(&rig, "post", "{}").await?;
        // Again and again: no value is handed out twice.
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2 {
            let task = sync(&rig, "cutover", "{}").await?;
            let shown = session
                .column(&format!("SELECT shard || ' ' || status || ' ' || object_name FROM reshard.schema_sync WHERE task_id = {} AND kind = 'sequence_value' ORDER BY 1", task.id))
                .await?;
            assert_eq!(shown, ["0 succeeded odd ;", "0 succeeded t_id_seq", "1 succeeded odd ;", "1 succeeded t_id_seq"]);
            for server in rig.servers() {
                let next: i64 = server.connect().await?.one("SELECT nextval('t_id_seq')").await?;
                assert!(next > 100 && seen.insert((server.name().to_owned(), next)), "{next}: {seen:?}");
            }
        }
        let copied: i64 = session.one("SELECT count(*) FROM reshard.copy_table").await?;
        assert_eq!(copied, 0);
        sync(&rig, "post_cutover", "{}").await?;
        Ok(())
    })
    .await;
}
