-- How a table is compared: its size, its columns, and the columns that tell its rows
-- apart: those of the primary key, or else of a unique index over columns that are
-- never null.
-- $1 name of the table, $2 columns that move.
WITH compared AS (
    SELECT pg_catalog.to_regclass($1) AS oid
), key AS (
    SELECT i.indrelid, i.indkey, i.indclass, i.indnkeyatts
      FROM pg_catalog.pg_index AS i
      JOIN compared AS c ON c.oid = i.indrelid
     WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
       AND NOT EXISTS (
               SELECT FROM unnest(i.indkey::int2[], i.indclass::oid[])
                           WITH ORDINALITY AS k (attnum, opclass, nr)
                 JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 JOIN pg_catalog.pg_opclass AS o ON o.oid = k.opclass
                WHERE k.nr <= i.indnkeyatts
                  AND NOT (a.attnotnull AND o.opcdefault
                           AND (a.attname = ANY ($2::text[]) OR a.attgenerated <> '')))
     ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid
     LIMIT 1
)
SELECT pg_catalog.jsonb_build_object(
           'bytes', pg_catalog.pg_table_size(c.oid),
           'blocks', pg_catalog.pg_relation_size(c.oid)
                     / pg_catalog.current_setting('block_size')::bigint,
           'columns', (
               SELECT coalesce(pg_catalog.jsonb_agg(
                          pg_catalog.jsonb_build_object(
                              'name', a.attname,
                              'type', CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace
                                           THEN t.typname END)
                          ORDER BY m.nr), '[]')
                 FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY AS m (name, nr)
                 JOIN pg_catalog.pg_attribute AS a
                   ON a.attrelid = c.oid AND a.attname = m.name AND NOT a.attisdropped
                 JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid),
           'key', (
               SELECT pg_catalog.jsonb_agg(
                          pg_catalog.jsonb_build_object(
                              'name', a.attname,
                              'type', CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace
                                           THEN t.typname END,
                              -- Of any length: character would be character(1).
                              'cast', pg_catalog.format_type(
                                          coalesce(nullif(t.typbasetype, 0::oid), t.oid), -1),
                              'schema', n.nspname)
                          ORDER BY x.nr)
                 FROM key AS k
                CROSS JOIN unnest(k.indkey::int2[], k.indclass::oid[])
                           WITH ORDINALITY AS x (attnum, opclass, nr)
                 JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.indrelid AND a.attnum = x.attnum
                 JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
                 JOIN pg_catalog.pg_opclass AS o ON o.oid = x.opclass
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = o.opcnamespace
                WHERE x.nr <= k.indnkeyatts))::text
  FROM compared AS c
 WHERE c.oid IS NOT NULL
