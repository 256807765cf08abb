//! Tables that each shard of the source has whole: the rows of each come from one of
//! them alone, so the other copies have to be equal to its.
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::rule::listed;
use crate::error::{Kind, Result};
use crate::preflight::facts::{Facts, Table};
use crate::preflight::finding::Finding;
use crate::preflight::gather::TIMEOUT;
use crate::preflight::sample;
use crate::remote::quote::{ident, literal, qualified};
use crate::remote::{Connection, Endpoint};
use crate::state::options::OmniCheck;

/// How often copies are compared before they count as different: somebody may be
/// writing to all of them just then.
const LOOKS: usize = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Rows of a copy that a sample has at most.
const SAMPLE: i64 = 1_000;

/// Compares the copies of the tables of `nodes` without a sharding key. Whole tables are
/// read as long as it takes: who waits for it can cancel.
///
/// # Errors
/// The servers'.
pub async fn gather(
    check: OmniCheck,
    tables: &[Table],
    here: &Connection,
    others: &[(Endpoint, Connection)],
) -> Result<Vec<(Endpoint, String)>> {
    let sessions = || std::iter::once(here).chain(others.iter().map(|(_, session)| session));
    try_join_all(sessions().map(|s| s.batch("SET statement_timeout = 0"))).await?;
    let mut unequal = Vec::new();
    for table in tables.iter().filter(|t| t.key.is_none()) {
        let mut differing: Vec<&(Endpoint, Connection)> = others.iter().collect();
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            differing = match check {
                OmniCheck::Whole => whole(table, here, differing).await?,
                OmniCheck::Sample => sampled(table, here, differing).await?,
            };
            if differing.is_empty() {
                break;
            }
        }
        let name = qualified(&table.schema_name, &table.table_name);
        unequal.extend(differing.into_iter().map(|(endpoint, _)| (endpoint.clone(), name.clone())));
    }
    try_join_all(sessions().map(|s| s.batch(TIMEOUT))).await?;
    Ok(unequal)
}

/// What stands for a row `t`: the columns that move.
fn hash(table: &Table) -> String {
    format!("hashtextextended(ROW({})::text, 0)", listed(&table.published, "t."))
}

/// The rows that move.
fn filter(table: &Table) -> String {
    table.row_filter.as_ref().map_or("true".to_owned(), |filter| format!("({filter})"))
}

/// Those whose rows, all together, aren't those of this database.
async fn whole<'a>(
    table: &Table,
    here: &Connection,
    others: Vec<&'a (Endpoint, Connection)>,
) -> Result<Vec<&'a (Endpoint, Connection)>> {
    let sql = format!(
        "SELECT count(*) || '/' || coalesce(sum({}::numeric), 0) FROM ONLY {} AS t WHERE {}",
        hash(table),
        qualified(&table.schema_name, &table.table_name),
        filter(table)
    );
    let sql = sql.as_str();
    let theirs =
        try_join_all(others.iter().map(|(_, there)| async move {
            unless_missing(there.value::<String>(sql, &[]).await)
        }));
    let (ours, theirs) = futures::try_join!(here.value::<String>(sql, &[]), theirs)?;
    let differs = |theirs: &Option<String>| theirs.as_ref().is_some_and(|theirs| *theirs != ours);
    Ok(others.into_iter().zip(theirs).filter(|(_, t)| differs(t)).map(|(other, _)| other).collect())
}

/// Those that lack rows of a sample from this database, or have others that it lacks.
/// Without a primary key that moves rows can't be found again: such a table is compared
/// whole.
async fn sampled<'a>(
    table: &Table,
    here: &Connection,
    others: Vec<&'a (Endpoint, Connection)>,
) -> Result<Vec<&'a (Endpoint, Connection)>> {
    let Some(search) = Search::of(table, here).await? else {
        return whole(table, here, others).await;
    };
    let ours: String = here.value(&search.rows, &[]).await?;
    let (search, ours) = (&search, &ours);
    let missing = try_join_all(others.iter().map(|(_, there)| async move {
        let there_lacks = unless_missing(there.value::<bool>(&search.lacks, &[ours]).await)?;
        match there_lacks {
            Some(false) => {
                let theirs: String = there.value(&search.rows, &[]).await?;
                here.value::<bool>(&search.lacks, &[&theirs]).await
            }
            found => Ok(found == Some(true)),
        }
    }))
    .await?;
    Ok(others
        .into_iter()
        .zip(missing)
        .filter(|(_, lacks)| *lacks)
        .map(|(other, _)| other)
        .collect())
}

/// The two questions of a sample.
struct Search {
    /// A sample of rows by primary key, with their hashes: one JSON array.
    rows: String,
    /// Whether one of the rows $1 of such a sample is missing, or another.
    lacks: String,
}

impl Search {
    /// None for a table without a primary key that moves.
    async fn of(table: &Table, here: &Connection) -> Result<Option<Self>> {
        if !table.publishes_primary_key {
            return Ok(None);
        }
        let key = here
            .query(
                "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) \
                   FROM pg_index AS i \
                   JOIN pg_attribute AS a ON a.attrelid = i.indrelid \
                    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
                  WHERE i.indrelid = $1::bigint::oid AND i.indisprimary",
                &[&table.oid],
            )
            .await?;
        let mut values = Vec::new();
        let mut columns = Vec::new();
        let mut same = Vec::new();
        for (place, row) in key.iter().enumerate() {
            let get = |e: tokio_postgres::Error| here.error(&e);
            let name: String = row.try_get(0).map_err(get)?;
            let type_name: String = row.try_get(1).map_err(get)?;
            values.push(format!("{}, t.{}", literal(&format!("k{place}")), ident(&name)));
            columns.push(format!("k{place} {type_name}"));
            same.push(format!("t.{} = s.k{place}", ident(&name)));
        }
        if key.is_empty() {
            return Ok(None);
        }
        let name = qualified(&table.schema_name, &table.table_name);
        let (hash, filter) = (format!("{}::text", hash(table)), filter(table));
        Ok(Some(Self {
            rows: format!(
                "SELECT coalesce(jsonb_agg(jsonb_build_object({}, 'hash', {hash})), '[]')::text \
                   FROM (SELECT * FROM ONLY {name} AS t {} WHERE {filter} LIMIT {SAMPLE}) AS t",
                values.join(", "),
                sample::of_rows(table),
            ),
            lacks: format!(
                "SELECT EXISTS (SELECT FROM jsonb_to_recordset($1::text::jsonb) AS s ({}, hash text) \
                                WHERE NOT EXISTS (SELECT FROM ONLY {name} AS t \
                                                   WHERE {} AND {hash} = s.hash AND {filter}))",
                columns.join(", "),
                same.join(" AND "),
            ),
        }))
    }
}

/// What is missing there is found by comparing the tables' parts.
fn unless_missing<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if matches!(error.sqlstate(), "42P01" | "3F000" | "42703") => Ok(None),
        other => other.map(Some),
    }
}

/// Tables that each shard of the source has whole are equal on all.
pub fn node_omni_tables(facts: &Facts<'_>) -> Vec<Finding> {
    let unequal = facts.nodes.iter().flat_map(|nodes| &nodes.unequal);
    unequal
        .map(|(endpoint, table)| {
            Finding::error(
                "node_omni_tables",
                Kind::WrongState,
                format!("table {table} is not the same on {endpoint} as here"),
            )
            .object(table.clone())
            .detail(format!(
                "It has no sharding key of cluster \"{}\", so that its rows come from one of its \
                 shards alone: other rows would be lost.",
                facts.source.name
            ))
            .hint("Declare its sharding key, or make it the same on all shards of the source.")
        })
        .collect()
}
