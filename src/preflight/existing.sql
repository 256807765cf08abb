-- Which of the relations a server has, and what they look like, as a JSON array.
-- $1 relations as JSON text: [{"schema_name", "table_name"}].
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', c.oid::bigint, 'is_table', c.relkind = 'r', 'schema_name', w.schema_name, 'table_name', w.table_name,
    'name', format('%I.%I', n.nspname, c.relname),
    'refuses_apply', c.relkind = 'r' AND c.relrowsecurity AND c.relforcerowsecurity
                     AND NOT r.rolsuper AND NOT r.rolbypassrls,
    'definition', CASE c.relkind
        WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'sequence' END
        || coalesce((SELECT format(' of %s, increment %s', format_type(s.seqtypid, NULL), s.seqincrement)
                       FROM pg_sequence AS s WHERE s.seqrelid = c.oid),
                    (SELECT format(' (%s)', string_agg(format('%I %s%s', a.attname,
                                format_type(a.atttypid, a.atttypmod),
                                CASE WHEN a.attnotnull THEN ' NOT NULL' END), ', ' ORDER BY a.attnum))
                       FROM pg_attribute AS a
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), ' ()'))), '[]')::text
  FROM jsonb_to_recordset($1::text::jsonb) AS w (schema_name text, table_name text)
  JOIN pg_namespace AS n ON n.nspname = w.schema_name
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name
  JOIN pg_roles AS r ON r.oid = c.relowner
