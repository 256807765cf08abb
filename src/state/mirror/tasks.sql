SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(t.id)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.task AS t
  JOIN reshard.own_tasks AS v ON v.id = t.id
 WHERE (t.id = $1 OR t.parent_id = $1)
   AND ($2 IS NULL OR pg_catalog.age(t.xmin) <= pg_catalog.age($2::xid))
 ORDER BY t.id
