//! Placement of single values.
use pgrx::prelude::*;
use pgrx::AnyElement;

use crate::cluster::rule::shown;
use crate::cluster::{Method, Placement, ShardingKey, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::report::or_raise;
use crate::pg::value::Value;
use crate::pg::{hash, order};
use crate::state::cluster;

/// The shard of a cluster that a key belongs to; null where it belongs to none. The type
/// of the value counts: it must be that of the column. A key of several columns is a row
/// of their values, `ROW(a, b)`. Where the cluster has several sharding keys,
/// `column_name` says which one, by a column of it.
///
/// # Errors
/// 42704 for an unknown cluster or column, or a type that can't be hashed or compared;
/// 42P08 where it isn't clear which sharding key is meant; 22023 for a value that has
/// not as many columns as the key.
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
    let rules = cluster::rules(name)?;
    let fields = key.and_then(Value::fields_of);
    let meant = sharding_key(name, &rules, column, |wanted| match &fields {
        _ if key.is_none() => true,
        Some(fields) => fields.len() == wanted.columns.len(),
        None => wanted.columns.len() == 1,
    })?;
    let shard = match cluster.placement(Some(meant)) {
        Placement::All => Some(0),
        Placement::Hash { shards } => {
            let values = match (meant.columns.len(), key, fields) {
                (_, None, _) => Vec::new(),
                (count, Some(_), Some(fields)) if count == fields.len() || count == 0 => fields,
                (0 | 1, Some(key), _) => vec![Some(Value::of(key))],
                _ => return Err(misfit(name, &[meant])),
            };
            Some(hash::shard_of_values(&values, shards)?.as_i32())
        }
        Placement::Mapped(map) => order::shard_of_value(&map, key)?.map(|s| s.as_i32()),
    };
    Ok(shard)
}

/// The sharding key that is meant. All by hash of equally many columns place values in the
/// same way, so that they need not be told apart; others are by which of them the value
/// fits.
fn sharding_key<'r>(
    name: &str,
    rules: &'r [ShardingRule],
    column: Option<&str>,
    fits: impl Fn(&ShardingKey<'_>) -> bool,
) -> Result<ShardingKey<'r>> {
    let mut keys: Vec<ShardingKey<'r>> = Vec::new();
    let named = |r: &&ShardingRule| column.is_none_or(|c| r.column_names.iter().any(|n| n == c));
    for key in rules.iter().filter(named).map(ShardingRule::key) {
        let place_alike = |other: &ShardingKey<'_>| {
            *other == key
                || other.method == Method::Hash
                    && key.method == Method::Hash
                    && other.columns.len() == key.columns.len()
        };
        if !keys.iter().any(place_alike) {
            keys.push(key);
        }
    }
    if let [one] = keys.as_slice() {
        return Ok(*one);
    }
    let fitting: Vec<ShardingKey<'r>> = keys.iter().copied().filter(|k| fits(k)).collect();
    match (fitting.as_slice(), keys.as_slice(), column) {
        ([one], ..) => Ok(*one),
        (_, [], Some(column)) => Err(Error::missing(format!(
            "column \"{column}\" is no sharding key of cluster \"{name}\""
        ))
        .hint("See reshard.clusters for its sharding keys.")),
        // Whatever column comes to be the key, it is by hash unless said otherwise.
        (_, [], None) => Ok(ShardingKey { columns: &[], method: Method::Hash }),
        ([], several, _) => Err(misfit(name, several)),
        (several, ..) => Err(Error::new(
            Kind::Server("42P08".to_owned()),
            format!("cluster \"{name}\" places keys in {} ways", several.len()),
        )
        .hint("Name the column: SELECT reshard_shard_for(cluster, key, column_name => '...');")),
    }
}

/// A value that has not as many columns as any of these keys.
fn misfit(name: &str, keys: &[ShardingKey<'_>]) -> Error {
    let shown: Vec<String> = keys.iter().map(|key| shown(key.columns)).collect();
    Error::argument(format!("the value does not fit a sharding key of cluster \"{name}\""))
        .detail(format!("Its columns are {}.", shown.join("; or ")))
        .hint("Give the values of several columns as a row: ROW(a, b).")
}
