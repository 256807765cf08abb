//! Which keys are mapped to which shard: `reshard.key_mapping`.
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::keymap::{Keys, Range, Value};
use crate::cluster::topology::KeyMaps;
use crate::cluster::{KeyMap, Method, ShardNo};
use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::pg::order;

/// Keys that are mapped to a shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// One key.
    Value {
        /// The key.
        value: String,
    },
    /// Rows without a key.
    Null,
    /// Keys from the lower bound up to the upper one.
    Range {
        /// The first key; `None`: no bound.
        lower_bound: Option<String>,
        /// The first key that does not belong any more; `None`: no bound.
        upper_bound: Option<String>,
    },
    /// All that nothing else says anything about.
    Default,
}

/// A row of `reshard.key_mapping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Keys.
    #[serde(flatten)]
    pub what: What,
    /// Their shard.
    pub shard: u32,
}

#[derive(Deserialize)]
struct Stored {
    column_name: String,
    method: Method,
    mapping: Option<Mapping>,
}

/// The mapped keys of a cluster, by column; columns that nothing is mapped of included.
///
/// # Errors
/// SPI's.
pub fn maps(cluster: &str) -> Result<KeyMaps> {
    let stored: Vec<Stored> = db::rows(
        "SELECT pg_catalog.jsonb_build_object('column_name', r.column_name, 'method', r.method, \
                'mapping', pg_catalog.to_jsonb(m)) \
           FROM (SELECT DISTINCT column_names[1] AS column_name, method FROM reshard.sharding_rule \
                  WHERE cluster_name = $1 AND method <> 'hash') AS r \
           LEFT JOIN reshard.key_mapping AS m \
             ON m.cluster_name = $1 AND m.column_name = r.column_name \
          ORDER BY m.mapping_no",
        &[Arg::Text(cluster)],
    )?;
    let mut by_column: BTreeMap<String, (Method, Vec<Mapping>)> = BTreeMap::new();
    for Stored { column_name, method, mapping } in stored {
        let (_, mappings) = by_column.entry(column_name).or_insert((method, Vec::new()));
        mappings.extend(mapping);
    }
    let of = |(column, (method, mappings)): (String, (Method, Vec<Mapping>))| {
        (column, Arc::new(map_of(method, &mappings)))
    };
    Ok(by_column.into_iter().map(of).collect())
}

/// What mappings come to.
pub fn map_of(method: Method, mappings: &[Mapping]) -> KeyMap {
    let (mut values, mut ranges) = (Vec::new(), Vec::new());
    let (mut null, mut default) = (None, None);
    for Mapping { what, shard } in mappings {
        let shard = ShardNo(*shard);
        match what {
            What::Value { value } => values.push(Value { key: value.clone(), shard }),
            What::Null => null = Some(shard),
            What::Range { lower_bound, upper_bound } => {
                ranges.push(Range { lower: lower_bound.clone(), upper: upper_bound.clone(), shard })
            }
            What::Default => default = Some(shard),
        }
    }
    let keys = match method {
        Method::Range => Keys::Ranges(ranges),
        Method::List | Method::Hash => Keys::Values(values),
    };
    KeyMap { keys, null, default }
}

/// What is mapped of a column.
///
/// # Errors
/// SPI's.
pub fn load(cluster: &str, column: &str) -> Result<Vec<Mapping>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(m) FROM reshard.key_mapping AS m \
          WHERE m.cluster_name = $1 AND m.column_name = $2 ORDER BY m.mapping_no",
        &[Arg::Text(cluster), Arg::Text(column)],
    )
}

/// Adds mappings.
///
/// # Errors
/// SPI's.
pub fn insert(cluster: &str, column: &str, mappings: &[Mapping]) -> Result<()> {
    db::execute(
        "INSERT INTO reshard.key_mapping \
                (cluster_name, column_name, mapping_no, kind, value, lower_bound, upper_bound, shard) \
         SELECT $1, $2, l.last + n.nr, m.kind, m.value, m.lower_bound, m.upper_bound, m.shard \
           FROM (SELECT coalesce(max(mapping_no), 0) AS last FROM reshard.key_mapping \
                  WHERE cluster_name = $1 AND column_name = $2) AS l \
          CROSS JOIN pg_catalog.jsonb_array_elements($3) WITH ORDINALITY AS n (mapping, nr) \
          CROSS JOIN LATERAL pg_catalog.jsonb_to_record(n.mapping) \
                  AS m (kind text, value text, lower_bound text, upper_bound text, shard int)",
        &[Arg::Text(cluster), Arg::Text(column), Arg::Json(serde_json::to_value(mappings)?)],
    )
    .map(|_| ())
}

/// Forgets a mapping; false where there is none like it.
///
/// # Errors
/// SPI's.
pub fn delete(cluster: &str, column: &str, what: &What) -> Result<bool> {
    let gone = db::execute(
        "DELETE FROM reshard.key_mapping AS m \
          USING pg_catalog.jsonb_to_record($3) \
                AS g (kind text, value text, lower_bound text, upper_bound text) \
          WHERE m.cluster_name = $1 AND m.column_name = $2 AND m.kind = g.kind \
            AND m.value IS NOT DISTINCT FROM g.value \
            AND m.lower_bound IS NOT DISTINCT FROM g.lower_bound \
            AND m.upper_bound IS NOT DISTINCT FROM g.upper_bound",
        &[Arg::Text(cluster), Arg::Text(column), Arg::Json(serde_json::to_value(what)?)],
    )?;
    Ok(gone > 0)
}

/// Forgets all mappings of columns that no rule places by list or range any more; how many.
///
/// # Errors
/// SPI's.
pub fn delete_unused(cluster: &str) -> Result<u64> {
    db::execute(
        "DELETE FROM reshard.key_mapping AS m WHERE m.cluster_name = $1 \
            AND NOT EXISTS (SELECT FROM reshard.sharding_rule AS r \
                             WHERE r.cluster_name = m.cluster_name \
                               AND r.column_names = ARRAY[m.column_name] AND r.method <> 'hash')",
        &[Arg::Text(cluster)],
    )
}

/// The type of a key column.
#[derive(Debug, Clone, Deserialize)]
pub struct KeyType {
    /// Its number here.
    pub oid: u32,
    /// Number of the column's collation, 0 where the type has none.
    pub collation: u32,
    /// Its name.
    pub name: String,
}

/// The types of the columns of this database that rules by list and range of a
/// cluster hold for, each once.
///
/// # Errors
/// SPI's.
pub fn types(cluster: &str, column: &str) -> Result<Vec<KeyType>> {
    db::rows(
        "SELECT DISTINCT pg_catalog.jsonb_build_object('oid', a.atttypid::bigint, \
                'collation', a.attcollation::bigint, \
                'name', pg_catalog.format_type(a.atttypid, -1)) \
           FROM reshard.sharding_rule AS r \
           JOIN pg_catalog.pg_attribute AS a \
             ON a.attname = r.column_names[1] AND a.attnum > 0 AND NOT a.attisdropped \
           JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') \
           JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
          WHERE r.cluster_name = $1 AND r.column_names = ARRAY[$2]::name[] AND r.method <> 'hash' \
            AND c.oid >= 16384 AND n.nspname <> 'reshard' AND c.relpersistence <> 't' \
            AND (r.table_name IS NULL OR c.relname = r.table_name AND n.nspname = r.schema_name)",
        &[Arg::Text(cluster), Arg::Text(column)],
    )
}

/// Number of the collation of a table's column, 0 where its type has none; none without
/// such a column.
///
/// # Errors
/// SPI's.
pub fn collation_of(relation: u32, column: &str) -> Result<Option<u32>> {
    let collation = db::bigint(
        "SELECT a.attcollation::bigint FROM pg_catalog.pg_attribute AS a \
          WHERE a.attrelid = $1::oid AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
        &[Arg::I64(i64::from(relation)), Arg::Text(column)],
    )?;
    Ok(collation.and_then(|oid| u32::try_from(oid).ok()))
}

/// A key read as a value of a type: its text, the same whatever the session's settings are.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadKey {
    /// The text.
    pub key: Option<String>,
    /// Why it can't be read.
    pub error: Option<String>,
}

/// Reads keys as values of a type, in their order. Those of a type that is not built in are
/// not even tried: a domain's checks, say, are code of whoever made it.
///
/// # Errors
/// SPI's; a key that can't be read is no error here.
pub fn read(keys: &[&str], type_oid: u32) -> Result<Vec<ReadKey>> {
    if !order::is_built_in(type_oid) {
        let error = Some("only keys of built-in types are mapped".to_owned());
        return Ok(vec![ReadKey { key: None, error }; keys.len()]);
    }
    db::rows(
        "SELECT pg_catalog.jsonb_build_object('key', r.key, 'error', r.error) \
           FROM pg_catalog.unnest($1) WITH ORDINALITY AS k (key, nr) \
          CROSS JOIN LATERAL reshard.read_key(k.key, $2::oid) AS r ORDER BY k.nr",
        &[
            Arg::Texts(keys.iter().map(|k| (*k).to_owned()).collect()),
            Arg::I64(i64::from(type_oid)),
        ],
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_read_by_their_kind() {
        let row = |text: &str| serde_json::from_str::<Mapping>(text).unwrap();
        let value = row(r#"{"kind":"value","value":"a","lower_bound":null,"shard":2}"#);
        assert_eq!(value, Mapping { what: What::Value { value: "a".into() }, shard: 2 });
        let range =
            row(r#"{"kind":"range","value":null,"lower_bound":"1","upper_bound":null,"shard":0}"#);
        let unbounded = What::Range { lower_bound: Some("1".into()), upper_bound: None };
        assert_eq!(range, Mapping { what: unbounded, shard: 0 });
        assert_eq!(row(r#"{"kind":"null","value":null,"shard":1}"#).what, What::Null);
    }
}
