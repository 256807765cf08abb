-- Unique indexes that lack a column of their table's key, with the sequences that feed
-- them, as a JSON array. Read-only.
-- $1 tables as JSON text: [{"oid", "key": [names]}].
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', i.indrelid::bigint, 'name', x.relname, 'keys', k.keys,
    'predicate', pg_get_expr(i.indpred, i.indrelid), 'sequences', coalesce(s.names, '[]'))
    ORDER BY i.indrelid, x.relname), '[]')::text
  FROM jsonb_to_recordset($1::text::jsonb) AS w (oid bigint, key name[])
  JOIN pg_index AS i ON i.indrelid = w.oid::oid AND i.indisunique AND i.indisready AND i.indislive
  JOIN pg_class AS x ON x.oid = i.indexrelid
 CROSS JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object(
                   'expression', pg_get_indexdef(i.indexrelid, p.n, false),
                   'type_name', coalesce(format_type(a.atttypid, a.atttypmod),
                                         format_type(y.atttypid, y.atttypmod))) ORDER BY p.n) AS keys,
               array_agg(a.attname) AS columns
          FROM generate_series(1, i.indnkeyatts::int) AS p (n)
          JOIN pg_attribute AS y ON y.attrelid = i.indexrelid AND y.attnum = p.n
          -- None where it is an expression.
          LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum > 0
                                     AND a.attnum = (i.indkey::int2[])[p.n - 1]) AS k
 CROSS JOIN LATERAL (
        SELECT jsonb_agg(DISTINCT format('%I.%I', n.nspname, q.relname)) AS names
          FROM (SELECT i.indrelid
                UNION
                SELECT t.relid::oid FROM pg_partition_ancestors(i.indrelid) AS t) AS o (oid)
          JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attname = ANY (k.columns)
         CROSS JOIN LATERAL (
                -- of its default, or of an identity column
                SELECT p.refobjid
                  FROM pg_attrdef AS d
                  JOIN pg_depend AS p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                                     AND p.refclassid = 'pg_class'::regclass
                 WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum
                UNION
                SELECT p.objid
                  FROM pg_depend AS p
                 WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = a.attrelid
                   AND p.refobjsubid = a.attnum AND p.classid = 'pg_class'::regclass
                   AND p.deptype = 'i') AS f (oid)
          JOIN pg_class AS q ON q.oid = f.oid AND q.relkind = 'S'
          JOIN pg_namespace AS n ON n.oid = q.relnamespace) AS s
 WHERE NOT w.key <@ k.columns
