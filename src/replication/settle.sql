-- What a server's catalogs say about tables, all at once. Read-only.
-- $1 names, $2 columns of row filters and $3 those that move, both as JSON arrays,
-- $4 the fence's trigger, $5 the trigger that writes whole rows.
WITH wanted AS (
    SELECT t.nr, to_regclass(t.name)::oid AS oid,
           ARRAY(SELECT jsonb_array_elements_text(t.filter::jsonb)) AS filter,
           ARRAY(SELECT jsonb_array_elements_text(t.columns::jsonb)) AS columns
      FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
           AS t (name, filter, columns, nr)
), key AS (
    -- Key columns of indexes, one row each.
    SELECT w.nr, i.indexrelid, a.attname::text,
           a.attnotnull AND a.attgenerated = '' AND a.attname = ANY (w.columns) AS fit
      FROM wanted AS w
      JOIN pg_index AS i ON i.indrelid = w.oid
     CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
      LEFT JOIN pg_attribute AS a ON a.attrelid = w.oid AND a.attnum = k.attnum
     WHERE k.place <= i.indnkeyatts
), usable AS (
    -- Unique indexes that can be a replica identity and hold the filter's columns.
    SELECT DISTINCT ON (w.nr) w.nr, x.relname
      FROM wanted AS w
      JOIN pg_index AS i ON i.indrelid = w.oid
      JOIN pg_class AS x ON x.oid = i.indexrelid
     WHERE i.indisunique AND i.indimmediate AND i.indisvalid
       AND i.indpred IS NULL AND i.indexprs IS NULL
       AND NOT EXISTS (SELECT FROM key AS k
                        WHERE k.nr = w.nr AND k.indexrelid = i.indexrelid AND k.fit IS NOT true)
       AND w.filter <@ ARRAY(SELECT k.attname FROM key AS k
                              WHERE k.nr = w.nr AND k.indexrelid = i.indexrelid)
     ORDER BY w.nr, i.indisprimary DESC, i.indnkeyatts, x.relname
)
SELECT w.nr, c.relreplident::text,
       coalesce((SELECT array_agg(k.attname)
                   FROM pg_index AS i
                   JOIN key AS k ON k.nr = w.nr AND k.indexrelid = i.indexrelid
                  WHERE i.indrelid = c.oid AND i.indislive
                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                                            WHEN 'i' THEN i.indisreplident
                                            ELSE false END), '{}'),
       u.relname::text,
       (SELECT count(*) FROM pg_attribute AS a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attgenerated = '') > cardinality(w.columns),
       c.reltoastrelid <> 0,
       EXISTS (SELECT FROM pg_trigger AS g
                WHERE g.tgrelid = c.oid AND g.tgname = $4 AND g.tgenabled = 'A'),
       EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgname = $5),
       (SELECT x.relname::text
          FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
         WHERE i.indrelid = c.oid AND i.indisreplident AND c.relreplident = 'i'),
       -- Whether a unique index over primary key and filter columns could be one.
       EXISTS (SELECT FROM pg_index AS i
                WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate
                  AND NOT EXISTS (SELECT FROM key AS k
                                   WHERE k.nr = w.nr AND k.indexrelid = i.indexrelid
                                     AND k.fit IS NOT true))
       AND w.filter <@ ARRAY(SELECT a.attname::text FROM pg_attribute AS a
                              WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attnotnull
                                AND a.attname = ANY (w.columns)),
       -- Then whole rows can't be an identity.
       current_setting('server_version_num')::int >= 180000
       AND EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = c.oid AND a.attgenerated = 's')
  FROM wanted AS w
  JOIN pg_class AS c ON c.oid = w.oid
  LEFT JOIN usable AS u ON u.nr = w.nr
