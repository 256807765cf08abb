SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(s.shard, s.ordinal)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.schema_statement AS s
  JOIN reshard.own_schema_sync AS v
    ON v.task_id = s.task_id AND v.shard = s.shard AND v.ordinal = s.ordinal
 WHERE s.task_id = $1
   AND ($3 IS NULL OR pg_catalog.age(s.xmin) <= pg_catalog.age($3::xid)
        OR s.xmin = ANY ($4::text[]::xid[]))
   AND ($5 IS NULL
        OR (s.shard, s.ordinal) > (($5::jsonb ->> 0)::int, ($5::jsonb ->> 1)::int))
 ORDER BY s.shard, s.ordinal
 LIMIT $6
