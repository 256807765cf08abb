//! Checks of the databases: the right ones, and what their schema will need.
use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;

/// One shard of the source is this very database.
pub fn local_source(facts: &Facts<'_>) -> Vec<Finding> {
    let known: Vec<_> = facts.known_of(Side::Source).collect();
    let is_here = |system: &str, database: &str| {
        system == facts.here.0.as_str() && database == facts.here.1.as_str()
    };
    let all_known = known.len() == facts.source.shards.len();
    if !all_known || known.iter().any(|(_, k)| is_here(&k.system, &k.database)) {
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
        if let Some(first) = seen.insert((&known.system, &known.database), object.clone()) {
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
                     reshard_add_shard('{0}', {1}, 'host=... dbname=...');",
                    server.endpoint.cluster.replace('\'', "''"),
                    server.endpoint.shard
                )),
            );
        }
    }
    out
}

/// All databases have the same encoding.
pub fn encoding(facts: &Facts<'_>) -> Vec<Finding> {
    let Some((node, source)) = facts.known_of(Side::Source).next() else { return Vec::new() };
    if source.encoding != "UTF8" {
        let message = format!("encoding {} of the source is not supported", source.encoding);
        return vec![Finding::error("encoding", Kind::Unsupported, message)
            .object(node.endpoint.to_string())
            .detail("The extension reads names and texts of its database as UTF8.")
            .hint("Move the database to UTF8 first: pg_dump, then CREATE DATABASE ... ENCODING 'UTF8'.")];
    }
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
                "Create it anew: CREATE DATABASE \"{}\" ENCODING '{}' TEMPLATE template0;",
                known.database.replace('"', "\"\""),
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
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Destination) {
        let wanted = source.extensions.iter().filter(|(name, _)| name.as_str() != "reshard");
        for (name, version) in wanted {
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
