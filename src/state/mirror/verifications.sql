SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(v.task_id, v.table_id)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.task AS t
  JOIN reshard.own_verifications AS v ON v.task_id = t.id
 WHERE t.parent_id = $1 AND t.type = 'verify'
   AND ($2 IS NULL OR t.status IN ('pending', 'running')
        OR pg_catalog.age(t.xmin) <= pg_catalog.age($2::xid))
   AND ($2 IS NULL OR v.started_at IS NOT NULL AND v.finished_at IS NULL
        OR EXISTS (SELECT FROM reshard.verification_table AS b
                    WHERE b.task_id = v.task_id AND b.table_id = v.table_id
                      AND pg_catalog.age(b.xmin) <= pg_catalog.age($2::xid))
        OR EXISTS (SELECT FROM reshard.verification_chunk AS c
                    WHERE c.task_id = v.task_id AND c.table_id = v.table_id
                      AND pg_catalog.age(c.xmin) <= pg_catalog.age($2::xid)))
