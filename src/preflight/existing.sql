-- Which of the tables a shard has, as a JSON array. Read-only.
-- $1 tables as JSON text: [{"schema_name", "table_name"}].
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', c.oid::bigint, 'schema_name', w.schema_name, 'table_name', w.table_name,
    'name', format('%I.%I', n.nspname, c.relname))), '[]')::text
  FROM jsonb_to_recordset($1::text::jsonb) AS w (schema_name text, table_name text)
  JOIN pg_namespace AS n ON n.nspname = w.schema_name
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name
