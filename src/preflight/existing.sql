-- Which of the relations a shard has, as a JSON array. Read-only.
-- $1 relations as JSON text: [{"schema_name", "table_name"}].
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', c.oid::bigint, 'is_table', c.relkind IN ('r', 'p'), 'schema_name', w.schema_name, 'table_name', w.table_name,
    'name', format('%I.%I', n.nspname, c.relname))), '[]')::text
  FROM jsonb_to_recordset($1::text::jsonb) AS w (schema_name text, table_name text)
  JOIN pg_namespace AS n ON n.nspname = w.schema_name
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name
