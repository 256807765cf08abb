-- Published tables, down to the leaves of partitioned ones and up to their
-- roots, with their sharding keys and what is built on them, as a JSON array.
-- Read-only. $1 publication, $2 sharding rules as JSON text, in order of precedence.
WITH rule AS (
    SELECT ARRAY(SELECT jsonb_populate_record(NULL::reshard.sharding_rule,
                                              r.rule || jsonb_build_object('rule_no', r.nr))
                   FROM jsonb_array_elements($2::text::jsonb) WITH ORDINALITY AS r (rule, nr)) AS rules
), leaf AS (
    SELECT p.relation AS oid, p.column_names AS attnames, p.row_filter AS rowfilter, p.filter_columns
      FROM reshard.published_leaves($1) AS p
), member AS (
    SELECT l.oid, l.attnames, l.rowfilter, l.filter_columns, true AS leaf FROM leaf AS l
    UNION
    SELECT DISTINCT ON (a.relid) a.relid::oid, l.attnames, l.rowfilter, l.filter_columns, false
      FROM leaf AS l CROSS JOIN LATERAL pg_partition_ancestors(l.oid) AS a
     WHERE a.relid <> l.oid
), keyed AS (
    SELECT m.oid, m.leaf, m.attnames, m.rowfilter, m.filter_columns, n.nspname, c.relname, c.relkind, c.relpersistence,
           c.relispartition, c.relreplident, c.relhasindex, c.reltuples,
           k.column_names AS key, k.method AS key_method
      FROM member AS m
      JOIN pg_class AS c ON c.oid = m.oid
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     CROSS JOIN rule AS r
     CROSS JOIN LATERAL reshard.key_by_rules(m.oid, r.rules) AS k
), key_column AS (
    -- One row for each column of a table's key; attnum is null where the table lacks it.
    SELECT k.oid AS relation, c.nr, c.name, c.name = ANY (k.attnames) AS published,
           a.attnum, a.attnotnull, a.attgenerated, a.atttypid, a.atttypmod, a.attcollation,
           CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END AS base
      FROM keyed AS k
     CROSS JOIN LATERAL unnest(k.key) WITH ORDINALITY AS c (name, nr)
      LEFT JOIN pg_attribute AS a ON a.attrelid = k.oid AND a.attname = c.name
                                 AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_type AS t ON t.oid = a.atttypid
), key_class AS (
    -- The default operator class of each key column's type, of btree and of hash, with the
    -- function that hash partitioning calls. Binary-coercible types use another's, the
    -- preferred one first (GetDefaultOpClass).
    SELECT DISTINCT ON (t.oid, o.opcmethod) t.oid AS type, o.opcmethod, o.opcfamily,
           (SELECT format('%I.%I', n.nspname, p.proname)
              FROM pg_amproc AS m
              JOIN pg_proc AS p ON p.oid = m.amproc
              JOIN pg_namespace AS n ON n.oid = p.pronamespace
             WHERE m.amprocfamily = o.opcfamily AND m.amprocnum = 2
               AND m.amproclefttype = o.opcintype AND m.amprocrighttype = o.opcintype) AS function
      FROM (SELECT DISTINCT c.base AS oid FROM key_column AS c) AS k
      JOIN pg_type AS t ON t.oid = k.oid
      -- 403 is the access method btree, 405 is hash.
      JOIN pg_opclass AS o ON o.opcdefault AND o.opcmethod IN (403, 405)
       AND (o.opcintype = t.oid
            OR o.opcintype = 'anyenum'::regtype AND t.typtype = 'e'
            OR o.opcintype = 'anyrange'::regtype AND t.typtype = 'r'
            OR o.opcintype = 'anymultirange'::regtype AND t.typtype = 'm'
            OR o.opcintype = 'record'::regtype AND t.typtype = 'c'
            OR o.opcintype = 'anyarray'::regtype AND t.typelem <> 0 AND t.typlen = -1
            OR EXISTS (SELECT FROM pg_cast AS c
                        WHERE c.castsource = t.oid AND c.casttarget = o.opcintype
                          AND c.castmethod = 'b' AND c.castcontext = 'i'))
      JOIN pg_type AS i ON i.oid = o.opcintype
     ORDER BY t.oid, o.opcmethod, o.opcintype = t.oid DESC, i.typispreferred DESC
), base AS (
    SELECT k.*, c.attnums AS key_attnums, coalesce(c.columns, '[]') AS key_columns
      FROM keyed AS k
      LEFT JOIN (
            SELECT c.relation,
                   CASE WHEN bool_and(c.attnum IS NOT NULL)
                        THEN array_agg(c.attnum ORDER BY c.nr) END AS attnums,
                   jsonb_agg(jsonb_build_object(
                       'name', c.name, 'exists', c.attnum IS NOT NULL,
                       'generated', coalesce(c.attgenerated <> '', false),
                       'published', coalesce(c.published, false),
                       'type_shown', format_type(c.atttypid, c.atttypmod),
                       'type_name', format_type(c.atttypid, -1),
                       'type_oid', c.atttypid::bigint, 'collation', c.attcollation::bigint,
                       'collation_name', (SELECT format('%I.%I', n.nspname, l.collname)
                                            FROM pg_collation AS l
                                            JOIN pg_namespace AS n ON n.oid = l.collnamespace
                                           WHERE l.oid = c.attcollation),
                       'not_null', coalesce(c.attnotnull, false),
                       -- 16384 is FirstNormalObjectId: what is below is built in.
                       'built_in', coalesce(c.atttypid < 16384 AND c.attcollation < 16384, false),
                       'comparable', o.opcfamily IS NOT NULL,
                       -- Types of one family hash equal values alike.
                       'hash', h.function, 'hash_family', h.opcfamily::bigint)
                       ORDER BY c.nr) AS columns
              FROM key_column AS c
              LEFT JOIN key_class AS o ON o.type = c.base AND o.opcmethod = 403
              LEFT JOIN key_class AS h ON h.type = c.base AND h.opcmethod = 405
             GROUP BY c.relation) AS c ON c.relation = k.oid
)
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', b.oid::bigint, 'schema_name', b.nspname, 'table_name', b.relname,
    'name', format('%I.%I', b.nspname, b.relname),
    'leaf', b.leaf, 'heap_bytes', CASE WHEN b.leaf THEN pg_table_size(b.oid) ELSE 0 END,
    'key', b.key, 'key_method', b.key_method, 'key_columns', b.key_columns,
    'row_filter', b.rowfilter, 'filter_columns', b.filter_columns, 'published', b.attnames,
    'identity', CASE
        WHEN b.relreplident = 'f' THEN CASE WHEN f.column_list OR f.generated THEN 'none' ELSE 'full' END
        WHEN b.relreplident = 'i' THEN 'index'
        WHEN EXISTS (SELECT FROM pg_index AS i
                      WHERE i.indrelid = b.oid AND i.indisprimary AND i.indimmediate)
            THEN 'primary key'
        ELSE 'none' END,
    'publishes_primary_key', (
        SELECT bool_and(a.attname = ANY (b.attnames) AND a.attgenerated = '') IS true
          FROM pg_index AS i
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid
                                AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         WHERE i.indrelid = b.oid AND i.indisprimary AND i.indimmediate),
    'incomparable', to_jsonb(reshard.incomparable_columns(b.oid, b.attnames)),
    'unfilled', (SELECT coalesce(jsonb_agg(a.attname ORDER BY a.attnum), '[]')
                   FROM pg_attribute AS a
                  WHERE a.attrelid = b.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
                    AND NOT a.attname = ANY (b.attnames)),
    'column_list', f.column_list, 'generated', f.generated,
    'identity_columns', (
        SELECT coalesce(jsonb_agg(a.attname), '[]')
          FROM pg_index AS i
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid
                                AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         WHERE i.indrelid = b.oid AND i.indislive
           AND CASE b.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                                   WHEN 'i' THEN i.indisreplident ELSE false END),
    -- Unique indexes that can be an identity, in the order in which the run chooses.
    'identity_candidates', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', x.relname, 'columns', k.columns)
                                  ORDER BY i.indisprimary DESC, i.indnkeyatts, x.relname), '[]')
          FROM pg_index AS i
          JOIN pg_class AS x ON x.oid = i.indexrelid
         CROSS JOIN LATERAL (
                SELECT jsonb_agg(a.attname) AS columns, bool_and(a.attnotnull AND a.attgenerated = ''
                                                           AND a.attname = ANY (b.attnames)) AS fit
                  FROM pg_attribute AS a
                 WHERE a.attrelid = b.oid
                   AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) AS k
         WHERE i.indrelid = b.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
           AND i.indpred IS NULL AND i.indexprs IS NULL AND k.fit),
    'not_null', (SELECT coalesce(jsonb_agg(a.attname), '[]') FROM pg_attribute AS a
                  WHERE a.attrelid = b.oid AND a.attnum > 0 AND a.attnotnull),
    'row_estimate', greatest(b.reltuples, 0)::bigint,
    'total_bytes', CASE WHEN b.leaf THEN pg_total_relation_size(b.oid) ELSE 0 END,
    'unkeyed_unique', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', x.relname, 'generated', EXISTS (
                   -- Values that are made by the server, and differ on all shards.
                   SELECT FROM pg_attribute AS a
                     LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                    WHERE a.attrelid = b.oid
                      AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                      AND (a.attidentity <> ''
                           OR pg_get_expr(d.adbin, d.adrelid) ~ '^(nextval|([\w".]+\.)?"?(gen_random_uuid|uuidv[47]|uuid_generate_v\d\w*)"?)\(')))
                   ORDER BY x.relname), '[]')
          FROM pg_index AS i
          JOIN pg_class AS x ON x.oid = i.indexrelid
         WHERE i.indrelid = b.oid AND (i.indisunique OR i.indisexclusion) AND NOT x.relispartition
           AND NOT b.key_attnums <@ (i.indkey::int2[])[0:i.indnkeyatts - 1]),
    'extension', (SELECT x.extname FROM pg_depend AS d JOIN pg_extension AS x ON x.oid = d.refobjid
                   WHERE d.classid = 'pg_class'::regclass AND d.objid = b.oid AND d.deptype = 'e'
                     AND d.refclassid = 'pg_extension'::regclass),
    'firing_triggers', (
        SELECT coalesce(jsonb_agg(g.tgname ORDER BY g.tgname), '[]')
          FROM pg_trigger AS g
         WHERE g.tgrelid = b.oid AND NOT g.tgisinternal AND g.tgenabled IN ('A', 'R')
           AND g.tgname !~ '^(zzz_)?reshard_')
    ) ORDER BY b.nspname, b.relname), '[]')::text
  FROM base AS b
  CROSS JOIN LATERAL (
    -- Whole rows can't be an identity where not all of them is published: columns that
    -- the publication leaves out, and from PostgreSQL 18 on stored generated ones.
    SELECT count(*) FILTER (WHERE a.attgenerated = '') > coalesce(cardinality(b.attnames), 10000)
               AS column_list,
           current_setting('server_version_num')::int >= 180000
               AND bool_or(a.attgenerated = 's') IS true AS generated
      FROM pg_attribute AS a
     WHERE a.attrelid = b.oid AND a.attnum > 0 AND NOT a.attisdropped) AS f
