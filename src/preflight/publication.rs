//! Checks of the publication and of the sharding keys of its tables.
use std::collections::BTreeSet;

use crate::cluster::rule::shown;
use crate::cluster::{Cluster, Method};
use crate::error::Kind;
use crate::preflight::facts::{Facts, KeyColumn, Table};
use crate::preflight::finding::Finding;
use crate::remote::quote::{ident, literal};

/// Tables that a finding shows.
const SHOWN: usize = 5;

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
        [] => format!(
            "Create it: CREATE PUBLICATION {} FOR ALL TABLES WITH (publish = 'insert');",
            ident(facts.publication)
        ),
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

/// The publication lets the application change the rows of its tables. The flows have
/// publications of their own, which come after the identities that they need.
pub fn publication_identity(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.content.as_ref().is_some_and(|c| c.publishes_changes) {
        return Vec::new();
    }
    let refused: Vec<&str> =
        facts.leaves().filter(|t| !t.takes_changes()).map(|t| t.name.as_str()).collect();
    if refused.is_empty() {
        return Vec::new();
    }
    let object = format!("publication \"{}\"", facts.publication);
    vec![Finding::warning(
        "publication_identity",
        format!("{object} makes UPDATE and DELETE fail on {} tables", refused.len()),
    )
    .object(object)
    .detail(format!(
        "It publishes updates or deletes, for which the replica identity of these tables does not \
         suffice: {}{}.",
        refused[..refused.len().min(SHOWN)].join(", "),
        if refused.len() > SHOWN { ", ..." } else { "" }
    ))
    .hint(format!(
        "A migration needs none of them from it: ALTER PUBLICATION {} SET (publish = 'insert');",
        ident(facts.publication)
    ))]
}

/// Rows have a value for each column that must have one.
pub fn unpublished_columns(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.verb.makes_schema() {
        return Vec::new();
    }
    facts
        .leaves()
        .filter(|t| !t.unfilled.is_empty())
        .map(|t| {
            Finding::error(
                "unpublished_columns",
                Kind::WrongState,
                format!("rows of {} would lack values on the shards", t.name),
            )
            .object(t.name.clone())
            .detail(format!(
                "Publication \"{}\" leaves out columns that are NOT NULL without a default: {}.",
                facts.publication,
                shown(&t.unfilled)
            ))
            .hint("Publish these columns too, or give them a default.")
        })
        .collect()
}

/// No subscriber of someone else gets the extension's own tables.
pub fn all_tables_subscribers(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(content) = &facts.content else { return Vec::new() };
    let own = facts.options.slot_name.as_deref();
    let slots: Vec<&str> = content
        .slots_of_others
        .iter()
        .map(String::as_str)
        .filter(|slot| own.is_none_or(|own| !slot.starts_with(own)))
        .collect();
    if content.publications_of_all.is_empty() || slots.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "all_tables_subscribers",
        "a subscription of someone else may fail for want of reshard's own tables",
    )
    .object(format!("slots {}", slots.join(", ")))
    .detail(format!(
        "A publication FOR ALL TABLES ({}) covers the tables in schema \"reshard\" too. A \
         subscriber of such a one stops at the first change of them that it has no table for.",
        content.publications_of_all.join(", ")
    ))
    .hint(
        "Let that subscription use a publication FOR TABLES IN SCHEMA ..., or of listed tables, that \
         leaves out schema reshard.",
    )]
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
    let keys: Vec<String> = facts.rules.iter().map(|r| shown(&r.column_names)).collect();
    vec![Finding::error(
        "sharding_key_missing",
        Kind::WrongState,
        format!(
            "no table of publication \"{}\" has a sharding key of cluster \"{cluster}\"",
            facts.publication
        ),
    )
    .object(format!("cluster \"{cluster}\""))
    .detail(format!("Its sharding keys are: {}.", keys.join("; ")))
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
                     reshard_drop_sharding_key('{}', ARRAY[{}], relation_name => {});",
                    ident(facts.publication),
                    schema.map_or(String::new(), |schema| format!("{}.", ident(schema))),
                    ident(table),
                    quoted(&facts.destination.name),
                    rule.column_names.iter().map(|c| literal(c)).collect::<Vec<_>>().join(", "),
                    literal(&format!(
                        "{}{}",
                        schema.map_or(String::new(), |schema| format!("{}.", ident(schema))),
                        ident(table)
                    )),
                )),
            )
        })
        .collect()
}

/// Findings about single columns of the sharding keys of either cluster.
fn wrong_columns(
    facts: &Facts<'_>,
    check_name: &'static str,
    kind: &Kind,
    judge: impl Fn(&Cluster, &Table, &KeyColumn) -> Option<Wrong>,
) -> Vec<Finding> {
    let columns =
        facts.keyed().flat_map(|(cluster, t)| t.key_columns.iter().map(move |c| (cluster, t, c)));
    let mut found: Vec<Finding> = columns
        .filter_map(|(cluster, t, c)| {
            let Wrong { message, detail, hint } = judge(cluster, t, c)?;
            let finding = Finding::error(check_name, kind.clone(), message);
            Some(finding.object(t.name.clone()).detail(detail).hint(hint))
        })
        .collect();
    // Both clusters may have the same key.
    let mut said = BTreeSet::new();
    found.retain(|f| said.insert(f.message.clone()));
    found
}

/// What is wrong with a column.
struct Wrong {
    message: String,
    detail: String,
    hint: String,
}

/// The columns of a table's sharding key exist.
pub fn sharding_key_column(facts: &Facts<'_>) -> Vec<Finding> {
    let kind = Kind::Server("42703".to_owned());
    wrong_columns(facts, "sharding_key_column", &kind, |cluster, t, column| {
        (!column.exists).then(|| Wrong {
            message: format!(
                "sharding key column \"{}\" of table {} does not exist",
                column.name, t.name
            ),
            detail: "The table has no column of that name.".to_owned(),
            hint: format!(
                "Declare the right one: SELECT reshard_set_sharding_key('{}', '...column...', \
                 relation => '{}');",
                quoted(&cluster.name),
                quoted(&t.name)
            ),
        })
    })
}

/// The publication's column lists hold the sharding key.
pub fn sharding_key_published(facts: &Facts<'_>) -> Vec<Finding> {
    wrong_columns(facts, "sharding_key_published", &Kind::WrongState, |_, t, column| {
        if !column.exists || column.published && !column.generated {
            return None;
        }
        let key = &column.name;
        Some(match column.generated {
            true => Wrong {
                message: format!("sharding key \"{key}\" of table {} is a generated column", t.name),
                detail: "Generated columns aren't replicated.".to_owned(),
                hint: "Shard the table by an ordinary column.".to_owned(),
            },
            false => Wrong {
                message: format!(
                    "publication \"{}\" leaves out the sharding key of table {}",
                    facts.publication, t.name
                ),
                detail: format!("Its column list doesn't hold \"{key}\"."),
                hint: format!(
                    "Add the column to the list of table {} in ALTER PUBLICATION ... SET TABLE ...;",
                    t.name
                ),
            },
        })
    })
}

/// Sharding keys are of types that can be hashed, or compared where keys are mapped to
/// shards, and stand in a row filter.
pub fn sharding_key_type(facts: &Facts<'_>) -> Vec<Finding> {
    wrong_columns(facts, "sharding_key_type", &Kind::BadArgument, |cluster, t, column| {
        let (fits, verb, method) = match t.key_method.is_some_and(Method::is_mapped) {
            true => (column.comparable, "compared", "btree"),
            false => (column.hash.is_some(), "hashed", "hash"),
        };
        let is_filtered = cluster.size() > 1;
        if !column.exists || fits && (column.built_in || !is_filtered) {
            return None;
        }
        let key = &column.name;
        let type_shown = column.type_shown.as_deref().unwrap_or("of the column");
        Some(match fits {
            true => Wrong {
                message: format!(
                    "sharding key \"{key}\" of table {} can't stand in a row filter",
                    t.name
                ),
                detail: format!(
                    "Row filters of publications take built-in types and collations only; type \
                     {type_shown} or its collation is user-defined."
                ),
                hint: format!(
                    "Shard the table by another column, or give this one a built-in type: ALTER \
                     TABLE {} ALTER COLUMN {} TYPE ...;",
                    t.name,
                    ident(key)
                ),
            },
            false => Wrong {
                message: format!("sharding key \"{key}\" of table {} can't be {verb}", t.name),
                detail: format!(
                    "Type {type_shown} has no default operator class for access method {method}."
                ),
                hint: "Shard the table by a column of another type.".to_owned(),
            },
        })
    })
}
