//! Checks of a source of several shards: what one migration needs to be the same on
//! all of them, and what is not supported there.
use std::collections::BTreeSet;

use futures::future::try_join_all;
use serde::Deserialize;

use crate::cluster::{ShardNo, Side};
use crate::error::{Error, Kind, Result};
use crate::preflight::facts::{Content, Facts, Table};
use crate::preflight::finding::Finding;
use crate::preflight::gather::tables;
use crate::preflight::unique::{self, UniqueKeys};
use crate::preflight::{omni, Verb};
use crate::remote::quote::qualified;
use crate::remote::{Connection, Endpoint};
use crate::state::options::{Ddl, SequencePolicy};

/// Differences that a finding shows.
const SHOWN: usize = 5;

/// What a shard of the source says about what has to be the same.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeFacts {
    /// Version of the extension there.
    extension: Option<String>,
    published: BTreeSet<String>,
    identities: BTreeSet<String>,
    sequences: BTreeSet<String>,
    /// Parts of the tables: columns, constraints, indexes, triggers.
    #[serde(skip)]
    parts: BTreeSet<String>,
    /// A migration that another shard of the source coordinates there.
    #[serde(skip)]
    joined: Option<String>,
}

impl Nodes {
    /// The columns that spread a table over the source; none where it is whole on each shard.
    pub(super) fn key_of(&self, table: &Table) -> &[String] {
        let found = self.tables.iter().find(|t| t.oid == table.oid);
        found.and_then(Table::sharding_key).map_or(&[], |key| key.columns)
    }
}

/// What is known of a source of several shards.
#[derive(Debug, Default)]
pub struct Nodes {
    /// This database, and each other shard.
    here: NodeFacts,
    others: Vec<(Endpoint, NodeFacts)>,
    /// Tables whose rows move, with their sharding keys on the source.
    pub(super) tables: Vec<Table>,
    /// Omni tables whose copies differ, with the shard.
    pub(super) unequal: Vec<(Endpoint, String)>,
    /// Keys of unique indexes that lack the source's sharding key.
    pub(super) unique: UniqueKeys,
}

/// Asks all shards of the source.
///
/// # Errors
/// The servers'.
pub async fn gather(
    facts: &Facts<'_>,
    content: &Content,
    here: &Connection,
    others: &[(Endpoint, Connection)],
) -> Result<Nodes> {
    let names: Vec<String> =
        content.tables.iter().map(|t| qualified(&t.schema_name, &t.table_name)).collect();
    let mut nodes = Nodes { here: of(here, facts.publication, &names).await?, ..Nodes::default() };
    nodes.others = try_join_all(others.iter().map(|(endpoint, session)| {
        let names = &names;
        async move {
            let known = of(session, facts.publication, names).await?;
            Ok::<_, Error>((endpoint.clone(), known))
        }
    }))
    .await?;
    nodes.tables = tables(here, facts.publication, &facts.source_rules).await?;
    nodes.tables.retain(|table| table.leaf);
    nodes.unequal = omni::gather(facts.options.omni_check, &nodes.tables, here, others).await?;
    let own = facts.source.shards.iter().find(|e| e.shard == self::here(facts).0);
    let sessions: Vec<(&Endpoint, &Connection)> = own
        .map(|endpoint| (endpoint, here))
        .into_iter()
        .chain(others.iter().map(|(e, s)| (e, s)))
        .collect();
    nodes.unique = unique::gather(facts, content, &nodes.tables, &sessions).await?;
    Ok(nodes)
}

async fn of(session: &Connection, publication: &str, names: &[String]) -> Result<NodeFacts> {
    let text: String = session.value(include_str!("nodes.sql"), &[&publication]).await?;
    let mut facts: NodeFacts = serde_json::from_str(&text)?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    for row in session.query(include_str!("../schema/parts.sql"), &[&names]).await? {
        let (table, part): (String, String) =
            (row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?);
        facts.parts.insert(format!("{part} of {table}"));
    }
    let known: bool =
        session.value("SELECT to_regclass('reshard.joined_task') IS NOT NULL", &[]).await?;
    if known {
        facts.joined = session
            .value(
                "SELECT min(format('task %s, from cluster \"%s\" to \"%s\"', task_id, source, \
                                   destination)) FROM reshard.joined_task",
                &[],
            )
            .await?;
    }
    Ok(facts)
}

/// The number of the source shard that is this database.
pub fn here(facts: &Facts<'_>) -> ShardNo {
    facts
        .known_of(Side::Source)
        .find(|(_, known)| facts.is_here(known))
        .map_or(ShardNo(0), |(server, _)| ShardNo(server.endpoint.shard))
}

fn nodes<'f>(
    facts: &'f Facts<'_>,
) -> impl Iterator<Item = (&'f Nodes, &'f Endpoint, &'f NodeFacts)> {
    facts.nodes.iter().flat_map(|nodes| nodes.others.iter().map(move |(e, n)| (nodes, e, n)))
}

/// Every shard of the source has the extension, of this version.
pub fn node_extension(facts: &Facts<'_>) -> Vec<Finding> {
    nodes(facts)
        .filter(|(all, _, node)| node.extension != all.here.extension)
        .map(|(all, endpoint, node)| {
            let (kind, message) = match &node.extension {
                None => (Kind::MissingObject, format!("{endpoint} has no extension reshard")),
                Some(version) => (
                    Kind::WrongState,
                    format!("{endpoint} has version {version} of extension reshard"),
                ),
            };
            Finding::error("node_extension", kind, message)
                .object(endpoint.to_string())
                .detail(format!(
                    "Each shard of the source copies its own rows; this one has version {}.",
                    all.here.extension.as_deref().unwrap_or("none")
                ))
                .hint(
                    "On that server: CREATE EXTENSION reshard; or ALTER EXTENSION reshard UPDATE;",
                )
        })
        .collect()
}

/// No shard of the source takes part in another migration.
pub fn node_joined(facts: &Facts<'_>) -> Vec<Finding> {
    let here = facts.joined.iter().map(|task| ("this database".to_owned(), task));
    nodes(facts)
        .filter_map(|(_, endpoint, node)| Some((endpoint.to_string(), node.joined.as_ref()?)))
        .chain(here)
        .map(|(object, task)| {
            Finding::error(
                "node_joined",
                Kind::WrongState,
                format!("{object} takes part in a migration of another shard"),
            )
            .object(object)
            .detail(format!("It is {task}."))
            .hint(format!(
                "In the database where it was started: SELECT reshard_complete({0}); or SELECT \
                 reshard_cancel({0});",
                task.split([' ', ',']).nth(1).unwrap_or("...")
            ))
        })
        .collect()
}

fn difference(wanted: &BTreeSet<String>, found: &BTreeSet<String>) -> Option<String> {
    let lacks = wanted.difference(found).map(|part| format!("it lacks {part}"));
    let more = found.difference(wanted).map(|part| format!("it has {part}"));
    let all: Vec<String> = lacks.chain(more).collect();
    match all.len() {
        0 => None,
        count => Some(format!(
            "{count} differences from the shard that is this database: {}{}.",
            all[..count.min(SHOWN)].join("; "),
            if count > SHOWN { "; ..." } else { "" }
        )),
    }
}

/// The publication covers the same on every shard of the source.
pub fn node_publication(facts: &Facts<'_>) -> Vec<Finding> {
    nodes(facts)
        .filter_map(|(all, endpoint, node)| {
            let detail = difference(&all.here.published, &node.published)?;
            Some(
                Finding::error(
                    "node_publication",
                    Kind::WrongState,
                    format!(
                        "publication \"{}\" covers something else on {endpoint}",
                        facts.publication
                    ),
                )
                .object(endpoint.to_string())
                .detail(detail)
                .hint("Create it there as it is here."),
            )
        })
        .collect()
}

/// The tables are the same on every shard of the source.
pub fn node_schema(facts: &Facts<'_>) -> Vec<Finding> {
    nodes(facts)
        .filter_map(|(all, endpoint, node)| {
            let join = |facts: &NodeFacts| facts.parts.union(&facts.identities).cloned().collect();
            let detail = difference(&join(&all.here), &join(node))?;
            Some(
                Finding::error(
                    "node_schema",
                    Kind::WrongState,
                    format!("tables of {endpoint} differ from those of this database"),
                )
                .object(endpoint.to_string())
                .detail(detail)
                .hint("Make the published tables the same on all shards of the source."),
            )
        })
        .collect()
}

/// Sequences are defined the same way on every shard of the source.
pub fn node_sequences(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.options.sequences == SequencePolicy::Untouched || !facts.verb.has_flows() {
        return Vec::new();
    }
    nodes(facts)
        .filter_map(|(all, endpoint, node)| {
            let detail = difference(&all.here.sequences, &node.sequences)?;
            Some(
                Finding::error(
                    "node_sequences",
                    Kind::Unsupported,
                    format!("sequences of {endpoint} are defined otherwise than here"),
                )
                .object(endpoint.to_string())
                .detail(detail)
                .hint("ALTER SEQUENCE them to the same increment and limits, or start with options => '{\"sequences\": \"untouched\"}'."),
            )
        })
        .collect()
}

/// A source of several shards has a sharding key, and a table with it.
pub fn source_key(facts: &Facts<'_>) -> Vec<Finding> {
    let Some(nodes) = &facts.nodes else { return Vec::new() };
    let name = &facts.source.name;
    if !nodes.tables.is_empty() && nodes.tables.iter().all(|t| t.key.is_none()) {
        return vec![Finding::error(
            "sharding_key_missing",
            Kind::WrongState,
            format!("no published table has a sharding key of cluster \"{name}\""),
        )
        .object(format!("cluster \"{name}\""))
        .detail("Without one each of its shards would have all rows of all tables.")
        .hint(format!(
            "Declare how its rows are spread: SELECT reshard_set_sharding_key('{}', '...column...');",
            name.replace('\'', "''")
        ))];
    }
    Vec::new()
}

/// What can't be done yet with several shards of the source.
pub fn node_support(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.source.size() == 1 {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut refuse = |what: &str, hint: &str| {
        let message = format!("{what} is not supported with several source shards");
        out.push(
            Finding::error("node_support", Kind::Unsupported, message)
                .object(format!("cluster \"{}\"", facts.source.name))
                .hint(hint),
        );
    };
    if facts.options.ddl == Ddl::Replay {
        refuse(
            "option \"ddl\" with \"replay\"",
            "Use \"block\", or \"allow\" and change all servers.",
        );
    }
    if facts.verb == Verb::Replicate && facts.options.slot_name.is_some() {
        refuse("replication from an existing slot", "Leave slot_name out.");
    }
    out
}
