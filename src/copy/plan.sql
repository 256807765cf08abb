-- Tables of a publication, down to the leaves of partitioned ones, with the
-- columns that COPY brings, the sharding key and the form on the wire.
-- $1 task, $2 publication, $3 destination cluster.
WITH RECURSIVE leaf AS (
    SELECT c.oid, n.nspname, c.relname, c.relreplident, p.column_names AS attnames,
           p.row_filter AS rowfilter, p.filter_columns
      FROM reshard.published_leaves($2) AS p
      JOIN pg_catalog.pg_class AS c ON c.oid = p.relation
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
), attribute AS (
    SELECT l.oid AS relation, a.attname, a.attnum, a.atttypid,
           a.attgenerated <> '' AS generated,
           a.attgenerated = '' AND a.attname = ANY (l.attnames) AS copied
      FROM leaf AS l
      JOIN pg_catalog.pg_attribute AS a ON a.attrelid = l.oid
     WHERE a.attnum > 0 AND NOT a.attisdropped
), component (type, oid) AS (
    SELECT DISTINCT atttypid, atttypid FROM attribute WHERE copied
    UNION
    SELECT c.type, x.oid
      FROM component AS c
      JOIN pg_catalog.pg_type AS t ON t.oid = c.oid
     CROSS JOIN LATERAL (
              SELECT t.typelem WHERE t.typelem <> 0 AND t.typsend = 'pg_catalog.array_send'::regproc
              UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
              UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute AS a
                         WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
                           AND a.attnum > 0 AND NOT a.attisdropped
              UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range AS r WHERE r.rngtypid = t.oid
              UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range AS r WHERE r.rngmultitypid = t.oid
           ) AS x (oid)
), unportable AS (
    -- Object identifiers are other numbers on another server; the rest has no binary form.
    SELECT DISTINCT c.type
      FROM component AS c
      JOIN pg_catalog.pg_type AS t ON t.oid = c.oid
     WHERE t.typsend = 0 OR t.typreceive = 0
        OR t.oid IN ('regproc'::regtype, 'regprocedure'::regtype, 'regoper'::regtype,
                     'regoperator'::regtype, 'regclass'::regtype, 'regtype'::regtype,
                     'regrole'::regtype, 'regnamespace'::regtype, 'regconfig'::regtype,
                     'regdictionary'::regtype, 'regcollation'::regtype)
), planned AS (
    SELECT l.*,
           (SELECT pg_catalog.array_agg(a.attname ORDER BY a.attnum)
              FROM attribute AS a WHERE a.relation = l.oid AND a.copied) AS columns,
           EXISTS (SELECT FROM attribute AS a JOIN unportable AS u ON u.type = a.atttypid
                    WHERE a.relation = l.oid AND a.copied) AS as_text,
           k.column_names AS key_columns, k.method AS key_method
      FROM leaf AS l
     CROSS JOIN LATERAL reshard.sharding_key_of(l.oid, $3) AS k
     WHERE NOT EXISTS (SELECT FROM reshard.copy_table AS t
                        WHERE t.task_id = $1 AND t.relation = l.oid)
)
INSERT INTO reshard.copy_table
       (task_id, table_id, relation, schema_name, table_name, columns, column_list, key_columns,
        key_method, row_filter, filter_columns, format, identity, identity_index, bytes_total)
SELECT $1,
       coalesce((SELECT pg_catalog.max(t.table_id) FROM reshard.copy_table AS t WHERE t.task_id = $1), 0)
           + pg_catalog.row_number() OVER (ORDER BY p.nspname, p.relname),
       p.oid, p.nspname, p.relname, p.columns,
       EXISTS (SELECT FROM attribute AS a
                WHERE a.relation = p.oid AND NOT a.copied AND NOT a.generated),
       p.key_columns, p.key_method, p.rowfilter, p.filter_columns,
       CASE WHEN p.as_text THEN 'text' ELSE 'binary' END, p.relreplident,
       (SELECT c.relname FROM pg_catalog.pg_index AS i
          JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
         WHERE i.indrelid = p.oid AND i.indisreplident AND p.relreplident = 'i'),
       pg_catalog.pg_table_size(p.oid)
  FROM planned AS p
