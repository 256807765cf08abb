//! Sharding keys as a server has them: the types of their columns, and the relation
//! whose partitioning by hash is their placement.
//!
//! `satisfies_hash_partition` is a built-in immutable function, so that a row filter may
//! use it, but it asks for a relation that is partitioned by columns of the key's types.
use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;

/// A relation's name is not longer than this, in bytes.
const LONGEST_NAME: usize = 63;

/// A sharding key of a table on a server.
#[derive(Debug, Clone)]
pub struct PartitionKey {
    columns: Vec<Column>,
    /// Tells keys of other types from it.
    signature: String,
}

#[derive(Debug, Clone)]
struct Column {
    /// Its type's name, as SQL that takes literals of any length.
    type_name: String,
    /// `COLLATE ...`, where it has a collation.
    collation: Option<String>,
}

impl PartitionKey {
    /// Name of the type of its first column: the only one where keys are mapped.
    pub fn type_name(&self) -> &str {
        self.columns.first().map_or("", |c| &c.type_name)
    }

    /// Name of a relation that is partitioned by such keys, the same for all keys of
    /// these types.
    pub fn relation(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.signature)
    }

    /// What makes that relation, after its name.
    pub fn definition(&self) -> String {
        let (mut columns, mut names) = (Vec::new(), Vec::new());
        for (number, Column { type_name, collation }) in (1..).zip(&self.columns) {
            columns.push(format!("key{number} {type_name} {}", collation.as_deref().unwrap_or("")));
            names.push(format!("key{number}"));
        }
        format!("({}) PARTITION BY HASH ({})", columns.join(", "), names.join(", "))
    }

    /// Its types, for people.
    pub fn types(&self) -> String {
        let types: Vec<&str> = self.columns.iter().map(|c| c.type_name.as_str()).collect();
        types.join(", ")
    }
}

/// Whether a row belongs to the partition of a shard; `relation` is quoted, `columns` are
/// SQL in the order of the key.
pub fn satisfies(
    relation: &str,
    shards: u32,
    shard: impl std::fmt::Display,
    columns: &str,
) -> String {
    format!(
        "pg_catalog.satisfies_hash_partition({}::pg_catalog.regclass, {shards}, {shard}, {columns})",
        literal(relation)
    )
}

/// What a server says of the sharding keys of tables (quoted names), in their order.
///
/// # Errors
/// The server's; 42703 where a table has no such column there.
pub async fn load(session: &Connection, keys: &[(String, &[String])]) -> Result<Vec<PartitionKey>> {
    let tables: Vec<&str> = keys.iter().map(|(table, _)| table.as_str()).collect();
    let columns: Vec<String> = keys
        .iter()
        .map(|(_, columns)| serde_json::to_string(columns))
        .collect::<std::result::Result<_, _>>()?;
    let rows = session
        .query(
            "SELECT t.nr, k.nr, format_type(a.atttypid, -1), \
                    (SELECT format('COLLATE %I.%I', n.nspname, l.collname) FROM pg_collation AS l \
                       JOIN pg_namespace AS n ON n.oid = l.collnamespace \
                      WHERE l.oid = a.attcollation), \
                    format('%s_%s', a.atttypid, a.attcollation) \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (name, key, nr) \
              CROSS JOIN LATERAL jsonb_array_elements_text(t.key::jsonb) WITH ORDINALITY \
                      AS k (name, nr) \
               JOIN pg_attribute AS a ON a.attrelid = to_regclass(t.name) AND a.attname = k.name \
                                     AND a.attnum > 0 AND NOT a.attisdropped",
            &[&tables, &columns],
        )
        .await?;
    let mut found = BTreeMap::new();
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: (i64, i64) = (row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?);
        let column = Column {
            type_name: row.try_get(2).map_err(get)?,
            collation: row.try_get(3).map_err(get)?,
        };
        let signature: String = row.try_get(4).map_err(get)?;
        found.insert(number, (column, signature));
    }
    let mut loaded = Vec::with_capacity(keys.len());
    for (number, (table, names)) in (1..).zip(keys) {
        let (mut columns, mut signatures) = (Vec::new(), Vec::new());
        for (place, name) in (1..).zip(names.iter()) {
            let (column, signature) =
                found.remove(&(number, place)).ok_or_else(|| missing(session, table, name))?;
            columns.push(column);
            signatures.push(signature);
        }
        loaded.push(PartitionKey { columns, signature: signature(&signatures) });
    }
    Ok(loaded)
}

/// Numbers of types and collations; a digest of them where that makes too long a name.
fn signature(columns: &[String]) -> String {
    let all = columns.join("_");
    // The longest prefix has 18 bytes.
    if all.len() + 18 <= LONGEST_NAME {
        return all;
    }
    // FNV-1a: https://www.rfc-editor.org/rfc/rfc9923
    let digest = all.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    format!("{}_columns_{digest:x}", columns.len())
}

fn missing(session: &Connection, table: &str, column: &str) -> Error {
    Error::new(
        Kind::Server("42703".to_owned()),
        format!("table {table} has no column {} on {}", ident(column), session.label()),
    )
    .hint("Its sharding key must be on all servers.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(types: &[(&str, Option<&str>)]) -> PartitionKey {
        let column = |(type_name, collation): &(&str, Option<&str>)| Column {
            type_name: (*type_name).to_owned(),
            collation: collation.map(str::to_owned),
        };
        PartitionKey { columns: types.iter().map(column).collect(), signature: "s".into() }
    }

    #[test]
    fn a_relation_is_partitioned_by_all_columns() {
        let key = key(&[("bigint", None), ("text", Some("COLLATE \"s\".\"c\""))]);
        assert_eq!(
            key.definition(),
            "(key1 bigint , key2 text COLLATE \"s\".\"c\") PARTITION BY HASH (key1, key2)"
        );
        assert_eq!(key.relation("placement_"), "placement_s");
        assert_eq!(key.types(), "bigint, text");
    }

    #[test]
    fn names_of_relations_fit() {
        assert_eq!(signature(&["20_0".to_owned(), "25_100".to_owned()]), "20_0_25_100");
        let columns: Vec<String> = (0..32).map(|i| format!("{}_0", 16_000 + i)).collect();
        let other: Vec<String> = columns.iter().rev().cloned().collect();
        assert!(signature(&columns).len() + 18 <= LONGEST_NAME);
        assert_ne!(signature(&columns), signature(&other));
    }

    #[test]
    fn a_placement_by_hash_is_that_of_partitions() {
        assert_eq!(
            satisfies("reshard.\"p\"", 4, 2, "\"a\", \"b\""),
            "pg_catalog.satisfies_hash_partition('reshard.\"p\"'::pg_catalog.regclass, 4, 2, \
             \"a\", \"b\")"
        );
    }
}
