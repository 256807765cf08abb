-- What option "ddl" => "replay" makes of DDL: statements that do the same on the
-- shards. Null where that can't be promised.

CREATE FUNCTION reshard.is_known_object(task_id bigint, classid oid, objid oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    -- 16384 is FirstNormalObjectId: those below are on every server.
    SELECT $3 < 16384
        OR EXISTS (
           SELECT
             FROM pg_depend AS d
             JOIN pg_extension AS x ON x.oid = d.refobjid
             JOIN reshard.schema_statement AS s ON s.object_name = x.extname
            WHERE d.classid = $2 AND d.objid = $3 AND d.deptype = 'e'
              AND d.refclassid = 'pg_extension'::regclass
              AND s.task_id = $1 AND s.shard = 0 AND s.kind = 'extension')
        OR EXISTS (
           SELECT FROM reshard.copy_table AS m
            WHERE $2 = 'pg_class'::regclass AND m.task_id = $1 AND m.relation = $3)
        OR EXISTS (
           SELECT
             FROM (SELECT t.typnamespace, t.typname, ARRAY['type', 'domain', 'table', 'view']
                     FROM pg_type AS t WHERE $2 = 'pg_type'::regclass AND t.oid = $3
                    UNION ALL
                   SELECT p.pronamespace, p.proname, ARRAY['function', 'procedure', 'aggregate']
                     FROM pg_proc AS p WHERE $2 = 'pg_proc'::regclass AND p.oid = $3
                    UNION ALL
                   SELECT o.oprnamespace, o.oprname, ARRAY['operator']
                     FROM pg_operator AS o WHERE $2 = 'pg_operator'::regclass AND o.oid = $3
                    UNION ALL
                   SELECT c.opcnamespace, c.opcname, ARRAY['operator_class']
                     FROM pg_opclass AS c WHERE $2 = 'pg_opclass'::regclass AND c.oid = $3
                    UNION ALL
                   SELECT c.collnamespace, c.collname, ARRAY['collation']
                     FROM pg_collation AS c WHERE $2 = 'pg_collation'::regclass AND c.oid = $3
                    UNION ALL
                   SELECT c.cfgnamespace, c.cfgname, ARRAY['text_search_configuration']
                     FROM pg_ts_config AS c WHERE $2 = 'pg_ts_config'::regclass AND c.oid = $3
                    UNION ALL
                   SELECT c.relnamespace, c.relname,
                          ARRAY['table', 'sequence', 'index', 'primary_key', 'unique']
                     FROM pg_class AS c WHERE $2 = 'pg_class'::regclass AND c.oid = $3
                  ) AS o (namespace, name, kinds)
             JOIN pg_namespace AS n ON n.oid = o.namespace
             JOIN reshard.schema_statement AS s
               ON s.schema_name = n.nspname AND s.object_name = o.name AND s.kind = ANY (o.kinds)
            WHERE s.task_id = $1 AND s.shard = 0)
$known$;
COMMENT ON FUNCTION reshard.is_known_object(bigint, oid, oid) IS
    'whether the shards of a migration have an object';

CREATE FUNCTION reshard.is_known_schema(task_id bigint, schema name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    SELECT $2 = 'public' OR EXISTS (
        SELECT FROM reshard.schema_statement AS s
         WHERE s.task_id = $1 AND s.shard = 0 AND s.kind = 'schema' AND s.object_name = $2)
$known$;
COMMENT ON FUNCTION reshard.is_known_schema(bigint, name) IS
    'whether the shards of a migration have a schema';

CREATE FUNCTION reshard.is_known_type(task_id bigint, type oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    SELECT reshard.is_known_object($1, 'pg_type'::regclass, coalesce(
               (SELECT t.typelem FROM pg_type AS t
                 WHERE t.oid = $2 AND t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc),
               (SELECT r.rngtypid FROM pg_range AS r WHERE r.rngmultitypid = $2),
               $2))
$known$;
COMMENT ON FUNCTION reshard.is_known_type(bigint, oid) IS
    'whether the shards of a migration have a type';

CREATE FUNCTION reshard.is_known_column(task_id bigint, relation oid, attnum int2) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    SELECT reshard.is_known_type($1, a.atttypid)
       AND (a.attcollation = t.typcollation
            OR reshard.is_known_object($1, 'pg_collation'::regclass, a.attcollation))
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
     WHERE a.attrelid = $2 AND a.attnum = $3
$known$;
COMMENT ON FUNCTION reshard.is_known_column(bigint, oid, int2) IS
    'whether the shards of a migration have the type and the collation of a column';

CREATE FUNCTION reshard.collate_clause(relation oid, attnum int2) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $collate$
    SELECT format('COLLATE %I.%I', n.nspname, l.collname)
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
      JOIN pg_collation AS l ON l.oid = a.attcollation
      JOIN pg_namespace AS n ON n.oid = l.collnamespace
     WHERE a.attrelid = $1 AND a.attnum = $2 AND a.attcollation <> t.typcollation
$collate$;
COMMENT ON FUNCTION reshard.collate_clause(oid, int2) IS
    'the collation of a column in its definition; null where it is that of its type';

CREATE FUNCTION reshard.is_known_role(task_id bigint, role oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    -- Roles that the schema names were looked for on the shards before the run.
    SELECT $2 = 0 OR EXISTS (
        SELECT
          FROM pg_roles AS r
         CROSS JOIN LATERAL (VALUES (' TO ' || quote_ident(r.rolname)),
                                    (' TO ' || quote_ident(r.rolname) || ' WITH GRANT OPTION'))
               AS e (ending)
          JOIN reshard.schema_statement AS s ON right(s.sql, length(e.ending)) = e.ending
         WHERE r.oid = $2 AND s.task_id = $1 AND s.shard = 0 AND s.kind IN ('owner', 'grant'))
$known$;
COMMENT ON FUNCTION reshard.is_known_role(bigint, oid) IS
    'whether the shards of a migration have a role; 0 is PUBLIC';

CREATE FUNCTION reshard.needs_unknown(task_id bigint, classid oid, objid oid, relation oid)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $needs$
    SELECT EXISTS (
        SELECT
          FROM pg_depend AS d
         WHERE d.classid = $2 AND d.objid = $3
           AND d.refclassid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_proc'::regclass,
                                'pg_operator'::regclass, 'pg_opclass'::regclass,
                                'pg_collation'::regclass, 'pg_ts_config'::regclass)
           AND NOT CASE d.refclassid
               WHEN 'pg_type'::regclass THEN reshard.is_known_type($1, d.refobjid)
               ELSE reshard.is_known_object($1, d.refclassid, d.refobjid) END
           -- The table itself and its sequences come along.
           AND NOT (d.refclassid = 'pg_class'::regclass
                    AND (d.refobjid = $4
                         OR EXISTS (SELECT FROM pg_depend AS o
                                     WHERE o.classid = 'pg_class'::regclass AND o.objid = d.refobjid
                                       AND o.refclassid = 'pg_class'::regclass AND o.refobjid = $4
                                       AND o.deptype IN ('a', 'i')))))
$needs$;
COMMENT ON FUNCTION reshard.needs_unknown(bigint, oid, oid, oid) IS
    'whether something of a relation needs what the shards of a migration may not have';

CREATE FUNCTION reshard.replayed_index(task_id bigint, index oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $index$
    -- Of a partitioned table: with those of its partitions.
    SELECT regexp_replace(
               regexp_replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '),
               '^CREATE (UNIQUE )?INDEX ', 'CREATE \1INDEX IF NOT EXISTS ')
      FROM pg_index AS i
     WHERE i.indexrelid = $2
       AND NOT reshard.needs_unknown($1, 'pg_class'::regclass, i.indexrelid, i.indrelid)
       AND strpos(pg_get_indexdef(i.indexrelid), ' ON ONLY ')
           IN (0, strpos(pg_get_indexdef(i.indexrelid), ' ON '))
$index$;
COMMENT ON FUNCTION reshard.replayed_index(bigint, oid) IS
    'the statement that makes an index on the shards of a migration';

CREATE FUNCTION reshard.replayed_columns(task_id bigint, query text, relation oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $columns$
    WITH added AS (
        SELECT reshard_added_columns($2) AS names
    ), defined AS (
        SELECT string_agg(format('ADD COLUMN IF NOT EXISTS %I %s%s%s%s', a.attname,
                                 format_type(a.atttypid, a.atttypmod),
                                 ' ' || reshard.collate_clause($3, a.attnum),
                                 ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
                                 CASE WHEN a.attnotnull THEN ' NOT NULL' END),
                          ', ' ORDER BY a.attnum) AS columns
          FROM added AS w
          JOIN pg_attribute AS a ON a.attrelid = $3 AND a.attname = ANY (w.names)
          JOIN pg_type AS t ON t.oid = a.atttypid
          LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity = ''
           -- A default, the column's or its domain's, that is no constant could be another value
           -- on each server.
           AND NOT EXISTS (SELECT FROM regexp_matches(coalesce(d.adbin, t.typdefaultbin)::text,
                                                      '[{]([A-Z]+)', 'g') AS e (node)
                            WHERE e.node[1] NOT IN ('CONST', 'FUNCEXPR', 'RELABELTYPE'))
           AND NOT EXISTS (SELECT FROM regexp_matches(coalesce(d.adbin, t.typdefaultbin)::text,
                                                      ':funcid ([0-9]+)', 'g') AS e (id)
                             LEFT JOIN pg_proc AS p ON p.oid = e.id[1]::oid AND p.oid < 16384
                            WHERE p.provolatile IS DISTINCT FROM 'i')
           AND reshard.is_known_column($1, $3, a.attnum)
        HAVING count(*) = cardinality(min(w.names))
    )
    SELECT format('ALTER TABLE %I.%I %s', n.nspname, c.relname, f.columns)
      FROM defined AS f
      JOIN pg_class AS c ON c.oid = $3
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
$columns$;
COMMENT ON FUNCTION reshard.replayed_columns(bigint, text, oid) IS
    'the statement that adds columns on the shards of a migration';

CREATE FUNCTION reshard.replayed_comment(
    task_id bigint, type text, identity text, classid oid, objid oid, objsubid int)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $comment$
    SELECT format('COMMENT ON %s %s IS %s', k.keyword, $3, coalesce(quote_literal(
               CASE WHEN $6 <> 0 THEN col_description($5, $6)
                    ELSE obj_description($5, $4::regclass::name) END), 'NULL'))
      FROM (VALUES ('table', 'TABLE'), ('table column', 'COLUMN'), ('index', 'INDEX'),
                   ('table constraint', 'CONSTRAINT'), ('trigger', 'TRIGGER'), ('policy', 'POLICY'),
                   ('rule', 'RULE'), ('sequence', 'SEQUENCE'), ('statistics object', 'STATISTICS'))
           AS k (type, keyword)
     WHERE k.type = $2
       -- Foreign keys that the shards may not have.
       AND NOT EXISTS (
           SELECT
             FROM reshard.task AS t
            CROSS JOIN LATERAL jsonb_array_elements(t.options -> 'unfit_foreign_keys') AS u (key)
             JOIN pg_constraint AS c ON c.oid = $5 AND c.conname = u.key ->> 'name'
            WHERE t.id = $1 AND $4 = 'pg_constraint'::regclass)
$comment$;
COMMENT ON FUNCTION reshard.replayed_comment(bigint, text, text, oid, oid, int) IS
    'the statement that brings a comment to the shards of a migration';

CREATE FUNCTION reshard.regranted(task_id bigint) RETURNS SETOF oid
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $regranted$
    -- A GRANT is reported without its objects: they are found by their rows, which
    -- are of this transaction, or of others that have ended since it began.
    WITH moved AS (
        SELECT m.relation AS oid FROM reshard.copy_table AS m WHERE m.task_id = $1
        UNION
        SELECT a.relid FROM reshard.copy_table AS m, pg_partition_ancestors(m.relation) AS a
         WHERE m.task_id = $1
    ), relation AS (
        SELECT m.oid FROM moved AS m
        UNION
        SELECT d.objid
          FROM moved AS m
          JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = m.oid
                             AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
          JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
    )
    SELECT r.oid
      FROM relation AS r
      JOIN pg_class AS c ON c.oid = r.oid
     WHERE age(c.xmin) <= age(pg_current_xact_id()::xid)
        OR EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = r.oid AND age(a.xmin) <= age(pg_current_xact_id()::xid))
$regranted$;
COMMENT ON FUNCTION reshard.regranted(bigint) IS
    'tables of a migration, those above them and their sequences whose privileges may have changed just now';

CREATE FUNCTION reshard.leaves_out_owners(task_id bigint) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $leaves$
    SELECT coalesce((SELECT (t.options ->> 'no_owner')::boolean FROM reshard.task AS t WHERE t.id = $1), false)
$leaves$;
COMMENT ON FUNCTION reshard.leaves_out_owners(bigint) IS 'option "no_owner" of a migration';

CREATE FUNCTION reshard.replayed_privileges(task_id bigint, relation oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $privileges$
    WITH target AS (
        SELECT c.relowner, c.relacl, CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS class,
               CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS keyword,
               -- Owners that are left out may be other roles there, with privileges of their own.
               NOT reshard.leaves_out_owners($1) AS with_owner,
               ARRAY(SELECT x.privilege_type
                       FROM aclexplode(acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char",
                                                  c.relowner)) AS x
                      WHERE x.grantee = c.relowner ORDER BY x.privilege_type) AS every,
               format('%I.%I', n.nspname, c.relname) AS name
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = $2
    ), item AS (
        SELECT x.grantor, x.grantee, x.is_grantable, x.privilege_type AS privilege
          FROM target AS t
         CROSS JOIN LATERAL aclexplode(coalesce(t.relacl, acldefault(t.class::"char", t.relowner))) AS x
         WHERE x.grantee <> t.relowner OR t.with_owner
        UNION ALL
        SELECT x.grantor, x.grantee, x.is_grantable, format('%s (%I)', x.privilege_type, a.attname)
          FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS x
         WHERE a.attrelid = $2 AND NOT a.attisdropped
    ), granted AS (
        -- All of them go by that word: a server of another version may have more or fewer.
        SELECT format('GRANT %s ON %s %s TO %s%s',
                      CASE WHEN array_agg(i.privilege ORDER BY i.privilege) = t.every THEN 'ALL'
                           ELSE string_agg(i.privilege, ', ' ORDER BY i.privilege) END,
                      t.keyword, t.name, coalesce(quote_ident(r.rolname), 'PUBLIC'),
                      CASE WHEN i.is_grantable THEN ' WITH GRANT OPTION' END) AS statement
          FROM item AS i
         CROSS JOIN target AS t
          LEFT JOIN pg_roles AS r ON r.oid = i.grantee
         GROUP BY t.keyword, t.name, t.every, i.grantee, r.rolname, i.is_grantable
    )
    -- Whoever has any there has just these afterwards.
    SELECT concat_ws(E';\n',
               'DO ' || quote_literal(format($revoke$
                   DECLARE
                       who text;
                   BEGIN
                       FOR who IN
                           SELECT DISTINCT coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC')
                             FROM (SELECT x.grantee
                                     FROM pg_catalog.pg_class AS c
                                    CROSS JOIN LATERAL pg_catalog.aclexplode(
                                              coalesce(c.relacl, pg_catalog.acldefault(%1$L, c.relowner))) AS x
                                    WHERE c.oid = %3$L::pg_catalog.regclass
                                      AND (x.grantee <> c.relowner OR %4$L)
                                    UNION
                                   SELECT x.grantee
                                     FROM pg_catalog.pg_attribute AS a
                                    CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS x
                                    WHERE a.attrelid = %3$L::pg_catalog.regclass) AS g
                             LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
                       LOOP
                           EXECUTE pg_catalog.concat('REVOKE ALL ON ', %2$L, ' ', %3$L, ' FROM ', who, ' CASCADE');
                       END LOOP;
                   END$revoke$, t.class, t.keyword, t.name, t.with_owner)),
               (SELECT string_agg(g.statement, E';\n' ORDER BY g.statement) FROM granted AS g))
      FROM target AS t
     WHERE NOT EXISTS (
           SELECT FROM item AS i
            WHERE i.grantor <> t.relowner
               OR i.grantee <> t.relowner AND NOT reshard.is_known_role($1, i.grantee))
$privileges$;
COMMENT ON FUNCTION reshard.replayed_privileges(bigint, oid) IS
    'statements that give a relation the same privileges on the shards of a migration';

