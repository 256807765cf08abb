SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(e.id)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.event AS e
  JOIN reshard.own_events AS v ON v.id = e.id
 WHERE e.task_id IN (SELECT t.id FROM reshard.task AS t WHERE t.id = $1 OR t.parent_id = $1)
   AND ($2 IS NULL OR pg_catalog.age(e.xmin) <= pg_catalog.age($2::xid))
   AND ($5 IS NULL OR e.id > ($5::jsonb ->> 0)::bigint)
 ORDER BY e.id
 LIMIT $6
