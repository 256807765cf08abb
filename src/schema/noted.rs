//! What a shard's note about a statement is compared with: the object that the statement
//! made, as the shard knows it by now. Pure.
use serde_json::json;

use crate::state::schema::Statement;

/// Classes of objects, and how the number of one is found: `e` is the statement, `n` its
/// qualified name with the numbers of its schema and its table.
const LOOKUPS: &[(&str, &str)] = &[
    ("relation", "SELECT to_regclass(n.name)::oid"),
    // Not to_regtype(), which raises an error for a shell type.
    (
        "type",
        "SELECT t.oid FROM pg_type AS t \
          WHERE t.typname = e.object_name AND t.typnamespace = n.schema",
    ),
    // All of one name: the statement's text tells them apart.
    (
        "routine",
        "SELECT p.oid FROM pg_proc AS p \
          WHERE p.proname = e.object_name AND p.pronamespace = n.schema",
    ),
    (
        "constraint",
        "SELECT k.oid FROM pg_constraint AS k \
          WHERE k.conname = e.object_name AND k.conrelid = n.relation AND n.relation <> 0 \
         UNION ALL \
         SELECT k.oid FROM pg_constraint AS k \
          WHERE k.conname = e.object_name AND k.contypid = to_regtype(n.belongs_to) \
            AND k.conrelid = 0",
    ),
    (
        "default",
        "SELECT d.oid FROM pg_attrdef AS d JOIN pg_attribute AS a \
             ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
          WHERE d.adrelid = n.relation AND a.attname = e.object_name",
    ),
    (
        "identity",
        "SELECT d.objid FROM pg_depend AS d JOIN pg_attribute AS a \
             ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
          WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = n.relation \
            AND d.classid = 'pg_class'::regclass AND d.deptype = 'i' \
            AND a.attname = e.object_name AND a.attidentity <> ''",
    ),
    (
        "partition",
        "SELECT i.inhrelid FROM pg_inherits AS i \
          WHERE i.inhrelid = to_regclass(n.name) AND i.inhparent = n.relation",
    ),
    (
        "trigger",
        "SELECT g.oid FROM pg_trigger AS g \
          WHERE g.tgrelid = n.relation AND g.tgname = e.object_name",
    ),
    (
        "policy",
        "SELECT p.oid FROM pg_policy AS p \
          WHERE p.polrelid = n.relation AND p.polname = e.object_name",
    ),
    (
        "rule",
        "SELECT r.oid FROM pg_rewrite AS r \
          WHERE r.ev_class = n.relation AND r.rulename = e.object_name",
    ),
    (
        "statistics",
        "SELECT s.oid FROM pg_statistic_ext AS s \
          WHERE s.stxname = e.object_name AND s.stxnamespace = n.schema",
    ),
    ("schema", "SELECT s.oid FROM pg_namespace AS s WHERE s.nspname = e.object_name"),
    ("extension", "SELECT x.oid FROM pg_extension AS x WHERE x.extname = e.object_name"),
    ("language", "SELECT l.oid FROM pg_language AS l WHERE l.lanname = e.object_name"),
    ("access_method", "SELECT a.oid FROM pg_am AS a WHERE a.amname = e.object_name"),
    (
        "foreign_data_wrapper",
        "SELECT w.oid FROM pg_foreign_data_wrapper AS w WHERE w.fdwname = e.object_name",
    ),
    ("foreign_server", "SELECT s.oid FROM pg_foreign_server AS s WHERE s.srvname = e.object_name"),
    ("event_trigger", "SELECT t.oid FROM pg_event_trigger AS t WHERE t.evtname = e.object_name"),
    (
        "operator",
        "SELECT o.oid FROM pg_operator AS o \
          WHERE o.oprname = e.object_name AND o.oprnamespace = n.schema",
    ),
    (
        "operator_class",
        "SELECT o.oid FROM pg_opclass AS o \
          WHERE o.opcname = e.object_name AND o.opcnamespace = n.schema",
    ),
    (
        "operator_family",
        "SELECT o.oid FROM pg_opfamily AS o \
          WHERE o.opfname = e.object_name AND o.opfnamespace = n.schema",
    ),
    (
        "collation",
        "SELECT c.oid FROM pg_collation AS c \
          WHERE c.collname = e.object_name AND c.collnamespace = n.schema",
    ),
    (
        "conversion",
        "SELECT c.oid FROM pg_conversion AS c \
          WHERE c.conname = e.object_name AND c.connamespace = n.schema",
    ),
    (
        "text_search_configuration",
        "SELECT t.oid FROM pg_ts_config AS t \
          WHERE t.cfgname = e.object_name AND t.cfgnamespace = n.schema",
    ),
    (
        "text_search_dictionary",
        "SELECT t.oid FROM pg_ts_dict AS t \
          WHERE t.dictname = e.object_name AND t.dictnamespace = n.schema",
    ),
    (
        "text_search_parser",
        "SELECT t.oid FROM pg_ts_parser AS t \
          WHERE t.prsname = e.object_name AND t.prsnamespace = n.schema",
    ),
    (
        "text_search_template",
        "SELECT t.oid FROM pg_ts_template AS t \
          WHERE t.tmplname = e.object_name AND t.tmplnamespace = n.schema",
    ),
];

/// The class of the object that a statement makes; none for one that makes none, or none
/// that can be looked up: it can be run again, or then meets what is there.
fn class(statement: &Statement) -> Option<&'static str> {
    let class = match statement.kind.as_str() {
        "primary_key" | "unique" | "exclusion" | "foreign_key" | "check" | "not_null" => {
            "constraint"
        }
        kind @ ("default" | "identity" | "partition") => kind,
        _ if !statement.sql.starts_with("CREATE ") => return None,
        "table" | "foreign_table" | "view" | "materialized_view" | "sequence" | "index" => {
            "relation"
        }
        "type" | "domain" => "type",
        "function" | "procedure" | "aggregate" => "routine",
        kind => kind,
    };
    LOOKUPS.iter().map(|(known, _)| *known).find(|known| *known == class)
}

/// The statements `e`, sent as the JSON of [`sent`] in parameter 1, with their objects as
/// they are now: `o.own`, what each makes, and `o.objects`, what its note holds.
pub fn with_objects(statements: &[&Statement]) -> String {
    let lookups: Vec<String> = LOOKUPS
        .iter()
        .filter(|(known, _)| statements.iter().any(|s| class(s) == Some(known)))
        .map(|(known, lookup)| {
            format!("SELECT x.oid FROM ({lookup}) AS x (oid) WHERE e.class = '{known}'")
        })
        .collect();
    let own = match lookups.is_empty() {
        true => "'{}'::oid[]".to_owned(),
        false => format!(
            "ARRAY(SELECT f.oid FROM ({}) AS f (oid) WHERE f.oid IS NOT NULL ORDER BY f.oid)",
            lookups.join(" UNION ALL ")
        ),
    };
    format!(
        "jsonb_to_recordset($1::text::jsonb) AS e (digest text, ordinal int, class text, \
              schema_name text, object_name text, table_schema text, table_name text) \
         CROSS JOIN LATERAL ( \
             SELECT quote_ident(e.schema_name) || '.' || quote_ident(e.object_name), \
                    quote_ident(e.table_schema) || '.' || quote_ident(e.table_name), \
                    coalesce(to_regnamespace(quote_ident(e.schema_name))::oid, 0), \
                    coalesce(to_regclass(quote_ident(e.table_schema) || '.' \
                                         || quote_ident(e.table_name))::oid, 0) \
         ) AS n (name, belongs_to, schema, relation) \
         CROSS JOIN LATERAL (SELECT {own}) AS w (own) \
         CROSS JOIN LATERAL ( \
             SELECT w.own, ARRAY[n.schema, n.relation]::oid[] || w.own) AS o (own, objects)"
    )
}

/// Statements as JSON.
pub fn sent(statements: &[&Statement]) -> String {
    let list: Vec<serde_json::Value> = statements
        .iter()
        .map(|s| {
            json!({
                "digest": s.digest, "ordinal": s.ordinal, "class": class(s),
                "schema_name": s.schema_name, "object_name": s.object_name,
                "table_schema": s.table_schema, "table_name": s.table_name,
            })
        })
        .collect();
    serde_json::Value::Array(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(kind: &str, sql: &str) -> Statement {
        Statement {
            schema_name: Some("s".into()),
            object_name: Some("x".into()),
            ..Statement::of(kind, sql)
        }
    }

    #[test]
    fn only_what_is_made_is_looked_up() {
        assert_eq!(class(&statement("table", "CREATE TABLE s.x ()")), Some("relation"));
        assert_eq!(class(&statement("domain", "CREATE DOMAIN s.x AS text")), Some("type"));
        assert_eq!(
            class(&statement("check", "ALTER TABLE s.t ADD CONSTRAINT x")),
            Some("constraint")
        );
        assert_eq!(class(&statement("sequence", "ALTER SEQUENCE s.x OWNED BY s.t.c")), None);
        assert_eq!(class(&statement("grant", "GRANT ALL ON TABLE s.x TO r")), None);
        assert_eq!(class(&statement("cast", "CREATE CAST (a AS b) WITH INOUT")), None);
    }

    #[test]
    fn catalogs_that_no_statement_needs_are_not_read() {
        let sql = with_objects(&[&statement("policy", "CREATE POLICY x ON s.t")]);
        assert!(sql.contains("pg_policy") && !sql.contains("pg_proc"), "{sql}");
        let sql = with_objects(&[&statement("grant", "GRANT ALL ON TABLE s.x TO r")]);
        assert!(sql.contains("'{}'::oid[]"), "{sql}");
    }
}
