//! Comparisons: their tables, the chunks that these are compared in, and the rows
//! that differ.
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::pg::db::{self, Arg};
use crate::state::task::Task;

/// Rows that differ, or kept changing, that are kept of each table; all are counted.
pub const KEPT: i64 = 1_000;

/// A table to compare.
#[derive(Debug, Clone, Deserialize)]
pub struct Table {
    /// Its number in the migration.
    pub table_id: i32,
    /// Number of its chunks; `None` until it is cut.
    pub chunks: Option<i32>,
}

/// Rows of a table that are compared together.
#[derive(Debug, Clone, Deserialize)]
pub struct Chunk {
    /// Its table.
    pub table_id: i32,
    /// Its number.
    pub chunk_no: i32,
    /// Keys of its rows are above this one.
    pub key_after: Option<Vec<String>>,
    /// Keys of its rows go up to this one.
    pub key_to: Option<Vec<String>>,
    /// Its share of the size of its table.
    pub bytes: i64,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A shard lacks it.
    Missing,
    /// A shard has it, the active cluster has not.
    Extra,
    /// A shard has other values in it.
    Different,
    /// It belongs to another shard.
    Misplaced,
    /// Not known: it kept changing.
    InFlux,
}

/// A row that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// How.
    pub kind: Kind,
    /// The cluster that is wrong.
    pub cluster: String,
    /// The shard that is wrong; `None` for a row that no shard takes.
    pub shard: Option<i32>,
    /// Its key, or all of it.
    pub key: serde_json::Value,
    /// The columns that differ, where both sides have the row.
    pub columns: Option<Vec<String>>,
}

/// What was found in a chunk.
#[derive(Debug, Default)]
pub struct Findings {
    /// Rows of the active cluster.
    pub rows: i64,
    /// Rows that differ.
    pub differences: i64,
    /// Rows that kept changing.
    pub in_flux: i64,
    /// The first ones of both.
    pub kept: Vec<Difference>,
}

/// What came of all tables of a task.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    /// Tables.
    pub tables: i64,
    /// Chunks that are still to be compared, and tables that are not cut yet.
    pub open: i64,
    /// Rows that differ.
    pub differences: i64,
    /// Rows that kept changing.
    pub in_flux: i64,
    /// Rows of the active cluster.
    pub rows: i64,
    /// Tables with either, with their counts.
    pub unequal: Vec<String>,
}

/// Writes the tables of a comparison: those of a migration that `relations` names,
/// oids of them or of partitioned tables above them; all where it is empty. Returns how many.
pub fn insert_tables(task: i64, migration: i64, relations: &[u32]) -> Result<u64> {
    db::execute(
        "INSERT INTO reshard.verification_table (task_id, table_id, schema_name, table_name, bytes_total) \
         SELECT $1, t.table_id, t.schema_name, t.table_name, t.bytes_total \
           FROM reshard.copy_table AS t \
          WHERE t.task_id = $2 AND t.status IN ('copied', 'ready') \
            AND (pg_catalog.cardinality($3) = 0 OR t.relation::text = ANY ($3) \
                 OR EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(t.relation) AS a (relid) \
                             WHERE a.relid::oid::text = ANY ($3)))",
        &[
            Arg::I64(task),
            Arg::I64(migration),
            Arg::Texts(relations.iter().map(ToString::to_string).collect()),
        ],
    )
}

/// Which of these relations a migration does not move, as names.
pub fn not_moved(migration: i64, relations: &[u32]) -> Result<Vec<String>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(r.oid::oid::regclass::text) \
           FROM pg_catalog.unnest($2) AS r (oid) \
          WHERE NOT EXISTS (SELECT FROM reshard.copy_table AS t \
                             WHERE t.task_id = $1 \
                               AND (t.relation = r.oid::oid \
                                    OR EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(t.relation) AS a (relid) \
                                                WHERE a.relid = r.oid::oid)))",
        &[
            Arg::I64(migration),
            Arg::Texts(relations.iter().map(ToString::to_string).collect()),
        ],
    )
}

/// The unfinished comparison of a migration, if there is one.
pub fn running(migration: i64) -> Result<Option<Task>> {
    db::row(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.task AS t \
          WHERE t.parent_id = $1 AND t.type = 'verify' AND t.status IN ('pending', 'running') \
          ORDER BY t.id LIMIT 1",
        &[Arg::I64(migration)],
    )
}

/// The tables of a comparison.
pub fn tables(task: i64) -> Result<Vec<Table>> {
    db::rows(
        "SELECT pg_catalog.to_jsonb(t) FROM reshard.verification_table AS t WHERE t.task_id = $1 \
          ORDER BY t.table_id",
        &[Arg::I64(task)],
    )
}

/// Cuts a table into chunks between the given keys. Of several, `sample` percent
/// are compared.
pub fn cut(
    task: i64,
    table: i32,
    bytes: i64,
    key: Option<&[String]>,
    bounds: &[Vec<String>],
    sample: f64,
) -> Result<()> {
    let chunks = i32::try_from(bounds.len()).unwrap_or(i32::MAX).saturating_add(1);
    db::execute(
        "UPDATE reshard.verification_table SET bytes_total = $3, chunks = $4, \
                key_columns = (SELECT pg_catalog.array_agg(k.name ORDER BY k.nr) \
                                 FROM pg_catalog.jsonb_array_elements_text($5) WITH ORDINALITY AS k (name, nr)) \
          WHERE task_id = $1 AND table_id = $2",
        &[
            Arg::I64(task),
            Arg::I32(table),
            Arg::I64(bytes),
            Arg::I32(chunks),
            Arg::Json(key.map_or_else(|| serde_json::json!([]), |key| serde_json::json!(key))),
        ],
    )?;
    // Which ones are in the sample follows from their numbers: the same after a restart.
    db::execute(
        "WITH bound AS ( \
             SELECT b.nr, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(b.bound)) AS key \
               FROM pg_catalog.jsonb_array_elements($3) WITH ORDINALITY AS b (bound, nr)) \
         INSERT INTO reshard.verification_chunk (task_id, table_id, chunk_no, key_after, key_to, status) \
         SELECT $1, $2, n.nr, a.key, z.key, \
                CASE WHEN $4 = 1 OR $5 >= 100 \
                       OR pg_catalog.mod(pg_catalog.hashint4extended(n.nr, $1) & 1048575, 10000) < $5 * 100 \
                     THEN 'pending' ELSE 'left_out' END \
           FROM pg_catalog.generate_series(1, $4) AS n (nr) \
           LEFT JOIN bound AS a ON a.nr = n.nr - 1 \
           LEFT JOIN bound AS z ON z.nr = n.nr \
         ON CONFLICT DO NOTHING",
        &[
            Arg::I64(task),
            Arg::I32(table),
            Arg::Json(serde_json::json!(bounds)),
            Arg::I32(chunks),
            Arg::F64(sample),
        ],
    )
    .map(|_| ())
}

/// Puts chunks that an earlier worker had begun back.
pub fn release(task: i64) -> Result<()> {
    db::execute(
        "UPDATE reshard.verification_chunk SET status = 'pending' \
          WHERE task_id = $1 AND status = 'running'",
        &[Arg::I64(task)],
    )
    .map(|_| ())
}

/// The next chunk to compare, if one is left; it is `running` from here on.
pub fn claim(task: i64) -> Result<Option<Chunk>> {
    db::row(
        "UPDATE reshard.verification_chunk AS c \
            SET status = 'running', started_at = clock_timestamp() \
           FROM reshard.verification_table AS t, \
                (SELECT n.table_id, n.chunk_no FROM reshard.verification_chunk AS n \
                  WHERE n.task_id = $1 AND n.status = 'pending' \
                  ORDER BY n.table_id, n.chunk_no LIMIT 1) AS n \
          WHERE c.task_id = $1 AND c.table_id = n.table_id AND c.chunk_no = n.chunk_no \
            AND t.task_id = $1 AND t.table_id = n.table_id \
         RETURNING pg_catalog.jsonb_build_object('table_id', c.table_id, 'chunk_no', c.chunk_no, \
                   'key_after', c.key_after, 'key_to', c.key_to, \
                   'bytes', t.bytes_total / greatest(1, t.chunks))",
        &[Arg::I64(task)],
    )
}

/// Writes down what was found in a chunk; of each table no more than [`KEPT`] rows.
pub fn finish_chunk(task: i64, chunk: &Chunk, found: &Findings) -> Result<()> {
    let status = match (found.differences, found.in_flux) {
        (0, 0) => "equal",
        (0, _) => "in_flux",
        _ => "different",
    };
    db::execute(
        "UPDATE reshard.verification_chunk \
            SET status = $4, rows = $5, differences = $6, in_flux = $7, \
                finished_at = clock_timestamp() \
          WHERE task_id = $1 AND table_id = $2 AND chunk_no = $3",
        &[
            Arg::I64(task),
            Arg::I32(chunk.table_id),
            Arg::I32(chunk.chunk_no),
            Arg::Text(status),
            Arg::I64(found.rows),
            Arg::I64(found.differences),
            Arg::I64(found.in_flux),
        ],
    )?;
    if found.kept.is_empty() {
        return Ok(());
    }
    db::execute(
        "INSERT INTO reshard.verification_difference \
                (task_id, table_id, chunk_no, difference_no, kind, cluster, shard, key, columns) \
         SELECT $1, $2, $3, d.nr, d.row ->> 'kind', d.row ->> 'cluster', (d.row ->> 'shard')::int, \
                d.row -> 'key', \
                CASE WHEN pg_catalog.jsonb_typeof(d.row -> 'columns') = 'array' \
                     THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(d.row -> 'columns'))::name[] END \
           FROM pg_catalog.jsonb_array_elements($4) WITH ORDINALITY AS d (row, nr) \
          WHERE d.nr <= $5 - (SELECT count(*) FROM reshard.verification_difference AS k \
                               WHERE k.task_id = $1 AND k.table_id = $2)",
        &[
            Arg::I64(task),
            Arg::I32(chunk.table_id),
            Arg::I32(chunk.chunk_no),
            Arg::Json(serde_json::to_value(&found.kept)?),
            Arg::I64(KEPT),
        ],
    )
    .map(|_| ())
}

/// Has the chunks that were not found equal compared again.
pub fn reopen(task: i64) -> Result<()> {
    db::execute(
        "DELETE FROM reshard.verification_difference WHERE task_id = $1",
        &[Arg::I64(task)],
    )?;
    db::execute(
        "UPDATE reshard.verification_chunk \
            SET status = 'pending', rows = 0, differences = 0, in_flux = 0, \
                started_at = NULL, finished_at = NULL \
          WHERE task_id = $1 AND status IN ('different', 'in_flux')",
        &[Arg::I64(task)],
    )
    .map(|_| ())
}

/// What has come of a comparison.
pub fn summary(task: i64) -> Result<Option<Summary>> {
    db::row(
        "SELECT pg_catalog.jsonb_build_object( \
             'tables', count(*), \
             'open', count(*) FILTER (WHERE t.chunks IS NULL) + coalesce(sum(c.open), 0), \
             'differences', coalesce(sum(c.differences), 0), \
             'in_flux', coalesce(sum(c.in_flux), 0), \
             'rows', coalesce(sum(c.rows), 0), \
             'unequal', coalesce(pg_catalog.jsonb_agg( \
                 pg_catalog.concat(pg_catalog.format('%I.%I', t.schema_name, t.table_name), ' (', \
                     pg_catalog.concat_ws(', ', \
                         CASE WHEN c.differences > 0 THEN c.differences || ' differ' END, \
                         CASE WHEN c.in_flux > 0 THEN c.in_flux || ' kept changing' END), ')') \
                 ORDER BY c.differences DESC, c.in_flux DESC, t.table_id) \
                 FILTER (WHERE c.differences + c.in_flux > 0), '[]')) \
           FROM reshard.verification_table AS t \
           LEFT JOIN (SELECT v.table_id, sum(v.differences)::bigint AS differences, \
                             sum(v.in_flux)::bigint AS in_flux, sum(v.rows)::bigint AS rows, \
                             count(*) FILTER (WHERE v.status IN ('pending', 'running')) AS open \
                        FROM reshard.verification_chunk AS v WHERE v.task_id = $1 \
                       GROUP BY v.table_id) AS c USING (table_id) \
          WHERE t.task_id = $1",
        &[Arg::I64(task)],
    )
}

/// What a verify worker calls itself in `pg_stat_activity.application_name`.
pub fn worker_name(task: i64) -> String {
    format!("reshard verify {task}")
}

/// Whether a worker compares rows of a migration.
pub fn has_worker(migration: i64) -> Result<bool> {
    db::truth(
        "SELECT true FROM pg_catalog.pg_stat_activity AS a \
           JOIN reshard.task AS t ON a.application_name = 'reshard verify ' || t.id \
          WHERE t.parent_id = $1 AND t.type = 'verify' \
            AND a.backend_type = 'reshard verify worker'",
        &[Arg::I64(migration)],
    )
}
