SELECT pg_catalog.to_jsonb(ARRAY['[]', pg_catalog.to_jsonb(v)::text])
  FROM reshard.own_copy_totals AS v
 WHERE v.task_id = $1
