//! What has to hold before writers are paused, apart from flows that answer.
use crate::cluster::Side;
use crate::error::{Error, Kind, Result};
use crate::remote::{Connection, Links};
use crate::state::table::Table;

/// Refuses a cutover while changes of someone else's subscription go into tables of
/// the migration on the cluster that is to be closed: an apply worker fires no
/// statement triggers, so the fence can't hold it.
///
/// # Errors
/// 55000 with the subscription and the tables; the servers'.
pub async fn no_other_subscription(links: &Links, side: Side, tables: &[Table]) -> Result<()> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    for (_, session) in links.sessions(side).await? {
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
