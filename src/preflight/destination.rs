//! Checks of the shards' contents: nothing in the way, or what is needed there.
use std::collections::BTreeSet;

use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Existing, Facts, Server};
use crate::preflight::finding::Finding;
use crate::preflight::Verb;
use crate::replication::cleanup::HELPERS;

/// Names that one finding lists.
const NAMED: usize = 10;

/// What a verb wants of the published tables on the shards.
enum Wanted {
    /// They are made by this run.
    Absent,
    /// They are there, without rows.
    Empty,
    /// They are there.
    Present,
}

fn wanted(facts: &Facts<'_>) -> Wanted {
    match facts.verb {
        Verb::Start => Wanted::Absent,
        Verb::SchemaSync => match facts.options.schema_phase.as_deref() {
            None | Some("pre") => Wanted::Absent,
            Some(_) => Wanted::Present,
        },
        Verb::CopyData => Wanted::Empty,
        Verb::Replicate => Wanted::Present,
    }
}

/// No shard has the extension: its schema is in the way of the helper objects.
pub fn destination_extension(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .known_of(Side::Destination)
        .filter(|(_, known)| known.extensions.contains_key("reshard"))
        .map(|(server, _)| {
            Finding::error(
                "destination_extension",
                Kind::WrongState,
                format!("extension reshard is installed on {}", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail("Shards don't need it, and its schema is where their helper objects go.")
            .hint("In that database: DROP EXTENSION reshard;")
        })
        .collect()
}

/// No shard has a schema of the helper objects' name, unless a migration has made it.
pub fn destination_schema(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .known_of(Side::Destination)
        .filter(|(_, known)| !known.extensions.contains_key("reshard"))
        .filter(|(_, known)| known.helper_schema.as_ref().is_some_and(|made| made != HELPERS))
        .map(|(server, _)| {
            Finding::error(
                "destination_schema",
                Kind::WrongState,
                format!("schema \"reshard\" of {} was not made by a migration", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail("The helper objects of a migration have to be in a schema of that name.")
            .hint("In that database: ALTER SCHEMA reshard RENAME TO ...;")
        })
        .collect()
}

/// What the run makes is not there; tables that it fills are empty.
pub fn destination_empty(facts: &Facts<'_>) -> Vec<Finding> {
    match wanted(facts) {
        Wanted::Absent => {
            let mut found = in_the_way(facts, |t| t.has_rows && t.published, "has rows already");
            found.extend(other_definitions(facts));
            found.extend(same_definitions(facts));
            found
        }
        Wanted::Empty => in_the_way(facts, |t| t.has_rows && t.published, "has rows already"),
        Wanted::Present => Vec::new(),
    }
}

/// What a relation of the source looks like there.
fn definition<'f>(facts: &'f Facts<'_>, relation: &Existing) -> Option<&'f str> {
    let known = facts.content.iter().flat_map(|c| &c.definitions);
    known
        .filter(|d| d.schema_name == relation.schema_name && d.table_name == relation.table_name)
        .map(|d| d.definition.as_str())
        .next()
}

/// Relations that are something else on a shard than on the source.
fn other_definitions(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    for (server, _) in facts.known_of(Side::Destination) {
        for relation in &server.existing {
            let Some(here) = definition(facts, relation) else { continue };
            if here == relation.definition {
                continue;
            }
            out.push(
                Finding::error(
                    "destination_empty",
                    Kind::DuplicateObject,
                    format!("{} has another definition on {}", relation.name, server.endpoint),
                )
                .object(relation.name.clone())
                .detail(format!(
                    "On the source it is: {here}. On the shard: {}.",
                    relation.definition
                ))
                .hint(format!(
                    "Use an empty database, or drop it there: DROP {} {} CASCADE;",
                    keyword(&relation.definition),
                    relation.name
                )),
            );
        }
    }
    out
}

/// What drops a relation, by the word that its definition begins with.
fn keyword(definition: &str) -> &'static str {
    match definition {
        d if d.starts_with("view") => "VIEW",
        d if d.starts_with("materialized view") => "MATERIALIZED VIEW",
        d if d.starts_with("foreign table") => "FOREIGN TABLE",
        d if d.starts_with("sequence") => "SEQUENCE",
        _ => "TABLE",
    }
}

/// Relations that a shard has already, as they shall be, made by others.
fn same_definitions(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    for (server, _) in facts.known_of(Side::Destination) {
        let same: Vec<&str> = server
            .existing
            .iter()
            .filter(|t| !t.ours && definition(facts, t) == Some(&t.definition))
            .map(|t| t.name.as_str())
            .collect();
        if same.is_empty() {
            continue;
        }
        out.push(
            Finding::info(
                "destination_empty",
                format!("{} has relations of the source already", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!(
                "They have the same columns and are used as they are: {}. All else is compared \
                 when the schema is brought there.",
                listed(&same)
            )),
        );
    }
    out
}

fn in_the_way(facts: &Facts<'_>, wrong: impl Fn(&Existing) -> bool, what: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for (server, _) in facts.known_of(Side::Destination) {
        let found: Vec<&Existing> = server.existing.iter().filter(|t| wrong(t)).collect();
        if found.is_empty() {
            continue;
        }
        let names: Vec<&str> = found.iter().map(|t| t.name.as_str()).collect();
        out.push(
            Finding::error(
                "destination_empty",
                Kind::WrongState,
                format!("{} {what}", server.endpoint),
            )
            .object(names.first().copied().unwrap_or_default())
            .detail(format!("In the way: {}.", listed(&names)))
            .hint(format!("Empty them there: TRUNCATE {};", names.join(", "))),
        );
    }
    out
}

/// Tables that the run only fills are there.
pub fn destination_tables(facts: &Facts<'_>) -> Vec<Finding> {
    if matches!(wanted(facts), Wanted::Absent) {
        return Vec::new();
    }
    facts
        .known_of(Side::Destination)
        .filter_map(|(server, _)| {
            let missing = missing(facts, server);
            (!missing.is_empty()).then(|| {
                Finding::error(
                    "destination_tables",
                    Kind::WrongState,
                    format!("published tables are missing on {}", server.endpoint),
                )
                .object(missing.first().copied().unwrap_or_default())
                .detail(format!("Missing are {}.", listed(&missing)))
                .hint(format!(
                    "Make them first: SELECT reshard_schema_sync('pre', '{}', '{}', '{}');",
                    facts.source.name.replace('\'', "''"),
                    facts.destination.name.replace('\'', "''"),
                    facts.publication.replace('\'', "''")
                ))
            })
        })
        .collect()
}

fn missing<'f>(facts: &'f Facts<'_>, server: &Server<'_>) -> Vec<&'f str> {
    let have: BTreeSet<(&str, &str)> =
        server.existing.iter().map(|t| (t.schema_name.as_str(), t.table_name.as_str())).collect();
    // Those of extensions come with these, and are not looked for.
    facts
        .leaves()
        .filter(|t| t.extension.is_none())
        .filter(|t| !have.contains(&(t.schema_name.as_str(), t.table_name.as_str())))
        .map(|t| t.name.as_str())
        .collect()
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
