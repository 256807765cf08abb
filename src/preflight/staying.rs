//! Shards that are in both clusters: whether they are, and whether all rows that move can
//! go to others.
use std::collections::BTreeMap;

use crate::cluster::staying::Staying;
use crate::cluster::{staying, Cluster, ShardNo, ShardingKey, Side};
use crate::error::{Kind, Result};
use crate::preflight::facts::{Facts, Table};
use crate::preflight::finding::Finding;
use crate::remote::{connect, identity, Endpoint, Purpose};
use crate::state::cluster::database_of;
use crate::state::options::{Ddl, SequencePolicy};

/// The shards of a destination that are shards of the source too, with their numbers there.
/// Those declared as the same database are asked whether they are: copies of a server have
/// the same identity.
///
/// # Errors
/// A server's that can't be reached; SPI's.
pub fn declared(source: &Cluster, destination: &Cluster) -> Result<Vec<(Endpoint, Endpoint)>> {
    let mut known = BTreeMap::new();
    for endpoint in &source.shards {
        if let Some(database) = database_of(endpoint)? {
            known.insert(database, endpoint);
        }
    }
    let mut out = Vec::new();
    for endpoint in &destination.shards {
        let same = database_of(endpoint)?.and_then(|database| known.get(&database).copied());
        out.extend(same.map(|node| (endpoint.clone(), node.clone())));
    }
    Ok(out)
}

/// Those of them that are one database of one server.
///
/// # Errors
/// As [`connect`].
pub async fn ask(declared: &[(Endpoint, Endpoint)]) -> Result<BTreeMap<ShardNo, ShardNo>> {
    let mut out = BTreeMap::new();
    for (shard, node) in declared {
        if server(shard).await? == server(node).await? {
            out.insert(ShardNo(shard.shard), ShardNo(node.shard));
        }
    }
    Ok(out)
}

async fn server(endpoint: &Endpoint) -> Result<String> {
    let session = connect(endpoint, Purpose::Preflight).await?;
    session.value(identity::SERVER, &[]).await
}

/// The sharding keys of a table on both sides.
fn keys<'f>(facts: &'f Facts<'_>, table: &'f Table) -> [Option<ShardingKey<'f>>; 2] {
    let here = facts.nodes.iter().flat_map(|nodes| &nodes.tables).find(|t| t.oid == table.oid);
    [here.and_then(Table::sharding_key), table.sharding_key()]
}

/// Whether rows may have to move to a shard that stays.
pub fn receive(facts: &Facts<'_>) -> bool {
    !facts.destination.staying.is_empty()
        && facts.leaves().any(|table| {
            let [from, to] = keys(facts, table);
            !staying::none_arrives(facts.source, facts.destination, (from, to))
        })
}

/// The shards that stay, and whether rows may have to move to them.
pub fn found(facts: &Facts<'_>) -> Staying {
    Staying { receive: receive(facts), ..facts.destination.staying.clone() }
}

/// Shards that are in both clusters: which, and what can't be done with them.
pub fn staying_shards(facts: &Facts<'_>) -> Vec<Finding> {
    let (source, destination) = (facts.source, facts.destination);
    if destination.staying.is_empty() {
        return Vec::new();
    }
    let mut out = unsupported(facts);
    let receive = receive(facts);
    out.extend(destination.staying.shards.iter().map(|(shard, node)| {
        let object = format!("shard {shard} of cluster \"{}\"", destination.name);
        let same = format!("{object} is shard {node} of cluster \"{}\"", source.name);
        let come = match receive {
            true => {
                " Rows of other shards come to it, and are there before the switch: a query of all \
                 shards finds them twice from the copy on."
            }
            false => "",
        };
        Finding::info("staying_shards", same).object(object).detail(format!(
            "Its rows stay, but for those of other shards. These are deleted there once the \
             migration is complete; until then a query of all shards finds them twice.{come}"
        ))
    }));
    out
}

fn refused(message: String) -> Finding {
    Finding::error("staying_shards", Kind::Unsupported, message)
}

/// What is not done with shards that are in both clusters.
fn unsupported(facts: &Facts<'_>) -> Vec<Finding> {
    let cluster = format!("cluster \"{}\"", facts.destination.name);
    let mut out = Vec::new();
    if facts.source.size() > 1 {
        out.extend(sharded_once(facts));
    }
    let choices = [
        (facts.options.sequences == SequencePolicy::Blocks, "\"sequences\" with \"blocks\""),
        (facts.options.ddl == Ddl::Replay, "\"ddl\" with \"replay\""),
    ];
    out.extend(choices.into_iter().filter(|(is_chosen, _)| *is_chosen).map(|(_, option)| {
        refused(format!("option {option} is not supported with shards that stay"))
            .object(cluster.clone())
            .hint("Leave it out.")
    }));
    let partial = facts.leaves().filter(|t| t.is_sharded());
    out.extend(partial.filter(|t| t.row_filter.is_some() || t.column_list).map(|t| {
        refused(format!("the publication leaves out a part of table {}", t.name))
            .object(t.name.clone())
            .detail(
                "What has moved is deleted on the shard that it came from: rows and columns that \
                 did not come along would be lost.",
            )
            .hint("Publish the table whole, without WHERE and without a list of columns.")
    }));
    out
}

/// Tables that one of two clusters of several shards has whole on each shard, the other in
/// parts.
fn sharded_once<'f>(facts: &'f Facts<'_>) -> impl Iterator<Item = Finding> + 'f {
    let once = |table: &&Table| {
        let [from, to] = keys(facts, table);
        from.is_some() != to.is_some()
    };
    facts.leaves().filter(once).map(|table| {
        refused(format!("table {} is sharded in one of the clusters alone", table.name))
            .object(table.name.clone())
            .detail(
                "Shards that are in both would have to get rows that they have, or to lose theirs.",
            )
            .hint("Declare a sharding key of it for both clusters, or for neither.")
    })
}

/// Names the other role of a database, where one is both.
pub fn way_out(first: Side, second: Side) -> &'static str {
    match first == second {
        true => "",
        false => {
            " Where its rows are to stay, but for those of other shards: options => \
             '{\"staying_shards\": true}'."
        }
    }
}
