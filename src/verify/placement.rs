//! Where rows belong, as conditions that plain servers can check. They refer to empty
//! temporary tables, which go with their session.
use crate::cluster::ShardNo;
use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::Connection;

/// Makes the table that placements of a key refer to: hash-partitioned by a column of
/// the key's type and collation. Returns its name.
///
/// # Errors
/// 42703 where there is no such column; the server's.
pub(super) async fn parent(session: &Connection, table: &str, key: &str) -> Result<String> {
    let rows = session
        .query(
            "SELECT format('reshard_placement_%s_%s', a.atttypid, a.attcollation), \
                    format_type(a.atttypid, NULL), \
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
    let name: String = row.try_get(0).map_err(get)?;
    let type_name: String = row.try_get(1).map_err(get)?;
    let collation: Option<String> = row.try_get(2).map_err(get)?;
    let parent = format!("pg_temp.{}", ident(&name));
    session
        .batch(&format!(
            "CREATE TEMPORARY TABLE IF NOT EXISTS {} (key {type_name} {}) PARTITION BY HASH (key)",
            ident(&name),
            collation.unwrap_or_default()
        ))
        .await?;
    Ok(parent)
}

/// The condition that the value of an expression belongs to a shard.
pub(super) fn condition(parent: &str, shards: u32, shard: ShardNo, key: &str) -> String {
    format!(
        "pg_catalog.satisfies_hash_partition({}::pg_catalog.regclass, {shards}, {shard}, {key})",
        literal(parent)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_that_of_hash_partitions() {
        assert_eq!(
            condition("pg_temp.\"p\"", 4, ShardNo(2), "t.\"k\""),
            "pg_catalog.satisfies_hash_partition('pg_temp.\"p\"'::pg_catalog.regclass, 4, 2, t.\"k\")"
        );
    }
}
