//! What has to hold before writers are paused, apart from flows that answer.
use std::collections::BTreeSet;

use futures::future::try_join_all;

use crate::cluster::{Direction, Side};
use crate::error::{Error, Kind, Result};
use crate::remote::quote::qualified;
use crate::remote::{Connection, Links};
use crate::replication::settle::{self, Place};
use crate::state::table::Table;

/// Refuses a cutover while changes of someone else's subscription go into tables of
/// the migration on the cluster that is to be closed: an apply worker fires no
/// statement triggers, so the fence can't hold it.
///
/// # Errors
/// 55000 with the subscription and the tables; the servers'.
pub async fn no_other_subscription(links: &Links, side: Side, tables: &[Table]) -> Result<()> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    for (_, session) in links.members(side).await? {
        if let Some((subscription, tables)) = other_subscription(&session, &names).await? {
            return Err(Error::new(
                Kind::WrongState,
                format!("subscription \"{subscription}\" writes to tables of the migration on {}", session.label()),
            )
            .detail(format!(
                "Its apply worker would go on writing to the closed cluster: no trigger holds it. Tables: {tables}."
            ))
            .hint(format!(
                "ALTER SUBSCRIPTION \"{}\" DISABLE; and let its publisher write to the active cluster.",
                subscription.replace('"', "\"\"")
            )));
        }
    }
    Ok(())
}

async fn other_subscription(
    session: &Connection,
    tables: &[String],
) -> Result<Option<(String, String)>> {
    let rows = session
        .query(
            "SELECT s.subname::text, string_agg(r.srrelid::regclass::text, ', ' ORDER BY 1) \
               FROM pg_subscription AS s \
               JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database() \
               JOIN pg_subscription_rel AS r ON r.srsubid = s.oid \
              WHERE s.subenabled AND s.subname !~ '^reshard_' \
                AND EXISTS (SELECT 1 FROM unnest($1::text[]) AS t \
                             WHERE to_regclass(t) = r.srrelid \
                                OR r.srrelid IN (SELECT a.relid FROM pg_partition_ancestors(to_regclass(t)) AS a)) \
              GROUP BY 1 ORDER BY 1 LIMIT 1",
            &[&tables],
        )
        .await?;
    let get = |e: tokio_postgres::Error| session.error(&e);
    match rows.first() {
        Some(row) => Ok(Some((row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?))),
        None => Ok(None),
    }
}

/// Refuses a cutover that would leave rows behind: of a table, or a partition, that
/// the publication covers, or that belongs to one of the tables on the cluster that
/// is to be closed, but that does not move. It has come since the migration began.
///
/// # Errors
/// 55000 with the tables; the servers'.
pub async fn no_table_left_behind(
    links: &Links,
    direction: Direction,
    publication: &str,
    tables: &[Table],
) -> Result<()> {
    let known: BTreeSet<String> = tables.iter().map(Table::qualified).collect();
    for (_, node) in links.sessions(Side::Source).await? {
        let published: BTreeSet<String> = names(&node, PUBLISHED, &publication).await?;
        let left = published.difference(&known).cloned().collect();
        refuse_left(node.label(), left)?;
    }
    if direction == Direction::Forward {
        return Ok(());
    }
    let node = links.session(Side::Source, links.node()).await?;
    let moving: Vec<&String> = known.iter().collect();
    for (_, session) in links.sessions(direction.publisher()).await? {
        let parts: BTreeSet<String> = names(&session, PARTS, &moving).await?;
        let unknown: Vec<&String> = parts.difference(&known).collect();
        // What the publication leaves out on the source as well was never to move.
        let left_out: BTreeSet<String> = names(&node, EXISTING, &unknown).await?;
        let left = unknown.into_iter().filter(|name| !left_out.contains(*name)).cloned().collect();
        refuse_left(session.label(), left)?;
    }
    Ok(())
}

/// Refuses to go on where somebody has taken the fence off since the switch began:
/// his writes would not be held.
///
/// # Errors
/// 55000 with the tables; the servers'.
pub async fn fence_is_whole(links: &Links, side: Side, tables: &[Table]) -> Result<()> {
    let stays = !links.cluster(Side::Destination).staying.is_empty();
    let place = Place { cluster: links.cluster(side), side, stays };
    try_join_all(links.members(side).await?.iter().map(|(_, session)| async move {
        let open = settle::unfenced(session, tables, place).await?;
        if open.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = open.into_iter().map(|(name, _)| name).collect();
        Err(Error::state(format!("tables on {} have lost their fence", session.label()))
            .detail(format!(
                "Trigger \"{}\" was dropped or disabled while the cutover was under way: {}.",
                settle::FENCE_TRIGGER,
                names.join(", ")
            ))
            .hint("The next cutover puts it back: call reshard_cutover() again."))
    }))
    .await
    .map(drop)
}

/// Tables whose rows publication $1 covers.
const PUBLISHED: &str = "SELECT n.nspname::text, c.relname::text \
       FROM reshard.published_leaves($1) AS l \
       JOIN pg_class AS c ON c.oid = l.relation \
       JOIN pg_namespace AS n ON n.oid = c.relnamespace";

/// Tables that hold rows of the tables $1 or of what these are parts of.
const PARTS: &str = "WITH RECURSIVE above (oid) AS ( \
         SELECT to_regclass(t)::oid FROM unnest($1::text[]) AS t \
         UNION SELECT i.inhparent FROM above AS a JOIN pg_inherits AS i ON i.inhrelid = a.oid), \
     part (oid) AS ( \
         SELECT oid FROM above \
         UNION SELECT i.inhrelid FROM part AS p JOIN pg_inherits AS i ON i.inhparent = p.oid) \
     SELECT n.nspname::text, c.relname::text \
       FROM part JOIN pg_class AS c ON c.oid = part.oid AND c.relkind = 'r' \
       JOIN pg_namespace AS n ON n.oid = c.relnamespace";

/// Those of the tables $1 that exist.
const EXISTING: &str = "SELECT n.nspname::text, c.relname::text \
       FROM unnest($1::text[]) AS t JOIN pg_class AS c ON c.oid = to_regclass(t) \
       JOIN pg_namespace AS n ON n.oid = c.relnamespace";

async fn names(
    session: &Connection,
    sql: &str,
    argument: &(dyn tokio_postgres::types::ToSql + Sync),
) -> Result<BTreeSet<String>> {
    let rows = session.query(sql, &[argument]).await?;
    rows.iter()
        .map(|row| {
            let get = |e: tokio_postgres::Error| session.error(&e);
            Ok(qualified(row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?))
        })
        .collect()
}

fn refuse_left(server: &str, tables: Vec<String>) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    Err(Error::state(format!("tables on {server} would be left behind"))
        .detail(format!(
            "They belong to the tables of the migration, but have come since it began, so their \
             rows have not moved: {}.",
            tables.join(", ")
        ))
        .hint(
            "Move their rows to tables of the migration and drop them, detach them (ALTER TABLE ... \
             DETACH PARTITION), or take them out of the publication.",
        ))
}
