-- The comparison of both clusters: what was compared, and what differs.

CREATE TABLE reshard.verification_table (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    table_id int NOT NULL,
    schema_name name NOT NULL,
    table_name name NOT NULL,
    bytes_total bigint NOT NULL DEFAULT 0,
    key_columns name[],
    chunks int,
    PRIMARY KEY (task_id, table_id)
);
COMMENT ON TABLE reshard.verification_table IS 'one row per table that a task compares';
COMMENT ON COLUMN reshard.verification_table.table_id IS 'its number in reshard.copy_table of the migration';
COMMENT ON COLUMN reshard.verification_table.key_columns IS
    'the unique columns that rows are told apart by; null where there are none, so that rows are told apart by all that is in them';
COMMENT ON COLUMN reshard.verification_table.chunks IS 'null until the table is cut into chunks';

CREATE TABLE reshard.verification_chunk (
    task_id bigint NOT NULL,
    table_id int NOT NULL,
    chunk_no int NOT NULL,
    key_after text[],
    key_to text[],
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'equal', 'different', 'in_flux', 'left_out')),
    rows bigint NOT NULL DEFAULT 0,
    differences bigint NOT NULL DEFAULT 0,
    in_flux bigint NOT NULL DEFAULT 0,
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (task_id, table_id, chunk_no),
    FOREIGN KEY (task_id, table_id) REFERENCES reshard.verification_table ON DELETE CASCADE
);
COMMENT ON TABLE reshard.verification_chunk IS
    'the unit of comparison: rows whose key is above key_after, up to key_to; null is no bound';
COMMENT ON COLUMN reshard.verification_chunk.status IS
    'in_flux: nothing differs for sure, but rows kept changing; left_out: not in the sample';
CREATE INDEX verification_chunk_open
    ON reshard.verification_chunk (task_id, table_id, chunk_no) WHERE status = 'pending';

CREATE TABLE reshard.verification_difference (
    task_id bigint NOT NULL,
    table_id int NOT NULL,
    chunk_no int NOT NULL,
    difference_no int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('missing', 'extra', 'different', 'misplaced', 'in_flux')),
    cluster text NOT NULL,
    shard int,
    key jsonb NOT NULL,
    columns name[],
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, table_id, chunk_no, difference_no),
    FOREIGN KEY (task_id, table_id, chunk_no) REFERENCES reshard.verification_chunk ON DELETE CASCADE
);
COMMENT ON TABLE reshard.verification_difference IS
    'rows that differ, the first ones of each table; the view reshard.differences shows them';

CREATE VIEW reshard.own_verifications AS
WITH compared AS (
    SELECT c.task_id, c.table_id,
           count(*) FILTER (WHERE c.status <> 'left_out') AS chunks,
           count(*) FILTER (WHERE c.status = 'left_out') AS chunks_left_out,
           count(*) FILTER (WHERE c.status IN ('equal', 'different', 'in_flux')) AS chunks_done,
           sum(c.rows)::bigint AS rows,
           sum(c.differences)::bigint AS differences,
           sum(c.in_flux)::bigint AS in_flux,
           min(c.started_at) AS started_at,
           max(c.finished_at) AS finished_at
      FROM reshard.verification_chunk AS c
     GROUP BY c.task_id, c.table_id
), progress AS (
    SELECT t.task_id, t.table_id, t.schema_name, t.table_name, t.key_columns, t.bytes_total,
           coalesce(c.chunks, 0) AS chunks, coalesce(c.chunks_done, 0) AS chunks_done,
           coalesce(c.chunks_left_out, 0) AS chunks_left_out,
           coalesce(c.rows, 0) AS rows, coalesce(c.differences, 0) AS differences,
           coalesce(c.in_flux, 0) AS in_flux, c.started_at,
           t.chunks IS NOT NULL AND c.chunks_done = c.chunks AS done,
           CASE WHEN t.chunks IS NOT NULL AND c.chunks_done = c.chunks THEN c.finished_at END AS finished_at
      FROM reshard.verification_table AS t
      LEFT JOIN compared AS c ON c.task_id = t.task_id AND c.table_id = t.table_id
)
SELECT p.task_id, p.schema_name, p.table_name,
       CASE WHEN p.differences > 0 THEN 'different'
            WHEN p.done AND p.in_flux > 0 THEN 'in_flux'
            WHEN p.done THEN 'equal'
            WHEN p.started_at IS NOT NULL THEN 'running'
            ELSE 'pending' END AS status,
       p.rows, p.differences, p.in_flux, p.chunks, p.chunks_done,
       round(100.0 * p.chunks_done / greatest(1, p.chunks), 2) AS percent,
       p.bytes_total,
       round(p.bytes_total::numeric * p.chunks_done / greatest(1, p.chunks + p.chunks_left_out)
             / greatest(extract(epoch FROM coalesce(p.finished_at, clock_timestamp()) - p.started_at),
                        0.001))::bigint AS bytes_per_sec,
       p.started_at, p.finished_at, p.key_columns, p.chunks_left_out, p.table_id
  FROM progress AS p;
COMMENT ON VIEW reshard.own_verifications IS 'tables that tasks of this database compare';

CREATE VIEW reshard.verifications AS
SELECT v.task_id, v.schema_name, v.table_name, v.status, v.rows, v.differences, v.in_flux, v.chunks,
       v.chunks_done, v.percent, v.bytes_total, v.bytes_per_sec, v.started_at, v.finished_at,
       v.key_columns, v.chunks_left_out, NULL::int AS node
  FROM reshard.own_verifications AS v
UNION ALL
SELECT v.task_id, v.schema_name, v.table_name, v.status, v.rows, v.differences, v.in_flux, v.chunks,
       v.chunks_done, v.percent, v.bytes_total, v.bytes_per_sec, v.started_at, v.finished_at,
       v.key_columns, v.chunks_left_out, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_verifications, m.shown) AS v
 WHERE m.view_name = 'verifications';
COMMENT ON VIEW reshard.verifications IS
    'every table that was, or is being, compared on both clusters, with its progress and what came of it';

CREATE VIEW reshard.own_differences AS
SELECT d.task_id, t.schema_name, t.table_name, d.kind, d.cluster, d.shard, d.key, d.columns, d.found_at,
       d.table_id, d.chunk_no, d.difference_no
  FROM reshard.verification_difference AS d
  JOIN reshard.verification_table AS t ON t.task_id = d.task_id AND t.table_id = d.table_id;
COMMENT ON VIEW reshard.own_differences IS 'rows that tasks of this database found to differ';

CREATE VIEW reshard.differences AS
SELECT d.task_id, d.schema_name, d.table_name, d.kind, d.cluster, d.shard, d.key, d.columns, d.found_at,
       NULL::int AS node
  FROM reshard.own_differences AS d
UNION ALL
SELECT d.task_id, d.schema_name, d.table_name, d.kind, d.cluster, d.shard, d.key, d.columns, d.found_at,
       n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_differences, m.shown) AS d
 WHERE m.view_name = 'differences';
COMMENT ON VIEW reshard.differences IS
    'rows that differ between the clusters, or could not be verified: the first ones of each table, reshard.verifications counts all';
COMMENT ON COLUMN reshard.differences.kind IS
    'missing: the shard lacks it; extra: the active cluster has no such row; different: other values; misplaced: it belongs to another shard; in_flux: it kept changing';

-- Keys are data: they are not for everyone who may look at progress.
GRANT SELECT ON reshard.verifications TO reshard_admin, pg_monitor;
GRANT SELECT ON reshard.differences TO reshard_admin;
