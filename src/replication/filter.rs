//! Row filters: what a publication says about a table's sharding key, so that a
//! subscriber gets the rows that are placed on it.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::rule::listed;
use crate::cluster::{Cluster, KeyMap, KeySql, Placement, ShardNo, ShardingKey, Side};
use crate::error::{Error, Result};
use crate::remote::partition_key::{self, satisfies, PartitionKey};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;
use crate::state::table::Table;

/// The placement of one table's rows, as one publisher can say it.
#[derive(Debug, Clone)]
pub enum Filter {
    /// By hash: a relation whose partitioning is the placement.
    Hash {
        /// The key's columns, in their order.
        columns: Vec<String>,
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
        self.condition_over(subscriber, "")
    }

    /// The condition for the rows of one subscriber; `qualifier` goes before each column.
    pub fn condition_over(&self, subscriber: ShardNo, qualifier: &str) -> String {
        match self {
            Self::Hash { columns, parent, shards } => {
                satisfies(parent, *shards, subscriber, &listed(columns, qualifier))
            }
            Self::Mapped { column, type_name, map } => {
                let expression = format!("{qualifier}{}", ident(column));
                map.takes(subscriber, KeySql { expression: &expression, type_name })
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

/// The row filters that send rows of tables to the shards of a cluster, for a
/// publisher of side `here`.
///
/// Makes the small hash-partitioned tables that placements by hash refer to, one for each
/// combination of types of a key, as part of the extension where it is.
///
/// # Errors
/// The server's; as [`partition_key::load`].
pub async fn filters(
    session: &Connection,
    here: Side,
    tables: &[Table],
    to: Side,
    cluster: &Cluster,
) -> Result<Filters> {
    let mut placed: Vec<(&Table, ShardingKey<'_>, Placement)> = Vec::new();
    for table in tables {
        let Some(key) = table.sharding_key(to) else { continue };
        let placement = cluster.placement(Some(key));
        if placement != Placement::All {
            placed.push((table, key, placement));
        }
    }
    let wanted: Vec<(String, &[String])> =
        placed.iter().map(|(table, key, _)| (table.qualified(), key.columns)).collect();
    let found = partition_key::load(session, &wanted).await?;
    let mut made = BTreeSet::new();
    let mut filters = Filters::new();
    for ((table, key, placement), partition_key) in placed.into_iter().zip(found) {
        let filter = match placement {
            Placement::All => continue,
            Placement::Mapped(map) => Filter::Mapped {
                column: key.single().unwrap_or_default().to_owned(),
                type_name: partition_key.type_name().to_owned(),
                map,
            },
            Placement::Hash { shards } => {
                let parent = format!("reshard.{}", ident(&partition_key.relation("placement_")));
                if made.insert(parent.clone()) {
                    make_parent(session, &partition_key, &parent, here).await?;
                }
                Filter::Hash { columns: key.columns.to_vec(), parent, shards }
            }
        };
        filters.insert(table.table_id, filter);
    }
    Ok(filters)
}

async fn make_parent(
    session: &Connection,
    key: &PartitionKey,
    parent: &str,
    here: Side,
) -> Result<()> {
    let exists: bool = session.value("SELECT to_regclass($1) IS NOT NULL", &[&parent]).await?;
    if exists {
        return Ok(());
    }
    let belongs = match here {
        Side::Source => format!("ALTER EXTENSION reshard ADD TABLE {parent};"),
        Side::Destination => String::new(),
    };
    let comment = format!("placement by hash of {}; row filters refer to it", key.types());
    session
        .batch(&format!(
            "BEGIN; CREATE TABLE {parent} {}; COMMENT ON TABLE {parent} IS {}; {belongs} COMMIT",
            key.definition(),
            literal(&comment),
        ))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::keymap::{Keys, Value};

    #[test]
    fn a_filter_is_the_subscribers_placement() {
        let hash = Filter::Hash {
            columns: vec!["k".into(), "K".into()],
            parent: "reshard.\"p\"".into(),
            shards: 4,
        };
        assert_eq!(
            hash.condition(ShardNo(2)),
            "pg_catalog.satisfies_hash_partition('reshard.\"p\"'::pg_catalog.regclass, 4, 2, \
             \"k\", \"K\")"
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
