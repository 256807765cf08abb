//! Placement of single values.
use pgrx::prelude::*;
use pgrx::AnyElement;

use crate::cluster::Placement;
use crate::error::Result;
use crate::pg::hash;
use crate::pg::report::or_raise;
use crate::state::cluster;

/// The shard of a cluster that a key belongs to. The type of the value counts:
/// it must be that of the column.
///
/// # Errors
/// 42704 for an unknown cluster or a type that can't be hashed.
#[pg_extern(security_definer, stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_shard_for(cluster: &str, key: Option<AnyElement>) -> i32 {
    or_raise(shard_for(cluster, key.as_ref()))
}

fn shard_for(name: &str, key: Option<&AnyElement>) -> Result<i32> {
    let placement = Placement::Hash { shards: cluster::load(name)?.size() };
    let hash = key.map(hash::of_value).transpose()?;
    Ok(placement.shard_of_hash(hash).map_or(0, |shard| shard.as_i32()))
}
