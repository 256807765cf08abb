//! The statement that takes another one back, from its text as pg_dump writes it. Pure.
use crate::remote::quote::{ident, qualified};
use crate::schema::claim::identifier;
use crate::schema::routine;
use crate::schema::text::{plain, word};
use crate::state::schema::Statement;

/// The statement that drops what one has made; none for those that made nothing, and for
/// what goes with the object that it belongs to.
pub fn of(statement: &Statement) -> Option<String> {
    let sql = statement.sql.as_str();
    let name = statement.object_name.as_deref()?;
    let kind = statement.kind.as_str();
    if matches!(kind, "primary_key" | "unique" | "exclusion" | "foreign_key") {
        let (table, name) = (table(statement)?, ident(name));
        return Some(format!(
            "ALTER TABLE IF EXISTS {table} DROP CONSTRAINT IF EXISTS {name} CASCADE"
        ));
    }
    if !sql.starts_with("CREATE ") {
        return None;
    }
    let keyword = kind.replace('_', " ").to_uppercase();
    match kind {
        // A table may be one that was there before.
        "trigger" | "rule" | "policy" => {
            Some(format!("DROP {keyword} IF EXISTS {} ON {}", ident(name), table(statement)?))
        }
        "schema"
        | "extension"
        | "foreign_data_wrapper"
        | "access_method"
        | "language"
        | "event_trigger" => Some(format!("DROP {keyword} IF EXISTS {} CASCADE", ident(name))),
        "foreign_server" => Some(format!("DROP SERVER IF EXISTS {} CASCADE", ident(name))),
        "user_mapping" => {
            let rest = sql.strip_prefix("CREATE USER MAPPING ")?;
            let end = word(rest, "OPTIONS").unwrap_or(rest.len());
            Some(format!("DROP USER MAPPING IF EXISTS {}", rest[..end].trim_end()))
        }
        "cast" => {
            let rest = sql.strip_prefix("CREATE CAST ")?;
            let end = word(rest, "WITH").or_else(|| word(rest, "WITHOUT"))?;
            Some(format!("DROP CAST IF EXISTS {} CASCADE", rest[..end].trim_end()))
        }
        "transform" => {
            let rest = sql.strip_prefix("CREATE TRANSFORM ")?;
            let end = plain(rest).find(|(_, c)| *c == '(')?.0;
            Some(format!("DROP TRANSFORM IF EXISTS {} CASCADE", rest[..end].trim_end()))
        }
        "operator" => {
            let rest = sql.strip_prefix("CREATE OPERATOR ")?;
            let end = rest.find(" (")?;
            let (left, right) = (argument(rest, "LEFTARG"), argument(rest, "RIGHTARG"));
            let of = |argument: Option<&str>| argument.unwrap_or("NONE").to_owned();
            Some(format!(
                "DROP OPERATOR IF EXISTS {} ({}, {}) CASCADE",
                &rest[..end],
                of(left),
                of(right)
            ))
        }
        "function" | "procedure" | "aggregate" => {
            let name = qualified(statement.schema_name.as_deref()?, name);
            let arguments = routine::arguments(sql)?;
            Some(format!("DROP {keyword} IF EXISTS {name}({arguments}) CASCADE"))
        }
        "operator_class" | "operator_family" => {
            let (method, _) = identifier(sql[word(sql, "USING")? + "USING".len()..].trim_start())?;
            let name = qualified(statement.schema_name.as_deref()?, name);
            Some(format!("DROP {keyword} IF EXISTS {name} USING {} CASCADE", ident(&method)))
        }
        "table"
        | "foreign_table"
        | "view"
        | "materialized_view"
        | "sequence"
        | "index"
        | "type"
        | "domain"
        | "collation"
        | "conversion"
        | "statistics"
        | "text_search_configuration"
        | "text_search_dictionary"
        | "text_search_parser"
        | "text_search_template" => {
            let name = qualified(statement.schema_name.as_deref()?, name);
            Some(format!("DROP {keyword} IF EXISTS {name} CASCADE"))
        }
        _ => None,
    }
}

fn table(statement: &Statement) -> Option<String> {
    Some(qualified(statement.table_schema.as_deref()?, statement.table_name.as_deref()?))
}

/// The value of an operator's argument, as `LEFTARG = a.b`.
fn argument<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text[word(text, name)? + name.len()..].trim_start().strip_prefix('=')?.trim_start();
    let end = plain(rest)
        .find(|(_, c)| matches!(c, ',' | '\n') || *c == ')')
        .map_or(rest.len(), |(i, _)| i);
    Some(rest[..end].trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn inverse(kind: &str, name: &str, sql: &str) -> Option<String> {
        of(&Statement {
            schema_name: Some("s".into()),
            object_name: Some(name.into()),
            table_schema: Some("s".into()),
            table_name: Some("t".into()),
            ..Statement::of(kind, sql)
        })
    }

    #[test]
    fn objects_outside_of_schemas_are_dropped() {
        let is = |kind, name, sql, expected: &str| {
            assert_eq!(inverse(kind, name, sql).as_deref(), Some(expected));
        };
        is(
            "foreign_data_wrapper",
            "f w",
            "CREATE FOREIGN DATA WRAPPER \"f w\"",
            "DROP FOREIGN DATA WRAPPER IF EXISTS \"f w\" CASCADE",
        );
        is(
            "user_mapping",
            "x",
            "CREATE USER MAPPING FOR \"OPTIONS\" SERVER s OPTIONS (\n password 'x'\n)",
            "DROP USER MAPPING IF EXISTS FOR \"OPTIONS\" SERVER s",
        );
        is(
            "cast",
            "x",
            "CREATE CAST (s.\"a WITH\" AS text) WITH FUNCTION s.f() AS ASSIGNMENT",
            "DROP CAST IF EXISTS (s.\"a WITH\" AS text) CASCADE",
        );
        is(
            "transform",
            "x",
            "CREATE TRANSFORM FOR s.mood LANGUAGE sql (FROM SQL WITH FUNCTION f(internal))",
            "DROP TRANSFORM IF EXISTS FOR s.mood LANGUAGE sql CASCADE",
        );
        is("operator", "x", "CREATE OPERATOR s.=== (\n    FUNCTION = s.eq,\n    LEFTARG = s.\"T,1\",\n    RIGHTARG = integer\n)",
            "DROP OPERATOR IF EXISTS s.=== (s.\"T,1\", integer) CASCADE");
        is("operator_class", "c", "CREATE OPERATOR CLASS s.c\n    FOR TYPE integer USING hash FAMILY s.c AS\n    OPERATOR 1 =(integer,integer)",
            "DROP OPERATOR CLASS IF EXISTS \"s\".\"c\" USING \"hash\" CASCADE");
    }

    #[test]
    fn of_routines_with_the_same_name_the_one_is_dropped() {
        let sql = "CREATE FUNCTION s.\"f(\"(a integer DEFAULT 1) RETURNS integer\n LANGUAGE sql AS $$SELECT 1$$";
        assert_eq!(
            inverse("function", "f(", sql).as_deref(),
            Some("DROP FUNCTION IF EXISTS \"s\".\"f(\"(a integer) CASCADE")
        );
        let sql = "CREATE AGGREGATE s.agg(integer ORDER BY text) (\n    SFUNC = s.step\n)";
        assert_eq!(
            inverse("aggregate", "agg", sql).as_deref(),
            Some("DROP AGGREGATE IF EXISTS \"s\".\"agg\"(integer ORDER BY text) CASCADE")
        );
    }

    #[test]
    fn a_name_may_end_the_statement() {
        assert_eq!(
            inverse("operator_family", "f", "CREATE OPERATOR FAMILY s.f USING hash").as_deref(),
            Some("DROP OPERATOR FAMILY IF EXISTS \"s\".\"f\" USING \"hash\" CASCADE")
        );
    }

    #[test]
    fn what_made_nothing_is_not_taken_back() {
        assert_eq!(inverse("sequence", "q", "ALTER SEQUENCE s.q OWNED BY s.t.c"), None);
        assert_eq!(inverse("owner", "t", "ALTER TABLE s.t OWNER TO o"), None);
        assert_eq!(inverse("event_trigger", "e", "ALTER EVENT TRIGGER e DISABLE"), None);
    }
}
