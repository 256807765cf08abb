-- The views that people look at: PgDog's SHOW commands, and what they lack.
--
-- Those about tasks come in pairs: own_... has the tasks of this database, the one that
-- people look at has those of other shards of its cluster as well, as they were sent here.
-- A row that was sent is read as a row of own_..., so that both have the same types.

CREATE VIEW reshard.own_tasks AS
SELECT t.id, t.parent_id, t.type, t.status, t.phase, t.source, t.destination, t.publication,
       t.started_at, t.updated_at, t.finished_at, t.error, t.hint, t.options, t.requested_by
  FROM reshard.task AS t;
COMMENT ON VIEW reshard.own_tasks IS 'tasks of this database';

CREATE VIEW reshard.tasks AS
SELECT t.*, NULL::int AS node
  FROM reshard.own_tasks AS t
UNION ALL
SELECT t.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_tasks, m.shown) AS t
 WHERE m.view_name = 'tasks';
COMMENT ON VIEW reshard.tasks IS 'every task, ended ones included [SHOW TASKS]';
COMMENT ON COLUMN reshard.tasks.node IS
    'number of the source shard that the task runs on, where that is not this database: verbs for it are called there';

-- The rate is that of the last ten seconds: each part counts with the bytes that it
-- moved in that time, as if it had moved evenly.
CREATE VIEW reshard.own_table_copies AS
WITH part AS (
    SELECT p.task_id, p.table_id, p.rows, p.bytes, p.blocks_done, p.started_at, p.finished_at,
           CASE WHEN p.status <> 'done' THEN p.error END AS error,
           p.bytes_total * least(p.blocks_done::numeric / greatest(1, p.blocks), 1) AS bytes_moved,
           coalesce(p.finished_at, clock_timestamp()) AS until
      FROM reshard.copy_part AS p
), summed AS (
    SELECT p.task_id, p.table_id,
           sum(p.rows)::bigint AS rows,
           sum(p.bytes)::bigint AS bytes,
           sum(p.blocks_done)::bigint AS blocks_done,
           min(p.started_at) AS started_at,
           max(p.finished_at) AS finished_at,
           max(p.error) AS error,
           sum(p.bytes_moved
               * extract(epoch FROM p.until - greatest(p.started_at, clock_timestamp() - interval '10 s'))
               / greatest(extract(epoch FROM p.until - p.started_at), 0.001))
               FILTER (WHERE p.until > clock_timestamp() - interval '10 s'
                         AND p.until > p.started_at) AS bytes_of_late
      FROM part AS p
     GROUP BY p.task_id, p.table_id
), progress AS (
    SELECT t.task_id, t.table_id, t.schema_name, t.table_name, t.status, t.bytes_total,
           t.wave, array_to_string(t.key_columns, ', ') AS key_column, t.source_shard,
           coalesce(p.rows, 0) AS rows, coalesce(p.bytes, 0) AS bytes,
           CASE WHEN t.status IN ('copied', 'ready') THEN 1.0
                WHEN t.blocks = 0 THEN 0.0
                ELSE least(coalesce(p.blocks_done, 0)::numeric / t.blocks, 1.0) END AS share,
           coalesce(t.started_at, p.started_at) AS started_at,
           t.finished_at, p.bytes_of_late,
           coalesce(t.error, p.error) AS error
      FROM reshard.copy_table AS t
      LEFT JOIN summed AS p ON p.task_id = t.task_id AND p.table_id = t.table_id
), timed AS (
    SELECT p.*,
           greatest(extract(epoch FROM coalesce(p.finished_at, clock_timestamp()) - p.started_at),
                    0.001) AS seconds
      FROM progress AS p
), rated AS (
    SELECT t.*,
           round(CASE WHEN t.finished_at IS NULL
                      THEN coalesce(t.bytes_of_late, 0) / least(t.seconds, 10)
                      ELSE t.bytes_total / t.seconds END)::bigint AS bytes_per_sec
      FROM timed AS t
)
SELECT t.task_id, t.schema_name, t.table_name, t.status, t.rows, t.bytes, t.bytes_total,
       round(100 * t.share, 2) AS percent, t.bytes_per_sec,
       CASE WHEN t.status = 'running' AND t.bytes_per_sec > 0
            THEN make_interval(secs => round((1 - t.share) * t.bytes_total / t.bytes_per_sec)::double precision)
       END AS eta,
       t.started_at, t.finished_at, t.wave, t.key_column, t.error, t.source_shard, t.table_id
  FROM rated AS t;
COMMENT ON VIEW reshard.own_table_copies IS 'copies of tables for tasks of this database';

CREATE VIEW reshard.table_copies AS
SELECT t.task_id, t.schema_name, t.table_name, t.status, t.rows, t.bytes, t.bytes_total, t.percent,
       t.bytes_per_sec, t.eta, t.started_at, t.finished_at, t.wave, t.key_column, t.error,
       t.source_shard, NULL::int AS node
  FROM reshard.own_table_copies AS t
UNION ALL
SELECT t.task_id, t.schema_name, t.table_name, t.status, t.rows, t.bytes, t.bytes_total, t.percent,
       t.bytes_per_sec, t.eta, t.started_at, t.finished_at, t.wave, t.key_column, t.error,
       t.source_shard, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_table_copies, m.shown) AS t
 WHERE m.view_name = 'table_copies';
COMMENT ON VIEW reshard.table_copies IS
    'progress of every table''s copy; bytes_per_sec is the rate of the last ten seconds, of the whole copy once it has ended [SHOW TABLE_COPIES]';

CREATE FUNCTION reshard.changed_tables(task_id bigint, since xid, running xid[]) RETURNS SETOF int
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $changed$
    SELECT t.table_id
      FROM reshard.copy_table AS t
     WHERE t.task_id = $1
       AND ($2 IS NULL OR age(t.xmin) <= age($2) OR t.xmin = ANY ($3)
            -- Its rate and what is left of its time change by themselves.
            OR t.started_at IS NOT NULL AND t.finished_at IS NULL)
    UNION
    SELECT p.table_id
      FROM reshard.copy_part AS p
     WHERE p.task_id = $1 AND (age(p.xmin) <= age($2) OR p.xmin = ANY ($3))
$changed$;
COMMENT ON FUNCTION reshard.changed_tables(bigint, xid, xid[]) IS
    'tables whose copies have changed since a snapshot, given as its upper bound and the transactions that ran; all of them without one';

CREATE VIEW reshard.own_node_copies AS
SELECT p.task_id, p.source_shard, t.schema_name, t.table_name,
       count(*) AS parts, count(*) FILTER (WHERE p.status = 'done') AS parts_copied,
       sum(p.rows)::bigint AS rows, sum(p.bytes)::bigint AS bytes,
       sum(p.bytes_total)::bigint AS bytes_total,
       round(100 * sum(least(p.blocks_done, p.blocks)) / greatest(1, sum(p.blocks)), 2) AS percent,
       min(p.started_at) AS started_at,
       CASE WHEN bool_and(p.status = 'done') THEN max(p.finished_at) END AS finished_at,
       max(CASE WHEN p.status <> 'done' THEN p.error END) AS error, p.table_id
  FROM reshard.copy_part AS p
  JOIN reshard.copy_table AS t ON t.task_id = p.task_id AND t.table_id = p.table_id
 GROUP BY p.task_id, p.source_shard, p.table_id, t.schema_name, t.table_name;
COMMENT ON VIEW reshard.own_node_copies IS
    'copies of tables from each shard of the source for tasks of this database';

CREATE VIEW reshard.node_copies AS
SELECT p.task_id, p.source_shard, p.schema_name, p.table_name, p.parts, p.parts_copied, p.rows,
       p.bytes, p.bytes_total, p.percent, p.started_at, p.finished_at, p.error, NULL::int AS node
  FROM reshard.own_node_copies AS p
UNION ALL
SELECT p.task_id, p.source_shard, p.schema_name, p.table_name, p.parts, p.parts_copied, p.rows,
       p.bytes, p.bytes_total, p.percent, p.started_at, p.finished_at, p.error, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_node_copies, m.shown) AS p
 WHERE m.view_name = 'node_copies';
COMMENT ON VIEW reshard.node_copies IS
    'progress of every table''s copy on each shard of the source that rows are copied from';

CREATE VIEW reshard.own_removals AS
SELECT r.task_id, r.source_shard, t.schema_name, t.table_name, r.rows,
       round(100.0 * least(r.blocks_done, r.blocks) / greatest(1, r.blocks), 2) AS percent,
       r.started_at, r.finished_at, r.table_id
  FROM reshard.removal AS r
  JOIN reshard.copy_table AS t ON t.task_id = r.task_id AND t.table_id = r.table_id;
COMMENT ON VIEW reshard.own_removals IS
    'rows deleted from shards of both clusters for tasks of this database';

CREATE VIEW reshard.removals AS
SELECT r.task_id, r.source_shard, r.schema_name, r.table_name, r.rows, r.percent, r.started_at,
       r.finished_at, NULL::int AS node
  FROM reshard.own_removals AS r
UNION ALL
SELECT r.task_id, r.source_shard, r.schema_name, r.table_name, r.rows, r.percent, r.started_at,
       r.finished_at, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_removals, m.shown) AS r
 WHERE m.view_name = 'removals';
COMMENT ON VIEW reshard.removals IS
    'rows that were deleted from shards of both clusters once they had moved away for good';

CREATE VIEW reshard.own_copy_totals AS
WITH summed AS (
    SELECT c.task_id,
           count(*) AS tables,
           count(*) FILTER (WHERE c.status IN ('copied', 'ready')) AS tables_copied,
           sum(c.rows)::bigint AS rows,
           sum(c.bytes)::bigint AS bytes,
           sum(c.bytes_total)::bigint AS bytes_total,
           sum(c.percent / 100 * c.bytes_total) AS bytes_moved,
           sum(c.bytes_per_sec) FILTER (WHERE c.finished_at IS NULL) AS rate_of_late,
           min(c.started_at) AS started_at,
           CASE WHEN bool_and(c.finished_at IS NOT NULL) THEN max(c.finished_at) END AS finished_at
      FROM reshard.own_table_copies AS c
     GROUP BY c.task_id
)
SELECT s.task_id, s.tables, s.tables_copied, s.rows, s.bytes, s.bytes_total,
       round(100 * s.bytes_moved / nullif(s.bytes_total, 0), 2) AS percent,
       round(CASE WHEN s.finished_at IS NULL THEN coalesce(s.rate_of_late, 0)
                  ELSE s.bytes_total / greatest(extract(epoch FROM s.finished_at - s.started_at), 0.001)
             END)::bigint AS bytes_per_sec,
       s.started_at, s.finished_at,
       CASE WHEN s.finished_at IS NULL AND s.rate_of_late > 0
            THEN make_interval(secs => round((s.bytes_total - s.bytes_moved) / s.rate_of_late)::double precision)
       END AS eta
  FROM summed AS s;
COMMENT ON VIEW reshard.own_copy_totals IS 'sums of the copies for tasks of this database';

CREATE VIEW reshard.copy_totals AS
SELECT t.*, NULL::int AS node
  FROM reshard.own_copy_totals AS t
UNION ALL
SELECT t.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_copy_totals, m.shown) AS t
 WHERE m.view_name = 'copy_totals';
COMMENT ON VIEW reshard.copy_totals IS 'one row per task: the sum of its reshard.table_copies';

CREATE VIEW reshard.own_schema_sync AS
SELECT s.task_id, s.shard, s.phase, s.kind, s.schema_name, s.object_name, s.status, s.percent,
       s.started_at, s.finished_at, coalesce(s.shown, s.sql) AS sql, s.error, s.ordinal, s.step,
       s.build_phase
  FROM reshard.schema_statement AS s;
COMMENT ON VIEW reshard.own_schema_sync IS 'schema statements of tasks of this database';

CREATE VIEW reshard.schema_sync AS
SELECT s.*, NULL::int AS node
  FROM reshard.own_schema_sync AS s
UNION ALL
SELECT s.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_schema_sync, m.shown) AS s
 WHERE m.view_name = 'schema_sync';
COMMENT ON VIEW reshard.schema_sync IS 'every schema statement on every shard [SHOW SCHEMA_SYNC]';

CREATE VIEW reshard.own_replication_slots AS
SELECT f.task_id, f.direction, f.source_shard, f.destination_shard, f.slot_name,
       f.subscription_name, f.active, f.confirmed_lsn, f.lag_bytes, f.retained_bytes,
       f.publication_name, f.live, f.wal_status, f.apply_errors, f.error, f.wave, f.updated_at
  FROM reshard.flow AS f;
COMMENT ON VIEW reshard.own_replication_slots IS 'replication slots of migrations of this database';

CREATE VIEW reshard.replication_slots AS
SELECT f.*, NULL::int AS node
  FROM reshard.own_replication_slots AS f
UNION ALL
SELECT f.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_replication_slots, m.shown) AS f
 WHERE m.view_name = 'replication_slots';
COMMENT ON VIEW reshard.replication_slots IS
    'every replication slot of every migration, as last seen [SHOW REPLICATION_SLOTS]';

CREATE VIEW reshard.own_cutovers AS
SELECT c.id AS cutover_id, c.task_id, c.direction, c.from_cluster, c.to_cluster, c.dry_run,
       c.status, c.epoch, c.pause_ms, s.step_no, s.step, s.started_at, s.finished_at,
       round((extract(epoch FROM s.finished_at - s.started_at) * 1000)::numeric, 3) AS duration_ms,
       c.error, c.hint
  FROM reshard.cutover AS c
  LEFT JOIN reshard.cutover_step AS s ON s.cutover_id = c.id;
COMMENT ON VIEW reshard.own_cutovers IS 'steps of cutovers of migrations of this database';

CREATE VIEW reshard.cutovers AS
SELECT s.*, NULL::int AS node
  FROM reshard.own_cutovers AS s
UNION ALL
SELECT s.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_cutovers, m.shown) AS s
 WHERE m.view_name = 'cutovers';
COMMENT ON VIEW reshard.cutovers IS 'every step of every cutover, with its duration in milliseconds';

CREATE VIEW reshard.own_events AS
SELECT e.id, e.task_id, e.at, e.severity, e.kind, e.message, e.detail
  FROM reshard.event AS e;
COMMENT ON VIEW reshard.own_events IS 'history of tasks of this database';

CREATE VIEW reshard.events AS
SELECT e.*, NULL::int AS node
  FROM reshard.own_events AS e
UNION ALL
SELECT e.*, n.shard
  FROM reshard.mirrored_row AS m
  JOIN reshard.coordinator AS n ON n.token = m.token
 CROSS JOIN LATERAL jsonb_populate_record(NULL::reshard.own_events, m.shown) AS e
 WHERE m.view_name = 'events';
COMMENT ON VIEW reshard.events IS 'history of every task';

CREATE VIEW reshard.poolers AS
SELECT p.name, p.epoch, p.state, p.registered_at, p.acknowledged_at
  FROM reshard.pooler AS p;
COMMENT ON VIEW reshard.poolers IS 'what each registered pooler obeys';

CREATE VIEW reshard.shards AS
SELECT s.cluster, s.shard, s.conninfo, s.password IS NOT NULL AS has_password
  FROM reshard.declared_shard AS s;
COMMENT ON VIEW reshard.shards IS 'declared shards; passwords are never shown';

CREATE VIEW reshard.clusters AS
SELECT s.cluster AS name, count(*)::int AS shards,
       (SELECT array_agg(coalesce(quote_ident(r.schema_name) || '.' || quote_ident(r.table_name) || '.', '')
                         || (SELECT CASE WHEN count(*) = 1 THEN min(quote_ident(c.name))
                                         ELSE format('(%s)', string_agg(quote_ident(c.name), ', ' ORDER BY c.nr)) END
                               FROM unnest(r.column_names) WITH ORDINALITY AS c (name, nr))
                         || CASE WHEN r.method = 'hash' THEN '' ELSE ' (' || r.method || ')' END
                         ORDER BY r.rule_no)
          FROM reshard.sharding_rule AS r WHERE r.cluster_name = s.cluster) AS sharding_keys,
       coalesce((SELECT t.active_cluster = s.cluster FROM reshard.traffic AS t
                  WHERE t.name = s.cluster OR t.active_cluster = s.cluster
                  ORDER BY t.epoch DESC LIMIT 1), false) AS active
  FROM reshard.declared_shard AS s
 GROUP BY s.cluster;
COMMENT ON VIEW reshard.clusters IS 'declared clusters';

CREATE VIEW reshard.placements AS
SELECT r.cluster_name AS cluster, r.column_names[1]::text AS column_name, r.method, m.shard,
       CASE m.kind WHEN 'value' THEN quote_literal(m.value)
                   WHEN 'null' THEN 'NULL'
                   WHEN 'default' THEN 'DEFAULT'
                   ELSE format('[%s, %s)', coalesce(quote_literal(m.lower_bound), 'unbounded'),
                               coalesce(quote_literal(m.upper_bound), 'unbounded')) END AS keys,
       m.kind, m.value, m.lower_bound, m.upper_bound
  FROM (SELECT DISTINCT cluster_name, column_names, method
          FROM reshard.sharding_rule WHERE method <> 'hash') AS r
  JOIN reshard.key_mapping AS m
    ON m.cluster_name = r.cluster_name AND r.column_names = ARRAY[m.column_name]
UNION ALL
SELECT r.cluster_name, array_to_string(r.column_names, ', '), r.method, s.shard,
       format('remainder %s of %s', s.shard, count(*) OVER (PARTITION BY r.cluster_name, r.column_names)),
       'hash', NULL, NULL, NULL
  FROM (SELECT DISTINCT cluster_name, column_names, method
          FROM reshard.sharding_rule WHERE method = 'hash') AS r
  JOIN reshard.declared_shard AS s ON s.cluster = r.cluster_name;
COMMENT ON VIEW reshard.placements IS
    'which keys belong to which shard of each cluster, by column (several are separated by commas) and method';

-- Who may look. Statements and errors can hold data, so not everyone may.
DO $roles$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'reshard_admin') THEN
        CREATE ROLE reshard_admin NOLOGIN;
    END IF;
END
$roles$;
GRANT SELECT ON reshard.tasks, reshard.table_copies, reshard.removals, reshard.node_copies, reshard.copy_totals, reshard.schema_sync,
    reshard.replication_slots, reshard.cutovers, reshard.events, reshard.poolers,
    reshard.shards, reshard.clusters, reshard.placements TO reshard_admin, pg_monitor;
