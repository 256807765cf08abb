//! Removes everything that a migration made for replication, from every server
//! of both clusters. What is gone already is no error.
use futures::future::join_all;

use crate::cluster::Side;
use crate::error::Result;
use crate::remote::quote::{ident, literal};
use crate::remote::{Connection, Links};
use crate::replication::{marker, slot, subscription};

/// Drops subscriptions (with their origins), then slots, then publications and
/// markers whose names start with `prefix`. Each step is done on all servers that can be
/// reached, whatever becomes of others: a slot left there would keep WAL until the disk is
/// full.
///
/// # Errors
/// The first one of the servers', once everything has been tried; else that one can't be
/// reached.
pub async fn remove_flows(links: &Links, prefix: &str) -> Result<()> {
    let (nodes, missing_node) = links.reachable(Side::Source).await;
    let (shards, missing_shard) = links.reachable(Side::Destination).await;
    let all = || nodes.iter().chain(&shards).map(|(_, session)| session);
    let mut outcomes = join_all(all().map(|s| subscription::drop_prefix(s, prefix))).await;
    outcomes.extend(join_all(all().map(|s| slot::drop_prefix(s, prefix))).await);
    outcomes.extend(join_all(all().map(|s| drop_publications(s, prefix))).await);
    outcomes.extend(join_all(nodes.iter().map(|(_, s)| marker::forget(s, prefix))).await);
    outcomes.extend(missing_node.or(missing_shard).map(Err));
    outcomes.into_iter().collect()
}

/// Drops all publications whose name starts with `prefix`.
///
/// # Errors
/// The server's.
pub async fn drop_publications(session: &Connection, prefix: &str) -> Result<()> {
    let rows = session
        .query(
            "SELECT pubname::text FROM pg_publication \
              WHERE pg_catalog.starts_with(pubname::text, $1)",
            &[&prefix],
        )
        .await?;
    for row in rows {
        let name: String = row.try_get(0).map_err(|e| session.error(&e))?;
        session.batch(&format!("DROP PUBLICATION IF EXISTS {}", ident(&name))).await?;
    }
    Ok(())
}

/// Drops the placement tables of row filters that no publication refers to.
///
/// # Errors
/// The server's.
pub async fn drop_placements(session: &Connection) -> Result<()> {
    let rows = session
        .query(
            "SELECT c.relname::text FROM pg_class AS c \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'reshard' \
              WHERE c.relkind = 'p' AND c.relname ~ '^placement_' \
                AND NOT EXISTS (SELECT 1 FROM pg_depend AS d \
                                 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid \
                                   AND d.classid = 'pg_publication_rel'::regclass)",
            &[],
        )
        .await?;
    for row in rows {
        let name: String = row.try_get(0).map_err(|e| session.error(&e))?;
        let table = format!("reshard.{}", ident(&name));
        session
            .batch(&format!(
                "BEGIN; ALTER EXTENSION reshard DROP TABLE {table}; DROP TABLE {table}; COMMIT"
            ))
            .await?;
    }
    Ok(())
}

/// The comment on the helper schema of a shard, by which it is known.
pub const HELPERS: &str = "helper objects of a running resharding; dropped when it ends";

/// Drops the helper schema of a shard; leaves one alone that somebody else has made.
///
/// # Errors
/// The server's.
pub async fn drop_helpers(session: &Connection) -> Result<()> {
    session
        .batch(&format!(
            "SET client_min_messages = error; \
             DO $drop$ BEGIN \
                 IF EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = 'reshard' \
                               AND obj_description(n.oid, 'pg_namespace') = {}) THEN \
                     DROP SCHEMA reshard CASCADE; \
                 END IF; \
             END $drop$",
            literal(HELPERS)
        ))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_schema_is_made_with_the_comment_that_it_is_dropped_by() {
        let made = format!("COMMENT ON SCHEMA reshard IS {};", literal(HELPERS));
        let sql = include_str!("../../sql/shard.sql");
        assert!(sql.contains(&made));
        assert_eq!(sql.matches(HELPERS).count(), 2);
    }
}
