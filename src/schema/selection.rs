//! Which statements of the source's plan come to the shards of a task, by its
//! options. Pure.
use std::collections::HashSet;

use crate::remote::Needed;
use crate::schema::dump::{Plan, Planned};
use crate::state::options::{ForeignKeys, Options};

/// A constraint: schema and name of its table, its own name.
type Key<'s> = (Option<&'s str>, Option<&'s str>, Option<&'s str>);

/// Schemas and names of the materialized views that have rows on the source, or had none
/// when they were filled.
pub type FilledViews = HashSet<(String, String)>;

/// Leaves out what a task's options leave out, with the reason.
pub fn select(
    mut plan: Plan,
    options: &Options,
    needed: Option<&Needed>,
    filled: &FilledViews,
) -> Plan {
    let statements = std::mem::take(&mut plan.statements);
    let reasons: Vec<Option<&'static str>> = {
        let gone: HashSet<Key<'_>> = statements
            .iter()
            .filter(|s| s.kind == "foreign_key" && unfit(s, options).is_some())
            .map(key)
            .collect();
        let reason = |statement: &Planned| {
            needed
                .filter(|needed| !is_needed(statement, needed))
                .map(|_| "the publication doesn't need it (option schema_scope)")
                .or_else(|| unfit(statement, options))
                .or_else(|| {
                    (statement.kind == "refresh" && !is_filled(statement, filled))
                        .then_some("it is not filled on the source")
                })
                .or_else(|| {
                    (is_about_constraint(statement) && gone.contains(&key(statement)))
                        .then_some("its foreign key does not come along")
                })
        };
        statements.iter().map(reason).collect()
    };
    for (statement, reason) in statements.into_iter().zip(reasons) {
        match reason {
            Some(reason) => plan.left_out.push(statement.leave_out(reason)),
            None => plan.statements.push(statement),
        }
    }
    plan
}

fn is_filled(view: &Planned, filled: &FilledViews) -> bool {
    match (&view.schema_name, &view.object_name) {
        (Some(schema), Some(name)) => filled.contains(&(schema.clone(), name.clone())),
        _ => false,
    }
}

fn key(statement: &Planned) -> Key<'_> {
    (
        statement.table_schema.as_deref(),
        statement.table_name.as_deref(),
        statement.object_name.as_deref(),
    )
}

/// Whether a statement needs a table's constraint that another one makes.
fn is_about_constraint(statement: &Planned) -> bool {
    statement.kind == "validation"
        || statement.kind == "comment" && statement.object_kind == "constraint"
}

/// Why a foreign key, or its validation, doesn't come along.
fn unfit(statement: &Planned, options: &Options) -> Option<&'static str> {
    let is_unfit = || {
        options.unfit_foreign_keys.iter().any(|unfit| {
            key(statement) == (Some(&unfit.schema_name), Some(&unfit.table_name), Some(&unfit.name))
        })
    };
    match (options.foreign_keys, statement.kind.as_str()) {
        (ForeignKeys::NotValid, "foreign_key")
            if !statement.sql.ends_with(" NOT VALID") && is_unfit() =>
        {
            Some("it can't hold on the shards, and a partitioned table's can't be NOT VALID")
        }
        (ForeignKeys::NotValid, "validation") if is_unfit() => {
            Some("it can't hold on the shards (option foreign_keys: not_valid)")
        }
        (ForeignKeys::Skip, "foreign_key") if is_unfit() => {
            Some("it can't hold on the shards (option foreign_keys: skip)")
        }
        _ => None,
    }
}

/// Whether what a statement makes, alters or describes is among the objects, or
/// belongs to one of them.
fn is_needed(statement: &Planned, needed: &Needed) -> bool {
    let schema = statement.schema_name.as_deref();
    let Some(name) = statement.object_name.as_deref() else { return false };
    let own = |class: &str| needed.has(class, schema, name);
    match statement.object_kind.as_str() {
        "sequence" => own("relation"),
        "type" | "domain" => own("type"),
        "function" | "procedure" | "aggregate" => own("routine"),
        "default_privileges" | "event_trigger" => false,
        class @ ("schema"
        | "extension"
        | "language"
        | "access_method"
        | "statistics"
        | "foreign_data_wrapper"
        | "foreign_server"
        | "user_mapping"
        | "cast"
        | "transform"
        | "operator"
        | "operator_class"
        | "operator_family"
        | "collation"
        | "conversion"
        | "text_search_configuration"
        | "text_search_dictionary"
        | "text_search_parser"
        | "text_search_template") => own(class),
        _ => {
            let schema = statement.table_schema.as_deref();
            statement.table_name.as_deref().is_some_and(|table| {
                needed.has("relation", schema, table) || needed.has("type", schema, table)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::options::Constraint;

    fn statement(kind: &str, object_kind: &str, name: &str, table: Option<&str>) -> Planned {
        Planned {
            kind: kind.into(),
            object_kind: object_kind.into(),
            schema_name: Some("s".into()),
            object_name: Some(name.into()),
            table_schema: table.map(|_| "s".into()),
            table_name: table.map(Into::into),
            ..Planned::default()
        }
    }

    fn needed() -> Needed {
        let object = |class: &str, name: &str| (class.into(), Some("s".into()), name.into());
        [object("relation", "t"), object("routine", "f"), object("type", "d")].into_iter().collect()
    }

    #[test]
    fn what_belongs_to_a_needed_table_is_needed() {
        let wanted = [
            statement("table", "table", "t", Some("t")),
            statement("index", "index", "i", Some("t")),
            statement("comment", "column", "c", Some("t")),
            statement("grant", "function", "f", None),
            statement("check", "check", "positive", Some("d")),
        ];
        assert!(wanted.iter().all(|s| is_needed(s, &needed())));
        let unwanted = [
            statement("table", "table", "u", Some("u")),
            statement("trigger", "trigger", "g", Some("u")),
            statement("function", "function", "t", None),
            statement("event_trigger", "event_trigger", "t", None),
        ];
        assert!(!unwanted.iter().any(|s| is_needed(s, &needed())));
    }

    #[test]
    fn unfit_foreign_keys_are_not_validated_or_left_out() {
        let unfit =
            Constraint { schema_name: "s".into(), table_name: "t".into(), name: "k".into() };
        let options = |foreign_keys| Options {
            foreign_keys,
            unfit_foreign_keys: vec![unfit.clone()],
            ..Options::default()
        };
        let mut key = statement("foreign_key", "foreign_key", "k", Some("t"));
        key.sql = "ALTER TABLE ONLY s.t ADD CONSTRAINT k ... NOT VALID".into();
        let validation = statement("validation", "foreign_key", "k", Some("t"));
        let other = statement("foreign_key", "foreign_key", "k", Some("u"));
        let not_valid = options(ForeignKeys::NotValid);
        assert!(super::unfit(&key, &not_valid).is_none());
        assert!(super::unfit(&validation, &not_valid).is_some());
        let skip = options(ForeignKeys::Skip);
        assert!(super::unfit(&key, &skip).is_some());
        assert!(super::unfit(&other, &skip).is_none());
        assert!(super::unfit(&key, &options(ForeignKeys::Error)).is_none());
    }

    #[test]
    fn comments_go_with_the_foreign_keys_that_are_left_out() {
        let key = |sql: &str| Planned {
            sql: sql.into(),
            ..statement("foreign_key", "foreign_key", "k", Some("t"))
        };
        let kept = |sql: &str, foreign_keys| {
            let comment = statement("comment", "constraint", "k", Some("t"));
            let other = statement("comment", "constraint", "k", Some("u"));
            let plan = Plan::of(vec![key(sql), comment, other]);
            let options = Options {
                foreign_keys,
                unfit_foreign_keys: vec![Constraint {
                    schema_name: "s".into(),
                    table_name: "t".into(),
                    name: "k".into(),
                }],
                ..Options::default()
            };
            select(plan, &options, None, &FilledViews::new()).statements.len()
        };
        let partitioned = "ALTER TABLE s.t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES s.u(a)";
        let plain = format!("{partitioned} NOT VALID");
        assert_eq!(kept(partitioned, ForeignKeys::NotValid), 1);
        assert_eq!(kept(&plain, ForeignKeys::NotValid), 3);
        assert_eq!(kept(&plain, ForeignKeys::Skip), 1);
        assert_eq!(kept(&plain, ForeignKeys::Error), 3);
    }
}
