-- Tables of a task that each shard of the source has whole, with what foreign keys refer to. A
-- partition counts as the table that it is a part of.
-- $1 task.
SELECT pg_catalog.jsonb_build_object(
           'table_id', t.table_id,
           'source_shard', t.source_shard,
           'bytes', t.bytes_total,
           'root', coalesce(pg_catalog.pg_partition_root(t.relation)::oid, t.relation)::bigint,
           'refers_to', coalesce(
               (SELECT pg_catalog.jsonb_agg(DISTINCT
                           coalesce(pg_catalog.pg_partition_root(k.confrelid)::oid, k.confrelid)::bigint)
                  FROM pg_catalog.pg_constraint AS k
                 WHERE k.conrelid = t.relation AND k.contype = 'f'), '[]'))
  FROM reshard.copy_table AS t
 WHERE t.task_id = $1 AND t.source_key IS NULL
 ORDER BY t.table_id
