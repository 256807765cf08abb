//! Where rows belong, as conditions that plain servers can check. Those by hash refer to
//! empty temporary tables, which go with their session.
use crate::cluster::rule::listed;
use crate::cluster::{KeySql, Placement, ShardNo};
use crate::error::{Error, Result};
use crate::remote::partition_key::{self, satisfies};
use crate::remote::quote::ident;
use crate::remote::Connection;

/// The conditions that a row `t` of a table belongs to each of `shards` shards.
///
/// # Errors
/// 42703 where the key is no column of the table; the server's.
pub(super) async fn conditions(
    session: &Connection,
    table: &str,
    columns: &[String],
    placement: &Placement,
    shards: u32,
) -> Result<Vec<String>> {
    let loaded = partition_key::load(session, &[(table.to_owned(), columns)]).await?;
    let Some(key) = loaded.first() else {
        return Err(Error::internal("a sharding key is not known"));
    };
    let relation = ident(&key.relation("reshard_placement_"));
    let expression = listed(columns, "t.");
    if matches!(placement, Placement::Hash { .. }) {
        session
            .batch(&format!("CREATE TEMPORARY TABLE IF NOT EXISTS {relation} {}", key.definition()))
            .await?;
    }
    let relation = format!("pg_temp.{relation}");
    Ok((0..shards)
        .map(ShardNo)
        .map(|shard| match placement {
            Placement::All => "true".to_owned(),
            Placement::Hash { shards } => satisfies(&relation, *shards, shard, &expression),
            Placement::Mapped(map) => {
                map.takes(shard, KeySql { expression: &expression, type_name: key.type_name() })
            }
        })
        .collect())
}
