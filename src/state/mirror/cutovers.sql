SELECT pg_catalog.to_jsonb(ARRAY[pg_catalog.jsonb_build_array(c.id, s.step_no)::text,
                                 pg_catalog.to_jsonb(v)::text])
  FROM reshard.cutover AS c
  JOIN reshard.cutover_step AS s ON s.cutover_id = c.id
  JOIN reshard.own_cutovers AS v ON v.cutover_id = s.cutover_id AND v.step_no = s.step_no
 WHERE c.task_id = $1
   AND ($2 IS NULL OR pg_catalog.age(c.xmin) <= pg_catalog.age($2::xid)
        OR pg_catalog.age(s.xmin) <= pg_catalog.age($2::xid))
