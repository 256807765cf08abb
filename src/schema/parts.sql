-- What tables consist of, part by part, in words that are the same on every
-- server. Read-only. $1 names of tables.
SELECT t.name, p.part
  FROM unnest($1::text[]) AS t (name)
 CROSS JOIN LATERAL (
          SELECT format('column %I %s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                        CASE WHEN a.attnotnull THEN ' NOT NULL' END,
                        CASE WHEN a.attgenerated <> '' THEN ' GENERATED'
                             WHEN a.attidentity <> '' THEN ' IDENTITY' END)
            FROM pg_attribute AS a
           WHERE a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped
          UNION ALL
          SELECT format('constraint %I', k.conname)
            FROM pg_constraint AS k
           WHERE k.conrelid = to_regclass(t.name) AND k.contype IN ('c', 'f', 'x') AND k.conparentid = 0
          UNION ALL
          SELECT format('index %I%s', x.relname, CASE WHEN NOT i.indisvalid THEN ' (invalid)' END)
            FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
           WHERE i.indrelid = to_regclass(t.name)
          UNION ALL
          SELECT format('trigger %I', g.tgname)
            FROM pg_trigger AS g
            JOIN pg_proc AS f ON f.oid = g.tgfoid
            JOIN pg_namespace AS n ON n.oid = f.pronamespace
           WHERE g.tgrelid = to_regclass(t.name) AND NOT g.tgisinternal AND n.nspname <> 'reshard'
       ) AS p (part)
