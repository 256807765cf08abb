//! Checks of the way from the shards to the nodes: subscriptions on the shards
//! use the source's connection strings as they are.
use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;
use crate::remote::Endpoint;

/// The source's connection strings mean the same server on the shards.
pub fn reachable_from_shards(facts: &Facts<'_>) -> Vec<Finding> {
    let remote: Vec<&Endpoint> = facts.destination.shards.iter().filter(|e| !is_local(e)).collect();
    let Some(example) = remote.first() else { return Vec::new() };
    facts
        .source
        .shards
        .iter()
        .filter(|node| is_local(node))
        .map(|node| {
            Finding::warning(
                "reachable_from_shards",
                format!("connection string of {node} names this machine"),
            )
            .object(node.to_string())
            .detail(format!(
                "Subscriptions on {example}, which seems to be on another machine, connect to the \
                 source with it."
            ))
            .hint(format!(
                "Declare the source's shard with an address that the shards can reach: SELECT \
                 reshard_drop_shard('{0}', {1}); SELECT reshard_add_shard('{0}', {1}, 'host=...');",
                node.cluster.replace('\'', "''"),
                node.shard
            ))
        })
        .collect()
}

/// Whether a connection string names the machine where it is used.
fn is_local(endpoint: &Endpoint) -> bool {
    let host = endpoint.conninfo.get("hostaddr").or_else(|| endpoint.conninfo.get("host"));
    host.is_none_or(|host| {
        host.is_empty()
            || host.starts_with(['/', '@'])
            || host.starts_with("127.")
            || matches!(host, "localhost" | "::1")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::remote::Conninfo;

    fn endpoint(conninfo: &str) -> Endpoint {
        Endpoint { cluster: "c".into(), shard: 0, conninfo: Conninfo::parse(conninfo).unwrap() }
    }

    #[test]
    fn loopback_and_sockets_are_local() {
        assert!(is_local(&endpoint("host=127.0.0.1 dbname=d")));
        assert!(is_local(&endpoint("host=/tmp dbname=d")));
        assert!(is_local(&endpoint("host=localhost dbname=d")));
        assert!(!is_local(&endpoint("host=10.0.0.5 dbname=d")));
    }
}
