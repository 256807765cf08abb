//! Rows that come to shards which are in both clusters: before the switch they are there
//! beside those of the source.
use futures::future::try_join_all;

use crate::cluster::{ShardNo, Side};
use crate::copy;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::transaction;
use crate::remote::{end_sessions, Connection, Purpose};
use crate::replication::staying;
use crate::state::table::Table;
use crate::state::wave;
use crate::worker::migration::Migration;

/// Refuses to begin while such a shard has rows that are another shard's on the source: they
/// could not be told from those that come. The guard keeps new ones out.
///
/// # Errors
/// 23514 with the table and the shard; the servers'.
pub async fn refuse_strays(migration: &Migration, tables: &[Table]) -> Result<()> {
    if !transaction(|| wave::load(migration.id()))?.is_empty() {
        return Ok(());
    }
    each(migration, |shard, session| async move {
        let links = &migration.links;
        for (table, condition) in
            staying::not_own(&session, links, Side::Source, shard, tables).await?
        {
            let name = table.qualified();
            let found: bool = session
                .value(
                    &format!("SELECT EXISTS (SELECT FROM ONLY {name} AS t WHERE {condition})"),
                    &[],
                )
                .await?;
            if found {
                return Err(Error::new(
                    Kind::Server("23514".to_owned()),
                    format!("table {name} on {} has rows of other shards", session.label()),
                )
                .detail(format!(
                    "By the sharding key of cluster \"{}\" they belong elsewhere; rows come to this \
                     shard, and could not be told from them.",
                    links.cluster(Side::Source).name
                ))
                .hint("Move them to the shards that their keys name, as reshard_shard_for() tells."));
            }
        }
        Ok(())
    })
    .await
}

/// Deletes what has been copied of tables to such shards, for another copy.
///
/// # Errors
/// The servers'.
pub async fn empty(migration: &Migration, tables: &[Table]) -> Result<()> {
    each(migration, |shard, session| async move {
        end_sessions(&session, Purpose::Copy).await?;
        let (links, id) = (&migration.links, migration.id());
        let arrived = staying::not_own(&session, links, Side::Source, shard, tables).await?;
        for (table, condition) in arrived {
            let owner = (migration.token.as_str(), id);
            copy::remove_arrivals(&session, owner, table, &condition).await?;
        }
        Ok(())
    })
    .await
}

/// Does the same on all such shards, where rows come to them.
async fn each<Fut>(
    migration: &Migration,
    work: impl Fn((ShardNo, ShardNo), std::rc::Rc<Connection>) -> Fut,
) -> Result<()>
where
    Fut: std::future::Future<Output = Result<()>>,
{
    let (links, work) = (&migration.links, &work);
    let staying = &links.cluster(Side::Destination).staying;
    let shards = staying.shards.iter().filter(|_| staying.receive);
    try_join_all(shards.map(|(shard, node)| async move {
        work((*shard, *node), links.session(Side::Source, *node).await?).await
    }))
    .await
    .map(drop)
}
