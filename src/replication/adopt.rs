//! A table that comes up while changes flow: it joins them in the transaction of its
//! DDL, so that whatever is written to it flows from the first row on.
//!
//! Runs in a backend of the source, through SPI, as part of a user's transaction:
//! all of it is undone with that. What the shards have to do is a text, which
//! travels in the stream of changes before the first row.
use serde::Deserialize;

use crate::cluster::{Cluster, Direction, Side};
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::remote::quote::{ident, literal};
use crate::replication::publication::member_where;
use crate::replication::settle::{self, Place};
use crate::state::flow::{object_prefix, Flow};
use crate::state::table::Table;
use crate::state::{flow, task::Task};

/// What the catalogs and the state tables say about the new table.
#[derive(Deserialize)]
struct Facts {
    table: Table,
    /// Its rows can't go the binary way, which the flows take.
    unfit_for_binary: bool,
    /// Whole rows can't be its identity: not all of them is published.
    full_refused: bool,
    /// Columns of types without equality.
    incomparable: Vec<String>,
    primary_key: Vec<String>,
}

/// A table whose flows the new one joins, with the same row filters.
#[derive(Deserialize)]
struct Model {
    wave: i32,
    relation: i64,
}

/// Has a table that [`crate::copy::plan`] has listed take part in a migration's
/// flows; the statements for the shards. `None` where that can't be done, empty
/// where the table has no rows of its own.
///
/// # Errors
/// SPI's; an ERROR of the server is raised.
pub fn adopt(
    task: &Task,
    token: &str,
    source: &Cluster,
    destination: &Cluster,
    relation: i64,
) -> Result<Option<String>> {
    let Some(facts) = facts(task.id, relation)? else { return Ok(Some(String::new())) };
    let table = &facts.table;
    // Where keys are mapped it would need a guard as well.
    let is_mapped = table.sharding_key(Side::Destination).is_some_and(|key| key.method.is_mapped());
    if is_mapped {
        return Ok(None);
    }
    let filtered = table.is_sharded(Side::Destination) && destination.size() > 1;
    let Some(model) = model(task.id, relation, filtered)? else { return Ok(None) };
    let key = table.filtered_by(if filtered { &[Side::Destination] } else { &[] });
    let finds_rows =
        !facts.primary_key.is_empty() && key.iter().all(|c| facts.primary_key.contains(c));
    let is_searched = facts.primary_key.is_empty();
    if facts.unfit_for_binary
        || facts.full_refused && !finds_rows
        || is_searched && !facts.incomparable.is_empty()
    {
        return Ok(None);
    }
    let flows: Vec<Flow> = flow::load_direction(task.id, Direction::Forward)?
        .into_iter()
        .filter(|f| f.wave == model.wave)
        .collect();

    let name = table.qualified();
    let stays = !destination.staying.is_empty();
    let here = Place { cluster: source, side: Side::Source, stays };
    let mut statements = Vec::new();
    if !finds_rows {
        statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
    } else if !key.is_empty() {
        statements.extend(settle::detoast_statements(&name, here, &key));
    }
    for flow in &flows {
        let mut conditions: Vec<String> = table.row_filter.iter().cloned().collect();
        if filtered {
            conditions.push(filter(flow, model.relation)?);
        }
        statements.push(format!(
            "ALTER PUBLICATION {} ADD {}",
            ident(&flow.publication_name),
            member_where(table, conditions)
        ));
    }
    statements.extend(settle::fence_statements(&name, here, here.has_parts_of(table)));
    unguarded(&statements)?;
    db::execute(
        "UPDATE reshard.copy_table SET wave = $3, status = 'ready', \
                started_at = pg_catalog.clock_timestamp(), finished_at = pg_catalog.clock_timestamp() \
          WHERE task_id = $1 AND table_id = $2",
        &[Arg::I64(task.id), Arg::I32(table.table_id), Arg::I32(model.wave)],
    )?;
    let prefix = format!("{}f{}_", object_prefix(token, task.id), model.wave);
    Ok(Some(on_shards(&facts, destination, &prefix)))
}

/// What the shards do about the table once they have it.
fn on_shards(facts: &Facts, destination: &Cluster, subscriptions: &str) -> String {
    let name = facts.table.qualified();
    let stays = !destination.staying.is_empty();
    let there = Place { cluster: destination, side: Side::Destination, stays };
    let mut statements = settle::fence_statements(&name, there, there.has_parts_of(&facts.table));
    if facts.primary_key.is_empty() {
        statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
    }
    // ALTER SUBSCRIPTION ... REFRESH can't run in an apply worker. Without this row
    // the table's changes would be passed over; 'r' is SUBREL_STATE_READY.
    statements.push(format!(
        "INSERT INTO pg_catalog.pg_subscription_rel (srsubid, srrelid, srsubstate) \
         SELECT s.oid, {0}::pg_catalog.regclass, 'r' FROM pg_catalog.pg_subscription AS s \
           JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid \
          WHERE d.datname = pg_catalog.current_database() \
            AND pg_catalog.starts_with(s.subname::text, {1}) \
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_subscription_rel AS r \
                             WHERE r.srsubid = s.oid AND r.srrelid = {0}::pg_catalog.regclass)",
        literal(&name),
        literal(subscriptions)
    ));
    statements.join(";\n")
}

/// The new table; none where it is not listed. Not read-only: the rows are of this
/// very command.
fn facts(task: i64, relation: i64) -> Result<Option<Facts>> {
    db::row(
        "WITH own AS ( \
             SELECT * FROM reshard.copy_table WHERE task_id = $1 AND relation::bigint = $2) \
         SELECT pg_catalog.jsonb_build_object( \
             'table', pg_catalog.to_jsonb(t), \
             'unfit_for_binary', t.format <> 'binary' AND NOT EXISTS ( \
                 SELECT FROM reshard.copy_table AS o \
                  WHERE o.task_id = $1 AND o.format <> 'binary' AND o.table_id <> t.table_id), \
             'full_refused', t.column_list \
                 OR pg_catalog.current_setting('server_version_num')::int >= 180000 \
                    AND EXISTS (SELECT FROM pg_catalog.pg_attribute AS a \
                                 WHERE a.attrelid = t.relation AND a.attgenerated = 's'), \
             'incomparable', reshard.incomparable_columns(t.relation, t.columns), \
             'primary_key', coalesce(( \
                 SELECT pg_catalog.jsonb_agg(a.attname) \
                   FROM pg_catalog.pg_index AS i \
                   JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid \
                    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
                  WHERE i.indrelid = t.relation AND i.indisprimary AND i.indimmediate), '[]')) \
           FROM own AS t",
        &[Arg::I64(task), Arg::I64(relation)],
    )
}

/// The latest wave, and in it where rows are filtered a table with the same sharding
/// key.
fn model(task: i64, relation: i64, filtered: bool) -> Result<Option<Model>> {
    db::row(
        "WITH own AS ( \
             SELECT t.key_columns, k.types FROM reshard.copy_table AS t \
              CROSS JOIN LATERAL reshard.key_types(t.relation, t.key_columns) AS k (types) \
              WHERE t.task_id = $1 AND t.relation::bigint = $2) \
         SELECT pg_catalog.jsonb_build_object('wave', m.wave, 'relation', m.relation::bigint) \
           FROM reshard.copy_table AS m \
          CROSS JOIN own AS o \
          WHERE m.task_id = $1 AND m.relation::bigint <> $2 AND m.wave IS NOT NULL \
            AND (NOT $3 OR (m.row_filter IS NULL AND m.key_columns = o.key_columns \
                            AND reshard.key_types(m.relation, m.key_columns) = o.types)) \
          ORDER BY m.wave DESC, m.table_id LIMIT 1",
        &[Arg::I64(task), Arg::I64(relation), Arg::Bool(filtered)],
    )
}

/// The row filter of a table in the publication of a flow.
fn filter(flow: &Flow, relation: i64) -> Result<String> {
    db::text(
        "SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid) \
           FROM pg_catalog.pg_publication_rel AS r \
           JOIN pg_catalog.pg_publication AS p ON p.oid = r.prpubid \
          WHERE p.pubname = $1 AND r.prrelid::bigint = $2",
        &[Arg::Text(&flow.publication_name), Arg::I64(relation)],
    )?
    .ok_or_else(|| {
        Error::internal(format!("publication \"{}\" filters nothing", flow.publication_name))
    })
}

/// Runs our own DDL past the guard.
fn unguarded(statements: &[String]) -> Result<()> {
    let set = "WITH s AS (SELECT pg_catalog.set_config('reshard.ddl_guard', $1, true) AS value) \
               SELECT value FROM s";
    db::text(set, &[Arg::Text("off")])?;
    for statement in statements {
        db::run(statement)?;
    }
    db::text(set, &[Arg::Text("on")]).map(drop)
}
