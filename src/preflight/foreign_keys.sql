-- Foreign keys whose rows move, as a JSON array. Read-only. $1 oids of the tables.
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'name', k.conname, 'from', k.conrelid::bigint, 'to', k.confrelid::bigint,
    'from_schema', fn.nspname, 'from_table', f.relname,
    'from_name', format('%I.%I', fn.nspname, f.relname),
    'to_name', format('%I.%I', tn.nspname, t.relname),
    'from_columns', (SELECT jsonb_agg(a.attname ORDER BY c.n)
                       FROM unnest(k.conkey) WITH ORDINALITY AS c (attnum, n)
                       JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = c.attnum),
    'to_columns', (SELECT jsonb_agg(a.attname ORDER BY c.n)
                     FROM unnest(k.confkey) WITH ORDINALITY AS c (attnum, n)
                     JOIN pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = c.attnum)
    ) ORDER BY k.conrelid, k.conname), '[]')::text
  FROM pg_constraint AS k
  JOIN pg_class AS f ON f.oid = k.conrelid
  JOIN pg_namespace AS fn ON fn.oid = f.relnamespace
  JOIN pg_class AS t ON t.oid = k.confrelid
  JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid::bigint = ANY ($1)
