SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(v.table_id, v.source_shard)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.own_node_copies AS v
 WHERE v.task_id = $1
   AND v.table_id IN (SELECT c.table_id
                        FROM reshard.changed_tables($1, $3::xid, $4::text[]::xid[]) AS c (table_id))
