//! Placement of single values.
use std::collections::BTreeSet;

use pgrx::prelude::*;
use pgrx::{AnyElement, PgRelation};

use crate::api::argument::given;
use crate::cluster::rule::shown;
use crate::cluster::{Method, Placement, ShardingKey, ShardingRule};
use crate::error::{Error, Kind, Result};
use crate::pg::owner::as_owner;
use crate::pg::report::or_raise;
use crate::pg::value::Value;
use crate::pg::{hash, order};
use crate::state::{cluster, mapping};

/// The shard of a cluster that a key belongs to; null where it belongs to none. The type
/// of the value counts: it must be that of the column. A key of several columns is a row
/// of their values, `ROW(a, b)`. Where the cluster has several sharding keys,
/// `column_name` says which one, by a column of it, or `relation`, by a table that has it.
///
/// Runs with the rights of the caller: functions of the value's type may be anyone's.
///
/// # Errors
/// 42704 for an unknown cluster or column, a table without sharding key, or a type that
/// can't be hashed or compared; 42P08 where it isn't clear which sharding key is meant;
/// 42P22 where it isn't clear how texts are compared; 22023 for a value that has not as many
/// columns as the key.
#[pg_extern(stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_shard_for(
    cluster: Option<&str>,
    key: Option<AnyElement>,
    column_name: default!(Option<&str>, "NULL"),
    relation: default!(Option<PgRelation>, "NULL"),
) -> Option<i32> {
    let asked =
        Asked { column: column_name, relation: relation.map(|relation| relation.oid().to_u32()) };
    or_raise(shard_for(given(cluster, "cluster"), key.as_ref(), asked))
}

/// What says which sharding key is meant, besides the value.
#[derive(Clone, Copy)]
struct Asked<'a> {
    column: Option<&'a str>,
    relation: Option<u32>,
}

/// How values of a sharding key are placed.
struct Found {
    placement: Placement,
    /// How many columns the key has; 0 where none is declared.
    columns: usize,
    /// What ranges of texts are compared by, where that is known.
    collation: Option<u32>,
}

fn shard_for(name: &str, key: Option<&AnyElement>, asked: Asked<'_>) -> Result<Option<i32>> {
    let fields = key.and_then(Value::fields_of);
    let value = key.map(Value::of);
    let found = as_owner(|| {
        find(name, asked, value.as_ref(), |wanted| match &fields {
            _ if key.is_none() => true,
            Some(fields) => fields.len() == wanted.columns.len(),
            None => wanted.columns.len() == 1,
        })
    })?;
    let shard = match (found.placement, value) {
        (Placement::All, _) => Some(0),
        (Placement::Hash { shards }, value) => {
            let values = match (value, fields) {
                (None, _) => Vec::new(),
                (_, Some(fields)) if [0, fields.len()].contains(&found.columns) => fields,
                (value, _) => vec![value],
            };
            Some(hash::shard_of_values(&values, shards)?.as_i32())
        }
        (Placement::Mapped(map), value) => {
            let value = value.map(|v| found.collation.map_or(v, |collation| v.under(collation)));
            order::shard_of_value(&map, value)?.map(|s| s.as_i32())
        }
    };
    Ok(shard)
}

/// Looks up the sharding key that is meant.
fn find(
    name: &str,
    asked: Asked<'_>,
    value: Option<&Value>,
    fits: impl Fn(&ShardingKey<'_>) -> bool,
) -> Result<Found> {
    let cluster = cluster::load(name)?;
    let rules = match asked.relation {
        Some(relation) => vec![rule_of(name, relation)?],
        None => cluster::rules(name)?,
    };
    let meant = sharding_key(name, &rules, asked.column, &fits)?;
    let placement = cluster.placement(Some(meant));
    if matches!(placement, Placement::Hash { .. }) && meant.columns.len() > 1 && !fits(&meant) {
        return Err(misfit(name, &[meant]));
    }
    let collation = match (meant.method, meant.single(), value) {
        (Method::Range, Some(column), Some(value)) if value.is_collatable() => {
            collation(name, column, asked.relation)?
        }
        _ => None,
    };
    Ok(Found { placement, columns: meant.columns.len(), collation })
}

/// The sharding key of a table.
fn rule_of(name: &str, relation: u32) -> Result<ShardingRule> {
    cluster::rule_of(name, relation)?.ok_or_else(|| {
        Error::missing(format!("the table has no sharding key of cluster \"{name}\""))
            .detail("Each shard has all of its rows.")
            .hint("See reshard.clusters for the sharding keys.")
    })
}

/// What the values of a column are compared by, where texts can be in more than one order;
/// none where no table has the column.
fn collation(name: &str, column: &str, relation: Option<u32>) -> Result<Option<u32>> {
    if let Some(relation) = relation {
        return mapping::collation_of(relation, column);
    }
    let collations: BTreeSet<u32> =
        mapping::types(name, column)?.iter().map(|t| t.collation).filter(|c| *c != 0).collect();
    match collations.len() {
        0 | 1 => Ok(collations.first().copied()),
        several => Err(Error::new(
            Kind::Server("42P22".to_owned()),
            format!("column \"{column}\" has {several} collations"),
        )
        .detail("Tables with that column order its values in different ways.")
        .hint("Name the table: SELECT reshard_shard_for(cluster, key, relation => '...');")),
    }
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
        .hint(
            "Name the column or a table: SELECT reshard_shard_for(cluster, key, column_name => \
             '...'); or SELECT reshard_shard_for(cluster, key, relation => '...');",
        )),
    }
}

/// A value that has not as many columns as any of these keys.
fn misfit(name: &str, keys: &[ShardingKey<'_>]) -> Error {
    let shown: Vec<String> = keys.iter().map(|key| shown(key.columns)).collect();
    Error::argument(format!("the value does not fit a sharding key of cluster \"{name}\""))
        .detail(format!("Its columns are {}.", shown.join("; or ")))
        .hint("Give the values of several columns as a row: ROW(a, b).")
}
