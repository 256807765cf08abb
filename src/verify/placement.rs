//! Where rows belong, as conditions that plain servers can check. Those by hash refer to
//! empty temporary tables, which go with their session.
use crate::cluster::{KeySql, Placement, ShardNo};
use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;

/// The conditions that a row `t` of a table belongs to each of `shards` shards.
///
/// # Errors
/// 42703 where the key is no column of the table; the server's.
pub(super) async fn conditions(
    session: &Connection,
    table: &str,
    key: &str,
    placement: &Placement,
    shards: u32,
) -> Result<Vec<String>> {
    let rows = session
        .query(
            "SELECT format('reshard_placement_%s_%s', a.atttypid, a.attcollation), \
                    format_type(a.atttypid, -1), \
                    (SELECT format('COLLATE %I.%I', n.nspname, l.collname) FROM pg_collation AS l \
                       JOIN pg_namespace AS n ON n.oid = l.collnamespace \
                      WHERE l.oid = a.attcollation) \
               FROM pg_attribute AS a \
              WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped",
            &[&table, &key],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Err(Error::new(
            Kind::Server("42703".to_owned()),
            format!("column {} of table {table} does not exist on {}", ident(key), session.label()),
        ));
    };
    let get = |e: tokio_postgres::Error| session.error(&e);
    let parent: String = row.try_get(0).map_err(get)?;
    let type_name: String = row.try_get(1).map_err(get)?;
    let collation: Option<String> = row.try_get(2).map_err(get)?;
    let expression = format!("t.{}", ident(key));
    if matches!(placement, Placement::Hash { .. }) {
        session
            .batch(&format!(
                "CREATE TEMPORARY TABLE IF NOT EXISTS {} (key {type_name} {}) PARTITION BY HASH (key)",
                ident(&parent),
                collation.unwrap_or_default()
            ))
            .await?;
    }
    Ok((0..shards)
        .map(ShardNo)
        .map(|shard| match placement {
            Placement::All => "true".to_owned(),
            Placement::Hash { shards } => hash(&parent, *shards, shard, &expression),
            Placement::Mapped(map) => {
                map.takes(shard, KeySql { expression: &expression, type_name: &type_name })
            }
        })
        .collect())
}

fn hash(parent: &str, shards: u32, shard: ShardNo, key: &str) -> String {
    format!(
        "pg_catalog.satisfies_hash_partition({}::pg_catalog.regclass, {shards}, {shard}, {key})",
        literal(&format!("pg_temp.{}", ident(parent)))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_by_hash_is_that_of_partitions() {
        assert_eq!(
            hash("p", 4, ShardNo(2), "t.\"k\""),
            "pg_catalog.satisfies_hash_partition('pg_temp.\"p\"'::pg_catalog.regclass, 4, 2, t.\"k\")"
        );
    }
}
