SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(v.table_id, v.source_shard)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.removal AS r
  JOIN reshard.own_removals AS v
    ON v.task_id = r.task_id AND v.table_id = r.table_id AND v.source_shard = r.source_shard
 WHERE r.task_id = $1
   AND ($2 IS NULL OR pg_catalog.age(r.xmin) <= pg_catalog.age($2::xid))
