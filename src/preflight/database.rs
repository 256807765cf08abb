//! Checks of the databases: the right ones, and what their schema will need.
use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Behind, Facts, Server, ServerFacts};
use crate::preflight::finding::Finding;
use crate::preflight::staying;
use crate::remote::quote::ident;

/// One shard of the source is this very database.
pub fn local_source(facts: &Facts<'_>) -> Vec<Finding> {
    let known: Vec<_> = facts.known_of(Side::Source).collect();
    let all_known = known.len() == facts.source.shards.len();
    if !all_known || known.iter().any(|(_, k)| facts.is_here(k)) {
        return Vec::new();
    }
    vec![Finding::error(
        "local_source",
        Kind::BadArgument,
        format!("no shard of cluster \"{}\" is this database", facts.source.name),
    )
    .object(format!("cluster \"{}\"", facts.source.name))
    .detail("A run is started in a database of the source cluster.")
    .hint(
        "Connect to the source database and start there, or correct the connection strings of \
         the source's shards.",
    )]
}

/// No database is two shards.
pub fn distinct_databases(facts: &Facts<'_>) -> Vec<Finding> {
    let mut seen = BTreeMap::new();
    let mut out = Vec::new();
    for (server, known) in facts.known() {
        let object = server.endpoint.to_string();
        let found = (object.clone(), server.side);
        if let Some((first, side)) = seen.insert((&known.system, &known.database), found) {
            out.push(
                Finding::error(
                    "distinct_databases",
                    Kind::BadArgument,
                    format!("{first} and {object} are the same database"),
                )
                .object(object)
                .detail(format!("Both are database \"{}\" of one server.", known.database))
                .hint(format!(
                    "Declare another database: SELECT reshard_drop_shard('{0}', {1}); SELECT \
                     reshard_add_shard('{0}', {1}, 'host=... dbname=...');{2}",
                    server.endpoint.cluster.replace('\'', "''"),
                    server.endpoint.shard,
                    staying::way_out(side, server.side)
                )),
            );
        }
    }
    out
}

/// All databases have the same encoding. The source's is UTF8: there is no extension elsewhere.
pub fn encoding(facts: &Facts<'_>) -> Vec<Finding> {
    let Some((_, source)) = facts.known_of(Side::Source).next() else { return Vec::new() };
    facts
        .known()
        .filter(|(_, known)| known.encoding != source.encoding)
        .map(|(server, known)| {
            Finding::error(
                "encoding",
                Kind::WrongState,
                format!("encoding of {} differs from the source", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!("It is {}, that of the source is {}.", known.encoding, source.encoding))
            .hint(format!(
                "Create it anew: CREATE DATABASE {} ENCODING '{}' TEMPLATE template0;",
                ident(&known.database),
                source.encoding
            ))
        })
        .collect()
}

/// All databases have the same locale.
pub fn locale(facts: &Facts<'_>) -> Vec<Finding> {
    let Some((_, source)) = facts.known_of(Side::Source).next() else { return Vec::new() };
    facts
        .known()
        .filter(|(_, known)| known.locale != source.locale)
        .map(|(server, known)| {
            Finding::warning(
                "locale",
                format!("locale of {} differs from the source", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!(
                "It is \"{}\" (provider, collation, character type), that of the source is \
                 \"{}\": texts may be sorted and compared otherwise.",
                known.locale, source.locale
            ))
            .hint("Create the shard's database with the locale of the source.")
        })
        .collect()
}

/// Texts are sorted by the same rules everywhere, and by those that indexes were
/// built by.
pub fn collation_versions(facts: &Facts<'_>) -> Vec<Finding> {
    let Some((node, source)) = facts.known_of(Side::Source).next() else { return Vec::new() };
    let mut out: Vec<Finding> = source
        .outdated_collations
        .iter()
        .map(|c| {
            Finding::warning(
                "collation_versions",
                format!("{} has another version on {}", c.name, node.endpoint),
            )
            .object(c.name.clone())
            .detail(format!(
                "It was made with version {}, the system has version {}: indexes there may be \
                 in the wrong order, so that rows are not found.",
                c.recorded, c.actual
            ))
            .hint(format!(
                "On the source: REINDEX what depends on it, then ALTER {} REFRESH {}VERSION;",
                c.name,
                if c.name.starts_with("database") { "COLLATION " } else { "" }
            ))
        })
        .collect();
    for (server, known) in facts.known_of(Side::Destination) {
        if known.locale != source.locale || known.collation_version == source.collation_version {
            continue;
        }
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        out.push(
            Finding::warning(
                "collation_versions",
                format!("collation version of {} differs from the source", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!(
                "It is {}, that of the source is {}: texts may be sorted otherwise.",
                shown(&known.collation_version),
                shown(&source.collation_version)
            ))
            .hint("Use the same operating system release for source and shards."),
        );
    }
    out
}

/// Event triggers that fire for the DDL of a run.
pub fn event_triggers(facts: &Facts<'_>) -> Vec<Finding> {
    let each = |(server, known): (&Server<'_>, &ServerFacts)| -> Vec<Finding> {
        let finding = |name: &String| {
            Finding::warning(
                "event_triggers",
                format!("event trigger {name} fires for the run's own DDL on {}", server.endpoint),
            )
            .object(format!("event trigger {name} on {}", server.endpoint))
            .detail("Triggers, replica identities, publications and, on the shards, the whole schema are made by the run.")
            .hint(format!("For the time of the run: ALTER EVENT TRIGGER {name} DISABLE;"))
        };
        known.event_triggers.iter().map(finding).collect()
    };
    facts.known().flat_map(each).collect()
}

/// Tablespaces of the source exist on every shard.
pub fn tablespaces(facts: &Facts<'_>) -> Vec<Finding> {
    let content = match &facts.content {
        Some(content) if facts.verb.makes_schema() => content,
        _ => return Vec::new(),
    };
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Destination) {
        for space in content.tablespaces.iter().filter(|t| !known.tablespaces.contains(&t.name)) {
            out.push(
                Finding::error(
                    "tablespaces",
                    Kind::MissingObject,
                    format!("tablespace {} does not exist on {}", space.quoted, server.endpoint),
                )
                .object(format!("tablespace {}", space.quoted))
                .detail("Relations of the source lie in it.")
                .hint(format!(
                    "On that server: CREATE TABLESPACE {} LOCATION '/...';",
                    space.quoted
                )),
            );
        }
    }
    out
}

/// Schemas that are to stay behind exist, and hold no published table, nor anything else that
/// the run needs.
pub fn exclude_schemas(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(content) = &facts.content else { return Vec::new() };
    let mut out = Vec::new();
    for schema in &facts.options.exclude_schemas {
        let object = format!("schema \"{schema}\"");
        if !content.schemas.contains(schema) {
            out.push(
                Finding::error(
                    "exclude_schemas",
                    Kind::MissingObject,
                    format!("{object} of option exclude_schemas does not exist"),
                )
                .object(object)
                .hint("Names are compared as they are: no quotes, no patterns."),
            );
        } else if let Some(table) = facts.tables().find(|t| t.schema_name == *schema) {
            out.push(
                Finding::error(
                    "exclude_schemas",
                    Kind::BadArgument,
                    format!("{object} of option exclude_schemas holds a published table"),
                )
                .object(table.name.clone())
                .hint("Leave the schema in, or take the table out of the publication."),
            );
        } else if facts.verb.makes_schema() {
            out.extend(
                content
                    .needed_behind
                    .iter()
                    .filter(|o| o.schema_name == *schema)
                    .map(needed_behind),
            );
        }
    }
    out
}

fn needed_behind(behind: &Behind) -> Finding {
    let class = behind.class.replace('_', " ");
    let object = match behind.class.as_str() {
        "extension" => format!("extension \"{}\"", behind.name),
        _ => format!("{class} \"{}.{}\"", behind.schema_name, behind.name),
    };
    Finding::error(
        "exclude_schemas",
        Kind::BadArgument,
        format!("{object} is needed, but its schema is in option exclude_schemas"),
    )
    .object(object)
    .detail(match behind.class.as_str() {
        "extension" => format!("Extensions come along, and it is in \"{}\".", behind.schema_name),
        _ => "Published tables depend on it, or it is a part of them.".to_owned(),
    })
    .hint("Leave the schema in, or move the object to another one.")
}

/// Roles that own something, or may do something, exist on every shard.
pub fn roles(facts: &Facts<'_>) -> Vec<Finding> {
    let content = match &facts.content {
        Some(content) if facts.verb.makes_schema() => content,
        _ => return Vec::new(),
    };
    let mut systems = BTreeSet::new();
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Destination) {
        if !systems.insert(&known.system) {
            continue;
        }
        let missing: Vec<_> =
            content.used_roles.iter().filter(|r| !known.roles.contains(&r.name)).collect();
        if missing.is_empty() {
            continue;
        }
        let names: Vec<&str> = missing.iter().map(|r| r.quoted.as_str()).collect();
        let statements: Vec<String> = missing
            .iter()
            .map(|r| format!("CREATE ROLE {}{};", r.quoted, if r.login { " LOGIN" } else { "" }))
            .collect();
        out.push(
            Finding::error(
                "roles",
                Kind::MissingObject,
                format!("roles of the source are missing on {}", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!("They own or may use objects of the schema: {}.", names.join(", ")))
            .hint(format!(
                "On that server: {} (or option no_owner, for owners alone)",
                statements.join(" ")
            )),
        );
    }
    out
}

/// Extensions of the source can be had on every shard.
pub fn extensions(facts: &Facts<'_>) -> Vec<Finding> {
    let source = match facts.known_of(Side::Source).next() {
        Some((_, source)) if facts.verb.makes_schema() => source,
        _ => return Vec::new(),
    };
    let needed = facts.content.as_ref().and_then(|c| c.needed_extensions.as_ref());
    let wanted = |name: &str| name != "reshard" && needed.is_none_or(|n| n.contains(name));
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Destination) {
        for (name, version) in source.extensions.iter().filter(|(name, _)| wanted(name)) {
            let object = format!("extension \"{name}\"");
            match known.available.get(name) {
                None => out.push(
                    Finding::error(
                        "extensions",
                        Kind::MissingObject,
                        format!("{object} is not available on {}", server.endpoint),
                    )
                    .object(object)
                    .detail("The source has it.")
                    .hint("Install the extension's package on that server."),
                ),
                Some(Some(default)) if default != version => out.push(
                    Finding::info(
                        "extensions",
                        format!("{object} has another version on {}", server.endpoint),
                    )
                    .object(object)
                    .detail(format!("The source has \"{version}\", the shard gets \"{default}\".")),
                ),
                Some(_) => {}
            }
        }
    }
    out
}
