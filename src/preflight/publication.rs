//! Checks of the publication and of the sharding keys of its tables.
use crate::cluster::Method;
use crate::error::Kind;
use crate::preflight::facts::{Facts, Table};
use crate::preflight::finding::Finding;
use crate::remote::quote::ident;

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// The publication exists.
pub fn publication_exists(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(content) = &facts.content else { return Vec::new() };
    if content.publications.iter().any(|name| name == facts.publication) {
        return Vec::new();
    }
    let object = format!("publication \"{}\"", facts.publication);
    let hint = match content.publications.as_slice() {
        [] => format!("Create it: CREATE PUBLICATION {} FOR ALL TABLES;", ident(facts.publication)),
        names => format!("Publications of the source are: {}.", names.join(", ")),
    };
    vec![Finding::error("publication", Kind::MissingObject, format!("{object} does not exist"))
        .object(object)
        .hint(hint)]
}

/// The publication covers tables.
pub fn publication_empty(facts: &Facts<'_>) -> Vec<Finding> {
    let exists = facts
        .content
        .as_ref()
        .is_some_and(|c| c.publications.iter().any(|name| name == facts.publication));
    if !exists || facts.leaves().next().is_some() {
        return Vec::new();
    }
    let object = format!("publication \"{}\"", facts.publication);
    vec![Finding::error("publication_empty", Kind::WrongState, format!("{object} covers no table"))
        .object(object)
        .hint(format!(
            "Add the tables that shall move: ALTER PUBLICATION {} ADD TABLE ...;",
            ident(facts.publication)
        ))]
}

/// A destination of several shards has a sharding key, and a table with it.
pub fn sharding_key_missing(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.is_spread() || facts.leaves().next().is_none() {
        return Vec::new();
    }
    let cluster = &facts.destination.name;
    let hint = format!(
        "Declare one: SELECT reshard_set_sharding_key('{}', '...column...');",
        quoted(cluster)
    );
    if facts.rules.is_empty() {
        return vec![Finding::error(
            "sharding_key_missing",
            Kind::WrongState,
            format!("cluster \"{cluster}\" has no sharding key"),
        )
        .object(format!("cluster \"{cluster}\""))
        .detail(format!(
            "Without one each of its {} shards would get all rows.",
            facts.destination.size()
        ))
        .hint(hint)];
    }
    if facts.leaves().any(|t| t.key.is_some()) {
        return Vec::new();
    }
    let columns: Vec<&str> = facts.rules.iter().map(|r| r.column_name.as_str()).collect();
    vec![Finding::error(
        "sharding_key_missing",
        Kind::WrongState,
        format!(
            "no table of publication \"{}\" has a sharding key of cluster \"{cluster}\"",
            facts.publication
        ),
    )
    .object(format!("cluster \"{cluster}\""))
    .detail(format!("Its sharding keys are: {}.", columns.join(", ")))
    .hint(hint)]
}

/// A sharding key of one table names a published one.
pub fn sharding_key_table(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.leaves().next().is_none() {
        return Vec::new();
    }
    facts
        .rules
        .iter()
        .filter_map(|rule| {
            let table = rule.table_name.as_ref()?;
            let schema = rule.schema_name.as_deref();
            let published = facts
                .tables()
                .any(|t| t.table_name == *table && schema.is_none_or(|s| s == t.schema_name));
            if published {
                return None;
            }
            let name = format!("{}.{table}", schema.unwrap_or("*"));
            Some(
                Finding::error(
                    "sharding_key_table",
                    Kind::MissingObject,
                    format!("table \"{name}\" has a sharding key but is not published"),
                )
                .object(name)
                .detail(format!(
                    "Publication \"{}\" doesn't cover it, or it doesn't exist.",
                    facts.publication
                ))
                .hint(format!(
                    "Add it: ALTER PUBLICATION {} ADD TABLE {}{}; or take the key back: SELECT \
                     reshard_drop_sharding_key('{}', '{}', relation => '...');",
                    ident(facts.publication),
                    schema.map_or(String::new(), |schema| format!("{}.", ident(schema))),
                    ident(table),
                    quoted(&facts.destination.name),
                    quoted(&rule.column_name)
                )),
            )
        })
        .collect()
}

fn wrong_keys(
    facts: &Facts<'_>,
    check_name: &'static str,
    kind: &Kind,
    wrong: impl Fn(&Table) -> bool,
    say: impl Fn(&Table, &str) -> (String, String, String),
) -> Vec<Finding> {
    facts
        .leaves()
        .filter(|t| wrong(t))
        .filter_map(|t| {
            let (message, detail, hint) = say(t, t.key.as_deref()?);
            Some(
                Finding::error(check_name, kind.clone(), message)
                    .object(t.name.clone())
                    .detail(detail)
                    .hint(hint),
            )
        })
        .collect()
}

/// The column of a table's sharding key exists.
pub fn sharding_key_column(facts: &Facts<'_>) -> Vec<Finding> {
    let kind = Kind::Server("42703".to_owned());
    wrong_keys(
        facts,
        "sharding_key_column",
        &kind,
        |t| !t.key_exists,
        |t, key| {
            (
                format!("sharding key column \"{key}\" of table {} does not exist", t.name),
                "The table has no column of that name.".to_owned(),
                format!(
                    "Declare the right one: SELECT reshard_set_sharding_key('{}', '...column...', \
                 relation => '{}');",
                    quoted(&facts.destination.name),
                    quoted(&t.name)
                ),
            )
        },
    )
}

/// The publication's column lists hold the sharding key.
pub fn sharding_key_published(facts: &Facts<'_>) -> Vec<Finding> {
    let wrong = |t: &Table| t.key_exists && (!t.key_published || t.key_generated);
    wrong_keys(facts, "sharding_key_published", &Kind::WrongState, wrong, |t, key| {
        if t.key_generated {
            return (
                format!("sharding key \"{key}\" of table {} is a generated column", t.name),
                "Generated columns aren't replicated.".to_owned(),
                "Shard the table by an ordinary column.".to_owned(),
            );
        }
        (
            format!(
                "publication \"{}\" leaves out the sharding key of table {}",
                facts.publication, t.name
            ),
            format!("Its column list doesn't hold \"{key}\"."),
            format!(
                "Add the column to the list of table {} in ALTER PUBLICATION ... SET TABLE ...;",
                t.name
            ),
        )
    })
}

/// Sharding keys are of types that can be hashed, or compared where keys are mapped to
/// shards, and stand in a row filter.
pub fn sharding_key_type(facts: &Facts<'_>) -> Vec<Finding> {
    let filtered = facts.is_spread();
    let mapped = |t: &Table| t.key_method.is_some_and(Method::is_mapped);
    let fits = |t: &Table| if mapped(t) { t.key_comparable } else { t.key_hashable };
    let wrong = |t: &Table| t.key_exists && !(fits(t) && (t.key_built_in || !filtered));
    wrong_keys(facts, "sharding_key_type", &Kind::BadArgument, wrong, |t, key| {
        if fits(t) {
            return (
                format!("sharding key \"{key}\" of table {} can't stand in a row filter", t.name),
                format!(
                    "Row filters of publications take built-in types and collations only; type {} \
                     or its collation is user-defined.",
                    t.key_type.as_deref().unwrap_or("of the column")
                ),
                format!(
                    "Shard the table by another column, or give this one a built-in type: ALTER \
                     TABLE {} ALTER COLUMN {} TYPE ...;",
                    t.name,
                    ident(key)
                ),
            );
        }
        (
            format!(
                "sharding key \"{key}\" of table {} can't be {}",
                t.name,
                if mapped(t) { "compared" } else { "hashed" }
            ),
            format!(
                "Type {} has no default operator class for access method {}.",
                t.key_type.as_deref().unwrap_or("of the column"),
                if mapped(t) { "btree" } else { "hash" }
            ),
            "Shard the table by a column of another type.".to_owned(),
        )
    })
}
