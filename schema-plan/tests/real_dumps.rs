//! Plans of real dumps. `fixtures/dump-*.sql` are what pg_dump of 15 and 18
//! made of the schemas beside them; that those plans build the same schema
//! again was tried on servers.
#![allow(clippy::unwrap_used, clippy::panic)]

use reshard_schema::{plan, Kind, Options, Phase, Plan, Statement, Step};

const DUMP_15: &str = include_str!("fixtures/dump-15.sql");
const DUMP_18: &str = include_str!("fixtures/dump-18.sql");
const CONTRIB_15: &str = include_str!("fixtures/dump-contrib-15.sql");

fn planned(dump: &str) -> Plan {
    plan(dump, Options::default()).unwrap()
}

fn all() -> [Plan; 3] {
    [planned(DUMP_15), planned(DUMP_18), planned(CONTRIB_15)]
}

/// The one statement of this kind about this object.
fn one<'a>(plan: &'a Plan, kind: Kind, object: &str) -> &'a Statement {
    let mut found = plan
        .statements
        .iter()
        .filter(|s| s.kind == kind && s.object_name.as_deref() == Some(object));
    match (found.next(), found.next()) {
        (Some(statement), None) => statement,
        (None, _) => panic!("no {kind} {object}"),
        _ => panic!("several {kind} {object}"),
    }
}

/// Made by the planner, not by pg_dump.
fn is_added(statement: &Statement) -> bool {
    matches!(statement.kind, Kind::Refresh | Kind::Validation)
}

#[test]
fn every_statement_of_the_dump_is_in_the_plan_or_left_out() {
    for dump in [DUMP_15, DUMP_18, CONTRIB_15] {
        let plan = planned(dump);
        let added = plan.statements.iter().filter(|s| is_added(s)).count();
        let kept = plan.statements.len() - added + plan.left_out.len();
        // Each statement of these dumps begins a line with one of these words,
        // and no body or string of theirs does.
        let begins = ["CREATE ", "ALTER ", "COMMENT ", "GRANT ", "REVOKE "];
        let begun = |line: &str| begins.iter().any(|word| line.starts_with(word));
        // The bodies and strings have lines like these, without the token.
        let guards = |line: &str| line.contains("restrict ") && line.len() > 60;
        let expected = dump.lines().filter(|line| begun(line) || guards(line)).count();
        assert_eq!(kept, expected);
    }
}

#[test]
fn the_text_of_the_dump_is_kept() {
    for (plan, dump) in all().iter().zip([DUMP_15, DUMP_18, CONTRIB_15]) {
        for statement in plan.statements.iter().filter(|s| !is_added(s)) {
            let validated_apart = statement.kind == Kind::ForeignKey
                && plan
                    .statements
                    .iter()
                    .any(|s| s.kind == Kind::Validation && s.object_name == statement.object_name);
            let text = match statement.sql.strip_suffix(" NOT VALID") {
                Some(text) if validated_apart => text,
                _ => &statement.sql,
            };
            assert!(dump.contains(&format!("{text};")), "{}", statement.sql);
        }
    }
}

#[test]
fn ordinals_follow_the_steps() {
    for plan in all() {
        let ordinals: Vec<usize> = plan.statements.iter().map(|s| s.ordinal).collect();
        assert_eq!(ordinals, (1..=plan.statements.len()).collect::<Vec<_>>());
        assert!(plan.statements.windows(2).all(|pair| pair[0].step <= pair[1].step));
        assert!(plan.statements.iter().all(|s| s.phase == s.step.phase()));
    }
}

#[test]
fn versions_and_sessions_are_read() {
    let [old, new, _] = all();
    assert_eq!(old.server_version.as_deref(), Some("15.20"));
    assert_eq!(new.server_version.as_deref(), Some("18.4"));
    let wanted = [
        "SET check_function_bodies = false",
        "SELECT pg_catalog.set_config('search_path', '', false)",
    ];
    for plan in [&old, &new] {
        assert!(wanted.iter().all(|sql| plan.session.iter().any(|line| line == sql)));
        let storage = plan.session.iter().filter(|line| line.contains("default_table"));
        let defaults = ["SET default_tablespace = ''", "SET default_table_access_method = heap"];
        assert_eq!(storage.collect::<Vec<_>>(), defaults);
    }
    assert!(new.session.iter().any(|line| line == "SET transaction_timeout = 0"));
}

#[test]
fn keys_and_indexes_come_in_their_steps_with_their_columns() {
    let plan = planned(DUMP_15);
    let key = one(&plan, Kind::PrimaryKey, "Straße; PK");
    assert_eq!(key.step, Step::Keys);
    assert_eq!(key.schema_name.as_deref(), Some("Odd Names; --"));
    assert_eq!(key.table_name.as_deref(), Some("Table \"quoted\"; $$"));
    assert_eq!(key.columns, ["Größe", "Column; 1"]);
    let index = one(&plan, Kind::Index, "orders_amount");
    assert_eq!((index.step, index.phase), (Step::Indexes, Phase::Post));
    assert_eq!(index.columns, ["user_id", "amount"]);
    assert_eq!(index.table_name.as_deref(), Some("orders"));
    assert_eq!(one(&plan, Kind::Index, "orders_expression").columns, [""; 0]);
    assert_eq!(one(&plan, Kind::Unique, "users_email_key").columns, ["email"]);
    assert_eq!(one(&plan, Kind::Exclusion, "orders_no_overlap").columns, ["during"]);
    assert_eq!(one(&plan, Kind::ForeignKey, "orders_user_fk").columns, ["user_id"]);
    assert_eq!(one(&plan, Kind::ForeignKey, "orders_parent_fk").step, Step::ForeignKeys);
}

#[test]
fn foreign_keys_say_what_they_point_to() {
    let plan = planned(DUMP_15);
    let key = one(&plan, Kind::ForeignKey, "notes_event_id_region_at_fkey");
    assert_eq!(key.columns, ["event_id", "region", "at"]);
    assert_eq!(key.referenced_schema.as_deref(), Some("partitions"));
    assert_eq!(key.referenced_table.as_deref(), Some("events"));
    assert_eq!(key.referenced_columns, ["id", "region", "at"]);
}

#[test]
fn foreign_keys_are_added_first_and_validated_afterwards() {
    let plan = planned(DUMP_18);
    let validated: Vec<&str> = plan
        .statements
        .iter()
        .filter(|s| s.kind == Kind::Validation)
        .map(|s| s.sql.as_str())
        .collect();
    assert!(validated
        .contains(&"ALTER TABLE ONLY \"app\".\"orders\" VALIDATE CONSTRAINT \"orders_user_fk\""));
    let key = one(&plan, Kind::ForeignKey, "orders_user_fk");
    assert!(key.sql.ends_with(" DEFERRABLE INITIALLY DEFERRED NOT VALID"), "{}", key.sql);
    // Not valid on the source, not enforced, or of a partitioned table.
    for name in ["orders_parent_fk", "refers_fk", "events_user_fk"] {
        let key = one(&plan, Kind::ForeignKey, name);
        assert!(!plan
            .statements
            .iter()
            .any(|s| { s.kind == Kind::Validation && s.object_name == key.object_name }));
        assert!(!key.sql.contains("NOT VALID NOT VALID"));
    }
    assert!(!one(&plan, Kind::ForeignKey, "events_user_fk").sql.contains("NOT VALID"));
}

#[test]
fn passwords_are_in_no_text_for_people() {
    let plan = planned(CONTRIB_15);
    let mapping = plan.statements.iter().find(|s| s.kind == Kind::UserMapping).unwrap();
    assert!(mapping.sql.contains("password 'p'"));
    assert!(!mapping.shown.as_deref().unwrap().contains("'p'"));
}

#[test]
fn only_keys_indexes_and_foreign_keys_may_run_in_parallel() {
    for plan in all() {
        for statement in plan.statements.iter().filter(|s| s.step.is_parallel()) {
            let kinds: &[Kind] = match statement.step {
                Step::Keys => &[Kind::PrimaryKey, Kind::Unique, Kind::Exclusion],
                Step::Indexes => &[Kind::Index],
                Step::Validate => &[Kind::Validation],
                _ => &[Kind::ForeignKey],
            };
            assert!(kinds.contains(&statement.kind), "{}", statement.sql);
        }
    }
}

#[test]
fn comments_follow_what_they_are_about() {
    let plan = planned(DUMP_15);
    for (object, step) in [
        ("users_inline_check", Step::Pre),
        ("users_pkey", Step::Attach),
        ("users_email_key", Step::Attach),
        ("orders_amount", Step::Attach),
        ("orders_pkey", Step::Attach),
        ("orders_user_fk", Step::Rest),
        ("users_check_later", Step::Rest),
        ("late_totals_id", Step::Rest),
        ("touch", Step::Rest),
        ("own_orders", Step::Rest),
        ("orders_stats", Step::Rest),
        ("watch_ddl", Step::Rest),
    ] {
        assert_eq!(one(&plan, Kind::Comment, object).step, step, "{object}");
    }
    let comment = one(&plan, Kind::Comment, "orders_amount");
    assert_eq!(comment.table_name.as_deref(), Some("orders"));
}

#[test]
fn what_stands_on_a_late_object_is_late() {
    let plan = planned(DUMP_15);
    assert_eq!(one(&plan, Kind::Function, "order_count").step, Step::Rest);
    assert_eq!(one(&plan, Kind::MaterializedView, "late_totals").step, Step::Rest);
    assert_eq!(one(&plan, Kind::Index, "late_totals_id").step, Step::Rest);
    assert_eq!(one(&plan, Kind::Cluster, "late_totals_id").step, Step::Rest);
    assert_eq!(one(&plan, Kind::Index, "orders_late_expression").step, Step::Rest);
    assert_eq!(one(&plan, Kind::Index, "totals_user").step, Step::Indexes);
    // A stub before the data, the view itself after the keys.
    let steps: Vec<Step> = plan
        .statements
        .iter()
        .filter(|s| s.kind == Kind::View && s.object_name.as_deref() == Some("by_user"))
        .map(|s| s.step)
        .collect();
    assert_eq!(steps, [Step::Pre, Step::Rest]);
}

#[test]
fn materialized_views_are_filled_last_in_their_order() {
    let plan = planned(DUMP_15);
    let last = &plan.statements[plan.statements.len() - 5..];
    let sql: Vec<&str> = last.iter().map(|s| s.sql.as_str()).collect();
    assert_eq!(
        sql,
        [
            "REFRESH MATERIALIZED VIEW \"app\".\"elsewhere_view\"",
            "REFRESH MATERIALIZED VIEW \"app\".\"totals\"",
            "REFRESH MATERIALIZED VIEW \"app\".\"totals_of_totals\"",
            "REFRESH MATERIALIZED VIEW \"app\".\"late_totals\"",
            "REFRESH MATERIALIZED VIEW \"app\".\"unfilled\"",
        ]
    );
    assert!(last.iter().all(|s| s.settings == ["SET row_security = on"]));
}

#[test]
fn settings_are_named_only_where_they_count() {
    let plan = planned(DUMP_15);
    let space = ["SET default_tablespace = \"Fixture Space\""];
    assert_eq!(one(&plan, Kind::Table, "elsewhere").settings, space);
    assert_eq!(one(&plan, Kind::MaterializedView, "elsewhere_view").settings, space);
    assert_eq!(one(&plan, Kind::PrimaryKey, "elsewhere_pkey").settings, space);
    assert_eq!(one(&plan, Kind::Index, "elsewhere_b").settings, [""; 0]);
    let method = ["SET default_table_access_method = heap2"];
    assert_eq!(one(&plan, Kind::Table, "on_heap2").settings, method);
    let others = plan.statements.iter().filter(|s| !s.settings.is_empty());
    let as_grantor: Vec<Kind> = others
        .filter(|s| s.settings[0].starts_with("SET SESSION AUTHORIZATION"))
        .map(|s| s.kind)
        .collect();
    assert_eq!(as_grantor, [Kind::Grant]);
}

#[test]
fn partitions_are_attached_before_the_data_and_their_indexes_after_the_keys() {
    let plan = planned(DUMP_15);
    let partition = one(&plan, Kind::Partition, "events_eu_2025_0");
    assert_eq!(partition.step, Step::Pre);
    assert_eq!(partition.table_name.as_deref(), Some("events_eu_2025"));
    let attached = plan.statements.iter().filter(|s| s.kind == Kind::IndexAttach);
    assert!(attached.clone().count() >= 10);
    assert!(attached.clone().all(|s| s.step == Step::Attach && s.table_name.is_some()));
}

#[test]
fn publications_are_a_choice() {
    let options = Options { with_publications: true, ..Options::default() };
    let with = plan(DUMP_15, options).unwrap();
    assert!(with.statements.iter().any(|s| s.kind == Kind::Publication));
    let without = planned(DUMP_15);
    assert!(!without.statements.iter().any(|s| s.sql.contains("PUBLICATION")));
    let named: Vec<&str> = without
        .left_out
        .iter()
        .filter(|l| l.sql.starts_with("CREATE PUBLICATION"))
        .map(|l| l.object_name.as_deref().unwrap())
        .collect();
    assert_eq!(named, ["by_schema", "chosen", "everything"]);
}

#[test]
fn owners_and_privileges_are_a_choice() {
    let options = Options { no_owner: true, no_privileges: true, ..Options::default() };
    let plan = plan(DUMP_18, options).unwrap();
    for kind in [Kind::Owner, Kind::Grant, Kind::DefaultPrivileges] {
        assert!(!plan.statements.iter().any(|s| s.kind == kind));
        assert!(plan.left_out.iter().any(|l| l.kind == kind));
    }
}

#[test]
fn a_plan_survives_json() {
    for plan in all() {
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}

#[test]
fn schemas_of_real_applications_are_planned_whole() {
    for (dump, tables) in [
        (include_str!("fixtures/applications/wagtail.sql"), 56),
        (include_str!("fixtures/applications/prefect.sql"), 36),
        (include_str!("fixtures/applications/graphile-worker.sql"), 5),
        (include_str!("fixtures/applications/pg-boss.sql"), 9),
    ] {
        let plan = planned(dump);
        let count = plan.statements.iter().filter(|s| s.kind == Kind::Table).count();
        assert_eq!(count, tables);
        assert!(plan.left_out.is_empty(), "{:?}", plan.left_out);
    }
}
