//! Declaring a cluster as another one is, to change it then: one that grows, or whose keys move.
use pgrx::prelude::*;

use crate::api::argument::given;
use crate::api::{admin, shards};
use crate::error::{Error, Kind, Result};
use crate::pg::report::or_raise;
use crate::remote::quote::literal;
use crate::state::cluster;

/// Declares a cluster of the same shards as another one, with the same sharding keys and
/// mappings. No server is contacted.
///
/// # Errors
/// 42704 where `cluster` has no shard; 42710 where `new_cluster` has a shard or a sharding key;
/// 22023 for a bad name.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_clone_cluster(cluster: Option<&str>, new_cluster: Option<&str>) {
    or_raise(clone_cluster(given(cluster, "cluster"), given(new_cluster, "new_cluster")));
}

fn clone_cluster(name: &str, new: &str) -> Result<()> {
    admin::require()?;
    shards::require_name(new)?;
    // As a migration would find it: without gaps.
    let original = cluster::load(name)?;
    if !cluster::endpoints(new)?.is_empty() || !cluster::rules(new)?.is_empty() {
        return Err(Error::new(
            Kind::DuplicateObject,
            format!("cluster \"{new}\" is declared already"),
        )
        .hint(format!(
            "Choose another name, or forget its shards and sharding keys: SELECT \
             reshard_drop_shard({}, ...);",
            literal(new)
        )));
    }
    for shard in &original.shards {
        cluster::declare_as(shard, new)?;
    }
    cluster::clone_rules(name, new)
}
