//! Options that leave a part of the schema behind.

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::same_schema;
use reshard_scenarios::session::{identifier, literal};
use reshard_scenarios::Migration;

use super::super::common::{with_extension, STEP};
use super::{has_extension, named_oddly, sync, ODD_NAMES};

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
                 CREATE TABLE parted (id bigint PRIMARY KEY, account bigint,
                     CONSTRAINT unfit_parted FOREIGN KEY (account) REFERENCES accounts) PARTITION BY RANGE (id);
                 CREATE TABLE parted_1 PARTITION OF parted DEFAULT;
                 COMMENT ON CONSTRAINT unfit_parted ON parted IS 'a comment';
                 CREATE SCHEMA away; CREATE TYPE away.mood AS ENUM ('ok');
                 ALTER TABLE omni ADD COLUMN moods away.mood[];
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
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE accounts, orders, omni, parted"
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
        let refused = session
            .execute(&start("{\"foreign_keys\": \"skip\", \"exclude_schemas\": [\"away\"]}"))
            .await
            .unwrap_err();
        let text = refused.sql().unwrap().full_text();
        assert!(text.contains("type \"away.mood\" is needed") && !text.contains("_mood"), "{text}");
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
async fn what_a_publication_needs_is_found_whatever_it_is_called() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        let mut published = Vec::new();
        for name in ODD_NAMES {
            session.execute(&named_oddly(name)).await?;
            let schema = identifier(name);
            published.extend(
                ["parent", "child", "parts"].map(|table| format!("{schema}.{}", identifier(table))),
            );
        }
        // Types of extensions, in columns and in indexes; of extensions that nobody needs.
        let extended = has_extension(&rig, "citext").await? && has_extension(&rig, "btree_gist").await?;
        if extended {
            session
                .execute(
                    "CREATE SCHEMA \"Ext \"\"ensions\"; CREATE EXTENSION citext SCHEMA \"Ext \"\"ensions\";
                     CREATE EXTENSION btree_gist SCHEMA \"Ext \"\"ensions\"; CREATE EXTENSION pg_trgm;
                     CREATE TABLE extended (id integer PRIMARY KEY, t \"Ext \"\"ensions\".citext);
                     CREATE INDEX ON extended USING gist (id)",
                )
                .await?;
            published.push("extended".to_owned());
        }
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {}", published.join(", ")))
            .await?;
        let options = "{\"schema_scope\": \"publication\"}";
        sync(&rig, "pre", options).await?;
        sync(&rig, "post", options).await?;
        let differences = same_schema(&rig)?;
        // Views and what nobody needs stay behind, nothing else.
        let others: Vec<&String> = differences
            .iter()
            .filter(|d| !["VIEW", ".v OWNER TO", ".m OWNER TO", "EXTENSION IF NOT EXISTS pg_trgm", "EXTENSION pg_trgm"].iter().any(|known| d.contains(known)))
            .collect();
        assert!(others.is_empty(), "{others:#?}");
        let there = rig.shards[0].connect().await?;
        let tables: usize = there
            .one("SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace >= 16384 AND relnamespace <> 'reshard'::regnamespace")
            .await?;
        assert_eq!(tables, 4 * ODD_NAMES.len());
        let extensions: i64 = there
            .one("SELECT count(*) FROM pg_extension WHERE extname IN ('citext', 'btree_gist', 'pg_trgm')")
            .await?;
        assert_eq!(extensions, if extended { 2 } else { 0 });
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_and_owners_stay_behind_whatever_they_are_called() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        let (owner, reader) = (identifier("Owner \"of\" ü"), identifier("reader's"));
        session
            .execute(&format!("CREATE ROLE {owner}; CREATE ROLE {reader}; CREATE TABLE public.t (id bigint PRIMARY KEY)"))
            .await?;
        rig.shards[0].execute(&format!("CREATE ROLE {reader}")).await?;
        for name in ODD_NAMES {
            session.execute(&named_oddly(name)).await?;
        }
        session
            .execute(&format!(
                "CREATE SCHEMA kept AUTHORIZATION {owner};
                 CREATE TABLE kept.\"T\" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
                 CREATE FUNCTION kept.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
                 CREATE TYPE kept.mood AS ENUM ('ok'); CREATE VIEW kept.v AS SELECT 1 AS one;
                 ALTER TABLE kept.\"T\" OWNER TO {owner}; ALTER FUNCTION kept.f() OWNER TO {owner};
                 ALTER TYPE kept.mood OWNER TO {owner}; ALTER VIEW kept.v OWNER TO {owner};
                 GRANT SELECT ON kept.\"T\" TO {reader}"
            ))
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE public.t, kept.\"T\"")).await?;
        let refused = session
            .execute(&format!("SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}')"))
            .await
            .unwrap_err();
        let text = refused.sql().unwrap().full_text();
        assert!(text.contains(&format!("CREATE ROLE {owner};")), "{text}");
        let names: Vec<String> = ODD_NAMES.iter().map(|name| literal(name)).collect();
        let run = Migration::call(
            &rig,
            &format!(
                "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false,
                    jsonb_build_object('no_owner', true, 'exclude_schemas', ARRAY[{}]))",
                names.join(", ")
            ),
        )
        .await?;
        run.watch(&["replicating"], STEP).await?;
        let there = rig.shards[0].connect().await?;
        let schemas = there
            .column("SELECT nspname FROM pg_namespace WHERE oid >= 16384 AND nspname <> 'reshard' AND nspname !~ '^pg_' ORDER BY 1")
            .await?;
        assert_eq!(schemas, ["kept"]);
        let owners = there
            .column(
                "SELECT DISTINCT pg_get_userbyid(o) FROM (
                     SELECT relowner FROM pg_class WHERE relnamespace = 'kept'::regnamespace
                     UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'kept'::regnamespace
                     UNION SELECT typowner FROM pg_type WHERE typnamespace = 'kept'::regnamespace
                     UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'kept') AS owners (o)",
            )
            .await?;
        assert_eq!(owners, ["postgres"]);
        let granted: bool = there
            .one(&format!("SELECT has_table_privilege({}, 'kept.\"T\"', 'SELECT')", literal("reader's")))
            .await
            .map(|t: String| t == "t")?;
        assert!(granted);
        run.cutover(STEP).await?;
        run.complete(STEP).await
    })
    .await;
}
