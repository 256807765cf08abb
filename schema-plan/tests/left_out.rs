//! What doesn't come along, and that nothing of it is left in the plan.
#![allow(clippy::unwrap_used)]

use reshard_schema::{plan, Kind, Options, Plan};

fn planned(dump: &str) -> Plan {
    plan(dump, Options::default()).unwrap()
}

#[test]
fn nothing_of_a_migration_is_planned() {
    let plan = planned(include_str!("fixtures/dump-reshard-15.sql"));
    for statement in &plan.statements {
        // A function of the user's that only has such a name.
        let sql = statement.sql.replace("public.reshard_report", "");
        assert!(!sql.contains("reshard"), "{sql}");
        assert!(!sql.contains("progress") && !sql.contains("zzz_"), "{sql}");
    }
    let names: Vec<&str> = plan
        .statements
        .iter()
        .filter(|s| s.kind != Kind::Owner)
        .map(|s| s.object_name.as_deref().unwrap())
        .collect();
    let kept = [
        "reshard_report",
        "other",
        "kept_server",
        "postgres SERVER kept_server",
        "kept",
        "kept_pkey",
        "reshard_report",
    ];
    assert_eq!(names, kept);
}

#[test]
fn each_has_a_reason() {
    let plan = planned(include_str!("fixtures/dump-reshard-15.sql"));
    let reason = |start: &str| {
        let mut found = plan.left_out.iter().filter(|l| l.sql.starts_with(start));
        found.next().unwrap().reason.clone()
    };
    assert_eq!(reason("CREATE SCHEMA reshard"), "schema of the extension");
    assert_eq!(reason("CREATE TABLE reshard.tasks"), "in the schema of the extension");
    assert_eq!(reason("CREATE TRIGGER reshard_fence"), "made by a migration");
    assert_eq!(reason("ALTER TABLE public.kept ENABLE ALWAYS"), "made by a migration");
    assert_eq!(reason("CREATE TRIGGER zzz_reshard_detoast"), "made by a migration");
    assert_eq!(reason("ALTER TABLE public.kept ENABLE REPLICA"), "made by a migration");
    assert_eq!(reason("COMMENT ON TRIGGER zzz_reshard_detoast"), "made by a migration");
    assert_eq!(reason("ALTER EVENT TRIGGER zzz_guard DISABLE"), "made by a migration");
    assert_eq!(reason("CREATE PUBLICATION reshard_1_0"), "made by a migration");
    assert_eq!(reason("CREATE EVENT TRIGGER reshard_guard"), "made by a migration");
    assert_eq!(reason("CREATE SERVER prod_0"), "declares a shard");
    assert_eq!(reason("GRANT ALL ON FOREIGN SERVER prod_0"), "declares a shard");
    assert_eq!(
        reason("CREATE VIEW public.on_progress"),
        "reads what the extension has on the source only"
    );
    assert!(reason("CREATE SUBSCRIPTION").starts_with("subscriptions belong to the source"));
    assert!(reason("CREATE PUBLICATION mine").contains("--with-publications"));
    assert!(plan.left_out.iter().all(|l| !l.reason.is_empty()));
}

#[test]
fn secrets_of_what_is_left_out_are_not_shown() {
    let plan = planned(include_str!("fixtures/dump-reshard-15.sql"));
    let all = serde_json::to_string(&plan.left_out).unwrap();
    assert!(!all.contains("secret"));
    assert!(!all.contains("nowhere"));
    assert!(all.contains("OPTIONS (..."));
}

#[test]
fn the_extension_itself_is_left_out() {
    let plan = planned(
        "CREATE EXTENSION IF NOT EXISTS reshard WITH SCHEMA pg_catalog;\n\
         COMMENT ON EXTENSION reshard IS 'x';\n\
         CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;\n\
         REVOKE ALL ON FUNCTION pg_catalog.reshard_start(text) FROM PUBLIC;\n\
         ALTER TRIGGER t ON public.kept DEPENDS ON EXTENSION reshard;\n\
         ALTER INDEX public.i DEPENDS ON EXTENSION reshard;\n",
    );
    assert_eq!(plan.statements.len(), 1);
    assert_eq!(plan.statements[0].object_name.as_deref(), Some("hstore"));
    assert_eq!(plan.left_out.len(), 5);
}

#[test]
fn what_belongs_to_the_database_is_left_out() {
    let plan = planned(
        "\\restrict abc\n\
         SET statement_timeout = 0;\n\
         CREATE DATABASE shop WITH TEMPLATE = template0 ENCODING = 'UTF8';\n\
         ALTER DATABASE shop OWNER TO postgres;\n\
         \\unrestrict abc\n\
         \\connect shop\n\
         \\restrict abc\n\
         SET statement_timeout = 0;\n\
         ALTER DATABASE shop SET work_mem TO '64MB';\n\
         ALTER ROLE bob IN DATABASE shop SET work_mem TO '1MB';\n\
         COMMENT ON DATABASE shop IS 'shop';\n\
         GRANT CONNECT ON DATABASE shop TO bob;\n\
         SELECT pg_catalog.lo_create('16385');\n\
         ALTER LARGE OBJECT 16385 OWNER TO postgres;\n\
         GRANT SELECT ON LARGE OBJECT 3000000000 TO bob;\n\
         SELECT * FROM pg_catalog.pg_restore_relation_stats('version', '180000'::integer);\n\
         CREATE TABLE public.t (a integer);\n",
    );
    assert_eq!(plan.statements.len(), 1);
    assert_eq!(plan.statements[0].settings.len(), 0);
    assert_eq!(plan.session, ["SET statement_timeout = 0"]);
    let count = |kind| plan.left_out.iter().filter(|l| l.kind == kind).count();
    assert_eq!(count(Kind::PsqlCommand), 4);
    assert_eq!(count(Kind::LargeObject), 1);
    assert_eq!(count(Kind::StatisticsData), 1);
    assert_eq!(plan.left_out.len(), 14);
}

#[test]
fn indexes_that_a_migration_builds_for_replica_identities_are_left_out() {
    let plan = planned(
        "CREATE TABLE a.t (id integer NOT NULL, k integer NOT NULL);
         CREATE UNIQUE INDEX reshard_identity_7 ON a.t USING btree (id, k);
         CREATE INDEX reshard_report ON a.t USING btree (k);
         ALTER TABLE ONLY a.t REPLICA IDENTITY USING INDEX reshard_identity_7;",
    );
    let kept: Vec<&str> =
        plan.statements.iter().map(|s| s.object_name.as_deref().unwrap()).collect();
    assert_eq!(kept, ["t", "reshard_report"]);
    assert!(plan.left_out.iter().all(|l| l.reason == "made by a migration"));
}
