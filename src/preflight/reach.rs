//! Checks of the ways between the servers: subscriptions use the connection
//! strings as they are, on the shards those of the source, and for the way back
//! on the source those of the shards.
use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;
use crate::remote::{connection, Endpoint};

/// Every shard reaches the nodes.
pub fn reachable_from_shards(facts: &Facts<'_>) -> Vec<Finding> {
    unreachable(facts, "reachable_from_shards", |from| from.cluster == facts.destination.name)
}

/// Every node reaches the shards as a subscriber, for the way back.
pub fn reachable_from_source(facts: &Facts<'_>) -> Vec<Finding> {
    unreachable(facts, "reachable_from_source", |from| from.cluster == facts.source.name)
}

fn unreachable(
    facts: &Facts<'_>,
    check_name: &'static str,
    is_from: impl Fn(&Endpoint) -> bool,
) -> Vec<Finding> {
    facts
        .unreachable
        .iter()
        .filter(|way| is_from(&way.from))
        .map(|way| {
            let cluster = way.to.cluster.replace('\'', "''");
            let shard = way.to.shard;
            let address = match connection::is_from_pooler(&way.error.one_line()) {
                true => "the server's own address: a connection pooler lets no replication through",
                false => "an address that other servers can reach, and let them in by pg_hba.conf",
            };
            Finding::from_error(check_name, &way.error)
                .object(format!("{} to {}", way.from, way.to))
                .hint(format!(
                    "Its subscription connects with the connection string of {}. Declare that shard \
                     with {address}: SELECT reshard_drop_shard('{cluster}', {shard}); SELECT \
                     reshard_add_shard('{cluster}', {shard}, 'host=...');",
                    way.to
                ))
        })
        .collect()
}
