//! Placement of single values.
use pgrx::prelude::*;
use pgrx::AnyElement;

use crate::cluster::placement::shard_of_hash;
use crate::cluster::{Method, Placement};
use crate::error::{Error, Kind, Result};
use crate::pg::report::or_raise;
use crate::pg::{hash, order};
use crate::state::cluster;

/// The shard of a cluster that a key belongs to; null where it belongs to none. The type
/// of the value counts: it must be that of the column. Where the cluster has several
/// sharding keys, `column_name` says which one.
///
/// # Errors
/// 42704 for an unknown cluster or column, or a type that can't be hashed or compared;
/// 42P08 where it isn't clear which sharding key is meant.
#[pg_extern(security_definer, stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_shard_for(
    cluster: &str,
    key: Option<AnyElement>,
    column_name: default!(Option<&str>, "NULL"),
) -> Option<i32> {
    or_raise(shard_for(cluster, key.as_ref(), column_name))
}

fn shard_for(name: &str, key: Option<&AnyElement>, column: Option<&str>) -> Result<Option<i32>> {
    let cluster = cluster::load(name)?;
    let (column, method) = sharding_key(name, column)?;
    let shard = match cluster.placement(Some((&column, method))) {
        Placement::All => Some(0),
        Placement::Hash { shards } => {
            let hash = key.map(hash::of_value).transpose()?;
            Some(shard_of_hash(hash, shards).as_i32())
        }
        Placement::Mapped(map) => order::shard_of_value(&map, key)?.map(|s| s.as_i32()),
    };
    Ok(shard)
}

/// The sharding key that is meant: a column, and how it is placed. All keys by hash
/// are placed in the same way, so that they need not be told apart.
fn sharding_key(name: &str, column: Option<&str>) -> Result<(String, Method)> {
    let rules = cluster::rules(name)?;
    let mut keys: Vec<(String, Method)> = Vec::new();
    for rule in rules.iter().filter(|r| column.is_none_or(|c| c == r.column_name)) {
        let place = match rule.method {
            Method::Hash => String::new(),
            _ => rule.column_name.clone(),
        };
        if !keys.contains(&(place.clone(), rule.method)) {
            keys.push((place, rule.method));
        }
    }
    match (keys.as_slice(), column) {
        ([one], _) => Ok(one.clone()),
        ([], None) => Ok((String::new(), Method::Hash)),
        ([], Some(column)) => Err(Error::missing(format!(
            "column \"{column}\" is no sharding key of cluster \"{name}\""
        ))
        .hint("See reshard.clusters for its sharding keys.")),
        (several, _) => Err(Error::new(
            Kind::Server("42P08".to_owned()),
            format!("cluster \"{name}\" places keys in {} ways", several.len()),
        )
        .hint("Name the column: SELECT reshard_shard_for(cluster, key, column_name => '...');")),
    }
}
