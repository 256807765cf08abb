SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(f.direction, f.wave, f.source_shard,
                                                              f.destination_shard)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.flow AS f
  JOIN reshard.own_replication_slots AS v
    ON v.task_id = f.task_id AND v.direction = f.direction AND v.wave = f.wave
   AND v.source_shard = f.source_shard AND v.destination_shard = f.destination_shard
 WHERE f.task_id = $1
   AND ($2 IS NULL OR pg_catalog.age(f.xmin) <= pg_catalog.age($2::xid))
