//! Checks of the schema, the rows and the destination.

use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::session::literal;
use reshard_scenarios::{Result, Rig, RigOptions, Server, Session};

use super::super::common::{application, run, KEY};
use super::{clean, expect, pasted, preflight, WHOLE};

/// What is wrong on one server, and what preflight must say of it.
struct Case<'a> {
    check: &'a str,
    severity: &'a str,
    names: &'a str,
    /// 0: the source; 1, 2: the shards.
    server: usize,
    setup: &'a str,
    undo: &'a str,
    publication: &'a str,
    options: &'a str,
}

const CASE: Case<'static> = Case {
    check: "",
    severity: "error",
    names: "",
    server: 0,
    setup: "SELECT",
    undo: "SELECT",
    publication: PUBLICATION,
    options: "{}",
};

fn server(rig: &Rig, number: usize) -> &Server {
    match number {
        0 => &rig.source,
        shard => &rig.shards[shard - 1],
    }
}

/// Cases of the same publication and options go together: everything is set up,
/// one look finds it all, everything is undone.
async fn each(rig: &Rig, cases: &[Case<'_>]) -> Result<()> {
    let session = rig.source.connect().await?;
    let mut rest: Vec<&Case<'_>> = cases.iter().collect();
    while let Some(first) = rest.first().copied() {
        let alike =
            |c: &&Case<'_>| c.publication == first.publication && c.options == first.options;
        let (group, others): (Vec<&Case<'_>>, Vec<&Case<'_>>) = rest.into_iter().partition(alike);
        rest = others;
        for case in &group {
            let there = server(rig, case.server).connect().await?;
            for statement in case.setup.split(";;") {
                there.execute(statement).await?;
            }
        }
        let what = (SOURCE, DESTINATION, first.publication);
        let found = preflight(&session, what, first.options).await?;
        for case in &group {
            expect(&found, case.check, case.severity, case.names);
        }
        for case in group.iter().rev() {
            let there = server(rig, case.server).connect().await?;
            for statement in case.undo.split(";;") {
                there.execute(statement).await?;
            }
        }
    }
    clean(&session).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_of_the_schema_and_the_rows_fires_and_a_clean_database_is_clean() {
    let options = RigOptions::new(2).source("max_prepared_transactions", "5");
    run(options, |rig| async move {
        application(&rig, 2_000).await?;
        let session = rig.source.connect().await?;
        clean(&session).await?;
        session
            .execute("CREATE PUBLICATION neat FOR TABLE accounts, orders, journal, tickets, settings")
            .await?;
        let found = preflight(&session, (SOURCE, DESTINATION, "neat"), "{}").await?;
        assert!(found.iter().all(|f| f.severity == "info"), "{found:#?}");
        session.execute("DROP PUBLICATION neat").await?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "skew", "info", "% of the rows");
        expect(&found, "replica_identity", "info", "events");
        expect(&found, "unique_constraints", "info", "tickets_pkey");
        each(&rig, &[
            Case { check: "publication", names: "nowhere", publication: "nowhere", ..CASE },
            Case {
                check: "publication_empty", names: "hollow", publication: "hollow",
                setup: "CREATE PUBLICATION hollow", undo: "DROP PUBLICATION hollow", ..CASE
            },
            // Before the case of a prepared transaction, whose end a slot would wait for.
            Case {
                check: "all_tables_subscribers", severity: "warning", names: "theirs",
                setup: "SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')",
                undo: "SELECT pg_drop_replication_slot('theirs')", ..CASE
            },
            Case {
                check: "publication_identity", severity: "warning", names: "unidentified",
                setup: "CREATE TABLE unidentified (id int)", undo: "DROP TABLE unidentified", ..CASE
            },
            Case {
                check: "sharding_key_published", names: KEY, publication: "lists",
                setup: "CREATE PUBLICATION lists FOR TABLE events (id, owner, stamp)",
                undo: "DROP PUBLICATION lists", ..CASE
            },
            Case {
                check: "replica_identity", names: "ruled out", publication: "narrow",
                setup: "CREATE PUBLICATION narrow FOR TABLE events (id, tenant_id, owner)",
                undo: "DROP PUBLICATION narrow", ..CASE
            },
            Case {
                check: "unpublished_columns", names: "code", publication: "codeless",
                setup: "CREATE TABLE coded (tenant_id bigint PRIMARY KEY, code text NOT NULL);; CREATE PUBLICATION codeless FOR TABLE coded (tenant_id)",
                undo: "DROP PUBLICATION codeless;; DROP TABLE coded", ..CASE
            },
            Case {
                check: "replica_identity", names: "can't be compared",
                setup: "CREATE TABLE unequal (tenant_id bigint, document json)", undo: "DROP TABLE unequal", ..CASE
            },
            Case {
                check: "replica_identity", severity: "info", names: "FULL",
                setup: "CREATE TABLE postponed (tenant_id bigint PRIMARY KEY DEFERRABLE)", undo: "DROP TABLE postponed", ..CASE
            },
            Case {
                check: "sharding_key_type", names: "hashed",
                setup: "CREATE TABLE unhashed (tenant_id json)", undo: "DROP TABLE unhashed", ..CASE
            },
            Case {
                check: "sharding_key_type", names: "can't stand in a row filter",
                setup: "CREATE DOMAIN tenant AS bigint;; CREATE TABLE of_domain (tenant_id tenant PRIMARY KEY)",
                undo: "DROP TABLE of_domain;; DROP DOMAIN tenant", ..CASE
            },
            Case {
                check: "sharding_key_null", severity: "warning", names: "null",
                setup: "CREATE TABLE keyless_rows (tenant_id bigint, id bigint PRIMARY KEY);; INSERT INTO keyless_rows VALUES (1, 1), (NULL, 2)",
                undo: "DROP TABLE keyless_rows", ..CASE
            },
            Case {
                check: "skew", severity: "warning", names: "more than its share",
                setup: "CREATE TABLE one_tenant (tenant_id bigint, id bigint, PRIMARY KEY (tenant_id, id));; INSERT INTO one_tenant SELECT 7, g FROM generate_series(1, 500000) g;; ANALYZE one_tenant",
                undo: "DROP TABLE one_tenant", ..CASE
            },
            Case {
                check: "foreign_keys", names: "orders_settings",
                setup: "ALTER TABLE settings ADD COLUMN tenant_id2 bigint;; ALTER TABLE settings ADD CONSTRAINT orders_settings FOREIGN KEY (tenant_id2) REFERENCES accounts (tenant_id)",
                undo: "ALTER TABLE settings DROP COLUMN tenant_id2", ..CASE
            },
            Case {
                check: "foreign_keys", severity: "warning", names: "NOT VALID", options: "{\"foreign_keys\": \"not_valid\"}",
                setup: "ALTER TABLE settings ADD COLUMN tenant_id2 bigint;; ALTER TABLE settings ADD CONSTRAINT orders_settings FOREIGN KEY (tenant_id2) REFERENCES accounts (tenant_id)",
                undo: "ALTER TABLE settings DROP COLUMN tenant_id2", ..CASE
            },
            Case {
                check: "unique_constraints", severity: "warning", names: "events_stamp",
                setup: "CREATE UNIQUE INDEX events_stamp ON events (stamp, id, owner)", undo: "DROP INDEX events_stamp", ..CASE
            },
            Case {
                check: "firing_triggers", severity: "warning", names: "loud",
                setup: "CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';; CREATE TRIGGER loud BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION loud();; ALTER TABLE orders ENABLE ALWAYS TRIGGER loud",
                undo: "DROP FUNCTION loud CASCADE", ..CASE
            },
            Case {
                check: "event_triggers", severity: "warning", names: "watch",
                setup: "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';; CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch()",
                undo: "DROP FUNCTION watch CASCADE", ..CASE
            },
            Case {
                check: "row_security", severity: "info", names: "policies",
                setup: "ALTER TABLE orders ENABLE ROW LEVEL SECURITY", undo: "ALTER TABLE orders DISABLE ROW LEVEL SECURITY", ..CASE
            },
            Case {
                check: "unlogged_tables", severity: "warning", names: "volatile",
                setup: "CREATE UNLOGGED TABLE volatile (id int PRIMARY KEY)", undo: "DROP TABLE volatile", ..CASE
            },
            Case {
                check: "columnless_tables", severity: "warning", names: "hollow",
                setup: "CREATE TABLE hollow ();; INSERT INTO hollow DEFAULT VALUES", undo: "DROP TABLE hollow", ..CASE
            },
            Case {
                check: "columnless_tables", severity: "info", names: "really_hollow",
                setup: "CREATE TABLE really_hollow ()", undo: "DROP TABLE really_hollow", ..CASE
            },
            Case {
                check: "extension_tables", severity: "info", names: "of_plpgsql",
                setup: "CREATE TABLE of_plpgsql (id int PRIMARY KEY);; ALTER EXTENSION plpgsql ADD TABLE of_plpgsql",
                undo: "ALTER EXTENSION plpgsql DROP TABLE of_plpgsql;; DROP TABLE of_plpgsql", ..CASE
            },
            Case {
                check: "subscriptions", names: "intruder",
                setup: "CREATE SUBSCRIPTION intruder CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false);; INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) SELECT oid, 'orders'::regclass, 'r' FROM pg_subscription;; UPDATE pg_subscription SET subenabled = true, subslotname = NULL",
                undo: "UPDATE pg_subscription SET subenabled = false;; DROP SUBSCRIPTION intruder", ..CASE
            },
            Case {
                check: "roles", names: "default_giver", options: "{\"no_owner\": true}",
                setup: "CREATE ROLE default_giver;; ALTER DEFAULT PRIVILEGES FOR ROLE default_giver GRANT SELECT ON TABLES TO PUBLIC",
                undo: "DROP OWNED BY default_giver;; DROP ROLE default_giver", ..CASE
            },
            Case {
                check: "roles", names: "frugal", options: "{\"no_owner\": true}",
                setup: "CREATE ROLE frugal;; CREATE TABLE thrifty (id int PRIMARY KEY);; ALTER TABLE thrifty OWNER TO frugal;; REVOKE DELETE ON thrifty FROM frugal",
                undo: "DROP TABLE thrifty;; DROP ROLE frugal", ..CASE
            },
            Case {
                check: "replica_identity", severity: "info", names: "built CONCURRENTLY", options: "{\"replica_identity\": \"index\"}",
                setup: "CREATE TABLE to_index (id bigint PRIMARY KEY, tenant_id bigint NOT NULL)", undo: "DROP TABLE to_index", ..CASE
            },
            Case {
                check: "large_objects", severity: "warning", names: "1 large object",
                setup: "SELECT lo_create(4711)", undo: "SELECT lo_unlink(4711)", ..CASE
            },
            Case {
                check: "prepared_transactions", severity: "warning", names: "left open",
                setup: "BEGIN; INSERT INTO settings VALUES (-1, 0, 'x'); PREPARE TRANSACTION 'left open'",
                undo: "ROLLBACK PREPARED 'left open'", ..CASE
            },
            Case {
                check: "roles", names: "only here",
                setup: "CREATE ROLE \"only here\";; ALTER TABLE orders OWNER TO \"only here\"",
                undo: "ALTER TABLE orders OWNER TO postgres;; DROP ROLE \"only here\"", ..CASE
            },
            Case {
                check: "tablespaces", names: "Far Away",
                setup: "SET allow_in_place_tablespaces = on;; CREATE TABLESPACE \"Far Away\" LOCATION '';; CREATE TABLE far_away (id int PRIMARY KEY) TABLESPACE \"Far Away\"",
                undo: "DROP TABLE far_away;; DROP TABLESPACE \"Far Away\"", ..CASE
            },
            Case {
                check: "extensions", names: "nowhere",
                setup: "UPDATE pg_extension SET extname = 'nowhere' WHERE extname = 'plpgsql'",
                undo: "UPDATE pg_extension SET extname = 'plpgsql' WHERE extname = 'nowhere'", ..CASE
            },
            Case {
                check: "extensions", severity: "info", names: "0.7", options: "{\"foreign_keys\": \"not_valid\"}",
                setup: "UPDATE pg_extension SET extversion = '0.7' WHERE extname = 'plpgsql'",
                undo: "UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'plpgsql'", ..CASE
            },
            Case { check: "exclude_schemas", names: "public", options: "{\"exclude_schemas\": [\"public\"]}", ..CASE },
            Case { check: "exclude_schemas", names: "does not exist", options: "{\"exclude_schemas\": [\"nowhere\"]}", ..CASE },
            Case {
                check: "destination_empty", names: "has rows already", server: 2,
                setup: "CREATE TABLE settings (id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL);; INSERT INTO settings VALUES (1, 1, '')",
                undo: "DROP TABLE settings", ..CASE
            },
            Case {
                check: "destination_empty", names: "On the shard: table (id integer)", server: 2,
                setup: "CREATE TABLE accounts (id int)", undo: "DROP TABLE accounts", ..CASE
            },
            Case {
                check: "destination_empty", severity: "info", names: "same columns", server: 2,
                setup: "CREATE TABLE events (id bigint NOT NULL, tenant_id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL)",
                undo: "DROP TABLE events", ..CASE
            },
            Case {
                check: "destination_extension", names: "reshard", server: 1,
                setup: "CREATE EXTENSION reshard", undo: "DROP EXTENSION reshard", ..CASE
            },
            Case {
                check: "destination_schema", names: "not made by a migration", server: 2,
                setup: "CREATE SCHEMA reshard", undo: "DROP SCHEMA reshard", ..CASE
            },
            Case {
                check: "read_only", names: "read-only", server: 1,
                setup: "ALTER DATABASE app SET default_transaction_read_only = on",
                undo: "SET default_transaction_read_only = off;; ALTER DATABASE app RESET default_transaction_read_only", ..CASE
            },
            Case {
                check: "value_settings", names: "array_nulls = off, client_encoding = latin1, xmloption = document", server: 2,
                setup: "ALTER DATABASE app SET array_nulls = off; ALTER DATABASE app SET xmloption = document; ALTER DATABASE app SET client_encoding = latin1",
                undo: "ALTER DATABASE app RESET ALL", ..CASE
            },
        ])
        .await?;
        left_behind(&rig, &session).await?;
        row_security(&rig, &session).await?;
        collations(&rig, &session).await?;
        disk_space(&rig, &session).await?;
        let error = session
            .execute(&format!("SELECT reshard_copy_data('{SOURCE}', '{DESTINATION}', '{PUBLICATION}')"))
            .await
            .unwrap_err();
        let text = error.sql().unwrap().full_text();
        // Check "destination_tables", which reshard_preflight() has no use for.
        assert!(text.contains("published tables are missing on shard 0"), "{text}");
        assert!(text.contains("reshard_schema_sync('pre'"), "{text}");
        clean(&session).await
    })
    .await;
}

/// What lies in a schema that stays behind needs no role and no tablespace on the shards.
async fn left_behind(rig: &Rig, session: &Session) -> Result<()> {
    let there = rig.source.connect().await?;
    there.execute("SET allow_in_place_tablespaces = on").await?;
    there.execute("CREATE TABLESPACE aside LOCATION ''").await?;
    there
        .execute(
            "CREATE ROLE stays; CREATE SCHEMA aside AUTHORIZATION stays;
             CREATE TABLE aside.t (id int PRIMARY KEY USING INDEX TABLESPACE aside) TABLESPACE aside;
             ALTER TABLE aside.t OWNER TO stays; CREATE POLICY mine ON aside.t TO stays;
             CREATE COLLATION aside.plain FROM \"C\"; ALTER COLLATION aside.plain OWNER TO stays;
             ALTER DEFAULT PRIVILEGES FOR ROLE stays IN SCHEMA aside GRANT SELECT ON TABLES TO PUBLIC;
             CREATE PUBLICATION without_aside FOR TABLE accounts, orders",
        )
        .await?;
    let what = (SOURCE, DESTINATION, "without_aside");
    let found = preflight(session, what, "{}").await?;
    expect(&found, "roles", "error", "stays");
    expect(&found, "tablespaces", "error", "aside");
    let found = preflight(session, what, "{\"exclude_schemas\": [\"aside\"]}").await?;
    assert!(found.iter().all(|f| f.severity != "error"), "{found:#?}");
    let found = preflight(session, what, "{\"schema_scope\": \"publication\"}").await?;
    assert!(found.iter().all(|f| f.check != "tablespaces"), "{found:#?}");
    there
        .execute("DROP PUBLICATION without_aside; DROP OWNED BY stays CASCADE; DROP ROLE stays")
        .await?;
    there.execute("DROP TABLESPACE aside").await
}

/// Row security that holds for the table's owner too, who applies changes from PostgreSQL
/// 16 on; before, a superuser does.
async fn row_security(rig: &Rig, session: &Session) -> Result<()> {
    const WALLED: &str = "CREATE TABLE walled (tenant_id bigint PRIMARY KEY);
        ALTER TABLE walled OWNER TO landlord, ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY";
    for server in rig.servers() {
        server.execute("CREATE ROLE landlord").await?;
    }
    session.execute(WALLED).await?;
    // Rows go to the partition, which has none.
    session
        .execute(
            "CREATE TABLE hallway (tenant_id bigint PRIMARY KEY) PARTITION BY HASH (tenant_id);
             CREATE TABLE hallway_0 PARTITION OF hallway FOR VALUES WITH (MODULUS 1, REMAINDER 0);
             ALTER TABLE hallway OWNER TO landlord, ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE PUBLICATION walls FOR TABLE walled, hallway WITH (publish_via_partition_root)",
        )
        .await?;
    rig.shards[1].execute(WALLED).await?;
    let what = (SOURCE, DESTINATION, "walls");
    if rig.source.installation().major() >= 16 {
        for (server, name) in [(&rig.source, "the source"), (&rig.shards[1], "shard 1")] {
            let found = preflight(session, what, "{}").await?;
            expect(&found, "row_security", "error", name);
            server.execute(pasted(&found, "row_security", "ALTER TABLE")).await?;
        }
    }
    let found = preflight(session, what, "{}").await?;
    expect(&found, "row_security", "info", "walled");
    expect(&found, "row_security", "info", "hallway");
    assert!(found.iter().all(|f| f.severity != "error"), "{found:#?}");
    session.execute("DROP PUBLICATION walls; DROP TABLE walled, hallway").await?;
    rig.shards[1].execute("DROP TABLE walled").await?;
    for server in rig.servers() {
        server.execute("DROP ROLE landlord").await?;
    }
    Ok(())
}

/// A collation whose rules are newer than what was made with it.
async fn collations(rig: &Rig, session: &Session) -> Result<()> {
    // Not every server is built with ICU, whose collations have versions everywhere.
    let there = rig.source.connect().await?;
    let made = there.execute("CREATE COLLATION sorted (provider = icu, locale = 'de')").await;
    match made {
        Err(error) if error.sqlstate() == Some("0A000") => {
            println!("this PostgreSQL has no collations with a version");
            return Ok(());
        }
        other => other?,
    }
    there
        .execute(
            "CREATE TABLE odd (id int PRIMARY KEY, name text COLLATE sorted);
             UPDATE pg_collation SET collversion = '1' WHERE collname = 'sorted'",
        )
        .await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "collation_versions", "warning", "sorted");
    there.execute("DROP TABLE odd; DROP COLLATION sorted").await?;
    key_by_range(rig, session).await
}

/// A key that is mapped by range, in an order that one shard doesn't know.
async fn key_by_range(rig: &Rig, session: &Session) -> Result<()> {
    for (number, shard) in rig.shards.iter().enumerate() {
        let conninfo = literal(&shard.conninfo());
        session
            .execute(&format!("SELECT reshard_add_shard('by_name', {number}, {conninfo})"))
            .await?;
    }
    session
        .execute(
            "CREATE TABLE names (name text COLLATE \"de-x-icu\" PRIMARY KEY);
             CREATE PUBLICATION names_alone FOR TABLE names;
             SELECT reshard_set_sharding_key('by_name', 'name', 'range', relation => 'names');
             SELECT reshard_map_range('by_name', 'name', NULL, 'm', 0);
             SELECT reshard_map_range('by_name', 'name', 'm', NULL, 1)",
        )
        .await?;
    let what = (SOURCE, "by_name", "names_alone");
    let found = preflight(session, what, "{}").await?;
    assert!(found.iter().all(|f| f.severity != "error"), "{found:#?}");
    let rename = |from: &str, to: &str| {
        format!("UPDATE pg_collation SET collname = '{to}' WHERE collname = '{from}'")
    };
    rig.shards[1].execute(&rename("de-x-icu", "gone")).await?;
    let found = preflight(session, what, "{}").await?;
    expect(&found, "sharding_key_collation", "error", "names");
    rig.shards[1].execute(&rename("gone", "de-x-icu")).await?;
    session.execute("DROP PUBLICATION names_alone; DROP TABLE names").await
}

/// A table that claims more than any disk has: a second segment full of nothing,
/// which nobody reads while the first one isn't full.
async fn disk_space(rig: &Rig, session: &Session) -> Result<()> {
    let there = rig.source.connect().await?;
    there.execute("CREATE TABLE vast (id bigint PRIMARY KEY)").await?;
    let path: String = there.one("SELECT pg_relation_filepath('vast')").await?;
    let file = std::fs::File::create(rig.source.data().join(format!("{path}.1"))).unwrap();
    file.set_len(8 << 40).unwrap();
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "disk_space", "error", "are free");
    // What brings no rows needs no room.
    let what = format!("'{SOURCE}', '{DESTINATION}', '{PUBLICATION}'");
    let id: i64 =
        session.one(&format!("SELECT reshard_schema_sync('pre', {what}, dry_run => true)")).await?;
    session.execute(&format!("SELECT reshard_wait({id}, 'done', interval '60 s')")).await?;
    drop(file);
    std::fs::remove_file(rig.source.data().join(format!("{path}.1"))).unwrap();
    there.execute("DROP TABLE vast").await
}
