//! Row filters: what a publication says about a table's sharding key, so that a
//! subscriber gets the rows that are placed on it.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{Cluster, KeyMap, KeySql, Placement, ShardNo, Side};
use crate::error::{Error, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;
use crate::state::table::Table;

/// The placement of one table's rows, as one publisher can say it.
#[derive(Debug, Clone)]
pub enum Filter {
    /// By hash: a relation whose partitioning is the placement.
    Hash {
        /// The key column.
        column: String,
        /// The relation.
        parent: String,
        /// Number of subscribers.
        shards: u32,
    },
    /// By what its keys are mapped to.
    Mapped {
        /// The key column.
        column: String,
        /// Name of its type.
        type_name: String,
        /// The mapping.
        map: Arc<KeyMap>,
    },
}

impl Filter {
    /// The condition for the rows of one subscriber.
    pub fn condition(&self, subscriber: ShardNo) -> String {
        match self {
            Self::Hash { column, parent, shards } => format!(
                "pg_catalog.satisfies_hash_partition({}::pg_catalog.regclass, {shards}, \
                 {subscriber}, {})",
                literal(parent),
                ident(column)
            ),
            Self::Mapped { column, type_name, map } => {
                map.takes(subscriber, KeySql { expression: &ident(column), type_name })
            }
        }
    }
}

/// Row filters of tables on one publisher, by the table's number. Tables whose rows
/// all go to every subscriber have none.
pub type Filters = BTreeMap<i32, Filter>;

/// Those of each publisher: they hold names of types and relations there.
pub type FiltersOf = BTreeMap<ShardNo, Filters>;

/// The row filters of one publisher.
///
/// # Errors
/// XX000 where they are not known.
pub fn of_publisher(filters: &FiltersOf, shard: ShardNo) -> Result<&Filters> {
    filters
        .get(&shard)
        .ok_or_else(|| Error::internal(format!("no placement is known on shard {shard}")))
}

/// A key column as a server has it.
#[derive(Debug, Clone)]
pub(super) struct KeyColumn {
    /// Its type's name, as SQL that takes literals of any length.
    pub(super) type_name: String,
    /// Names a relation that is partitioned by such keys.
    parent: String,
    /// `COLLATE ...`, where it has a collation.
    collation: Option<String>,
}

/// What a server says of key columns, in their order.
///
/// # Errors
/// The server's; 42703 where a table has no such column there.
pub(super) async fn key_columns(
    session: &Connection,
    keys: &[(&Table, &str)],
) -> Result<Vec<KeyColumn>> {
    let names: Vec<String> = keys.iter().map(|(t, _)| t.qualified()).collect();
    let columns: Vec<&str> = keys.iter().map(|(_, key)| *key).collect();
    let rows = session
        .query(
            "SELECT t.nr, format('placement_%s_%s', a.atttypid, a.attcollation), \
                    format_type(a.atttypid, -1), \
                    (SELECT format('COLLATE %I.%I', n.nspname, l.collname) FROM pg_collation AS l \
                       JOIN pg_namespace AS n ON n.oid = l.collnamespace \
                      WHERE l.oid = a.attcollation) \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (name, key, nr) \
               JOIN pg_attribute AS a ON a.attrelid = to_regclass(t.name) AND a.attname = t.key \
              ORDER BY t.nr",
            &[&names, &columns],
        )
        .await?;
    let mut found = BTreeMap::new();
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let number: i64 = row.try_get(0).map_err(get)?;
        let parent: String = row.try_get(1).map_err(get)?;
        let key = KeyColumn {
            type_name: row.try_get(2).map_err(get)?,
            parent: format!("reshard.{}", ident(&parent)),
            collation: row.try_get(3).map_err(get)?,
        };
        found.insert(number, key);
    }
    (1..)
        .zip(keys)
        .map(|(number, (table, column))| {
            found.remove(&number).ok_or_else(|| {
                Error::new(
                    crate::error::Kind::Server("42703".to_owned()),
                    format!(
                        "table {} has no column \"{column}\" on {}",
                        table.qualified(),
                        session.label()
                    ),
                )
                .hint("Its sharding key must be on all servers.")
            })
        })
        .collect()
}

/// The row filters that send rows of tables to the shards of a cluster, for a
/// publisher of side `here`.
///
/// Makes the small hash-partitioned tables that placements by hash refer to, one per type
/// of key, as part of the extension where it is: a row filter may use
/// `satisfies_hash_partition`, since it is a built-in immutable function, but it asks for a
/// table partitioned by the key's type.
///
/// # Errors
/// The server's; as [`key_columns`].
pub async fn filters(
    session: &Connection,
    here: Side,
    tables: &[Table],
    to: Side,
    cluster: &Cluster,
) -> Result<Filters> {
    let mut placed: Vec<(&Table, &str, Placement)> = Vec::new();
    for table in tables {
        let key = table.sharding_key(to);
        let placement = cluster.placement(key);
        if let (Some((column, _)), true) = (key, placement != Placement::All) {
            placed.push((table, column, placement));
        }
    }
    let keys: Vec<(&Table, &str)> = placed.iter().map(|(t, column, _)| (*t, *column)).collect();
    let columns = key_columns(session, &keys).await?;
    let mut made = BTreeSet::new();
    let mut filters = Filters::new();
    for ((table, column, placement), key) in placed.into_iter().zip(columns) {
        let column = column.to_owned();
        let filter = match placement {
            Placement::All => continue,
            Placement::Mapped(map) => Filter::Mapped { column, type_name: key.type_name, map },
            Placement::Hash { shards } => {
                if made.insert(key.parent.clone()) {
                    make_parent(session, &key, here).await?;
                }
                Filter::Hash { column, parent: key.parent, shards }
            }
        };
        filters.insert(table.table_id, filter);
    }
    Ok(filters)
}

async fn make_parent(session: &Connection, key: &KeyColumn, here: Side) -> Result<()> {
    let KeyColumn { type_name, parent, collation } = key;
    let exists: bool = session.value("SELECT to_regclass($1) IS NOT NULL", &[&parent]).await?;
    if exists {
        return Ok(());
    }
    let belongs = match here {
        Side::Source => format!("ALTER EXTENSION reshard ADD TABLE {parent};"),
        Side::Destination => String::new(),
    };
    session
        .batch(&format!(
            "BEGIN; CREATE TABLE {parent} (key {type_name} {}) PARTITION BY HASH (key); \
             COMMENT ON TABLE {parent} IS 'placement by hash of {}; row filters refer to it'; \
             {belongs} COMMIT",
            collation.as_deref().unwrap_or(""),
            type_name.replace('\'', "''"),
        ))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::keymap::{Keys, Value};

    #[test]
    fn a_filter_is_the_subscribers_placement() {
        let hash = Filter::Hash { column: "k".into(), parent: "reshard.\"p\"".into(), shards: 4 };
        assert_eq!(
            hash.condition(ShardNo(2)),
            "pg_catalog.satisfies_hash_partition('reshard.\"p\"'::pg_catalog.regclass, 4, 2, \"k\")"
        );
        let map = KeyMap {
            keys: Keys::Values(vec![Value { key: "7".into(), shard: ShardNo(1) }]),
            null: None,
            default: Some(ShardNo(0)),
        };
        let mapped =
            Filter::Mapped { column: "k".into(), type_name: "bigint".into(), map: Arc::new(map) };
        assert_eq!(
            mapped.condition(ShardNo(0)),
            "(\"k\" IS NULL OR NOT (\"k\" OPERATOR(pg_catalog.=) ANY ('{\"7\"}'::bigint[])))"
        );
    }
}
