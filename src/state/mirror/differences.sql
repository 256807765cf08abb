SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(d.task_id, d.table_id, d.chunk_no,
                                                              d.difference_no)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.task AS t
  JOIN reshard.verification_difference AS d ON d.task_id = t.id
  JOIN reshard.own_differences AS v
    ON v.task_id = d.task_id AND v.table_id = d.table_id AND v.chunk_no = d.chunk_no
   AND v.difference_no = d.difference_no
 WHERE t.parent_id = $1 AND t.type = 'verify'
   AND ($2 IS NULL OR pg_catalog.age(d.xmin) <= pg_catalog.age($2::xid))
   AND ($5 IS NULL
        OR (d.task_id, d.table_id, d.chunk_no, d.difference_no)
           > (($5::jsonb ->> 0)::bigint, ($5::jsonb ->> 1)::int, ($5::jsonb ->> 2)::int,
              ($5::jsonb ->> 3)::int))
 ORDER BY d.task_id, d.table_id, d.chunk_no, d.difference_no
 LIMIT $6
