-- New tables and partitions under option "ddl" => "replay": the statements that
-- make them on the shards.

CREATE FUNCTION reshard.fits_on_shards(task_id bigint, destination text, foreign_key oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fits$
    -- As preflight judges them: what is referred to is on every shard, or on the same one.
    SELECT EXISTS (SELECT FROM reshard.copy_table AS m
                    WHERE m.task_id = $1
                      AND (m.relation = k.confrelid
                           OR m.relation IN (SELECT t.relid FROM pg_partition_tree(k.confrelid) AS t)))
       AND (x.referenced IS NULL
            OR (SELECT count(*) = 1 FROM reshard.declared_shard AS s WHERE s.cluster = $2)
            -- An omni table has no columns to match.
            OR coalesce(cardinality(x.own), 0) = cardinality(x.referenced)
               AND (SELECT bool_and((y.own, y.referenced) IN (
                               SELECT a.attname, b.attname
                                 FROM unnest(k.conkey, k.confkey) AS p (own, referenced)
                                 JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = p.own
                                 JOIN pg_attribute AS b ON b.attrelid = k.confrelid AND b.attnum = p.referenced))
                      FROM unnest(x.own, x.referenced) AS y (own, referenced)))
      FROM pg_constraint AS k
     CROSS JOIN LATERAL (SELECT a.column_names, b.column_names
                           FROM reshard.sharding_key_of(k.conrelid, $2) AS a,
                                reshard.sharding_key_of(k.confrelid, $2) AS b) AS x (own, referenced)
     WHERE k.oid = $3
$fits$;
COMMENT ON FUNCTION reshard.fits_on_shards(bigint, text, oid) IS
    'whether a foreign key holds on each shard of a migration by itself';

CREATE FUNCTION reshard.is_known_table(task_id bigint, relation oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    SELECT reshard.is_known_object($1, 'pg_class'::regclass, $2)
        OR EXISTS (SELECT
                     FROM pg_class AS c
                     JOIN pg_namespace AS n ON n.oid = c.relnamespace
                     JOIN reshard.ddl AS d
                       ON strpos(d.sql, format('CREATE TABLE %I.%I ', n.nspname, c.relname)) > 0
                    WHERE c.oid = $2 AND d.task_id = $1)
$known$;
COMMENT ON FUNCTION reshard.is_known_table(bigint, oid) IS
    'whether the shards of a migration have a table, of the schema or replayed';

CREATE FUNCTION reshard.replayed_sequence(sequence oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $sequence$
    SELECT format('INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s',
                  s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache,
                  CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)
      FROM pg_sequence AS s
     WHERE s.seqrelid = $1
$sequence$;
COMMENT ON FUNCTION reshard.replayed_sequence(oid) IS 'the options of a sequence';

CREATE FUNCTION reshard.replayed_table_columns(task_id bigint, relation oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $columns$
    WITH col AS (
        SELECT a.*, pg_get_expr(d.adbin, d.adrelid) AS expression, d.oid AS expression_oid,
               p.attname IS NOT NULL AS inherited,
               a.attnotnull AND NOT coalesce(p.attnotnull, false) AS own_not_null,
               pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(e.adbin, e.adrelid) AS own_default
          FROM pg_attribute AS a
          LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          -- Of a partition: the same column of the table above it.
          LEFT JOIN pg_inherits AS i ON i.inhrelid = a.attrelid
          LEFT JOIN pg_attribute AS p ON p.attrelid = i.inhparent AND p.attname = a.attname
          LEFT JOIN pg_attrdef AS e ON e.adrelid = p.attrelid AND e.adnum = p.attnum
         WHERE a.attrelid = $2 AND a.attnum > 0 AND NOT a.attisdropped
    )
    SELECT CASE WHEN bool_and(
               reshard.is_known_column($1, $2, c.attnum)
               AND (c.expression_oid IS NULL
                    OR NOT reshard.needs_unknown($1, 'pg_attrdef'::regclass, c.expression_oid, $2)))
           -- Without any: those of the table above it alone.
           THEN coalesce(string_agg(
               concat_ws(' ', quote_ident(c.attname),
                   CASE WHEN c.inherited THEN 'WITH OPTIONS'
                        ELSE format_type(c.atttypid, c.atttypmod) END,
                   CASE WHEN NOT c.inherited THEN
                        CASE c.attcompression WHEN 'p' THEN 'COMPRESSION pglz'
                                              WHEN 'l' THEN 'COMPRESSION lz4' END END,
                   CASE WHEN NOT c.inherited THEN reshard.collate_clause($2, c.attnum) END,
                   -- From PostgreSQL 18 on it has a name.
                   CASE WHEN c.own_not_null THEN concat_ws(' ',
                        (SELECT 'CONSTRAINT ' || quote_ident(x.conname) FROM pg_constraint AS x
                          WHERE x.conrelid = c.attrelid AND x.contype = 'n'
                            AND x.conkey = ARRAY[c.attnum]),
                        'NOT NULL') END,
                   CASE WHEN c.inherited AND NOT c.own_default THEN NULL
                        WHEN c.attgenerated = 's' THEN format('GENERATED ALWAYS AS (%s) STORED', c.expression)
                        WHEN c.attgenerated = 'v' THEN format('GENERATED ALWAYS AS (%s)', c.expression)
                        WHEN c.attidentity <> '' AND NOT c.inherited THEN
                             format('GENERATED %s AS IDENTITY (SEQUENCE NAME %s %s)',
                                    CASE c.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
                                    (SELECT format('%I.%I', n.nspname, s.relname)
                                       FROM pg_class AS s JOIN pg_namespace AS n ON n.oid = s.relnamespace
                                      WHERE s.oid = q.oid),
                                    reshard.replayed_sequence(q.oid))
                        WHEN c.expression IS NOT NULL THEN 'DEFAULT ' || c.expression
                        WHEN c.inherited THEN 'DEFAULT NULL' END),
               ', ' ORDER BY c.attnum) FILTER (WHERE NOT c.inherited OR c.own_not_null OR c.own_default), '')
           END
      FROM col AS c
      LEFT JOIN LATERAL (SELECT d.objid AS oid FROM pg_depend AS d
                          WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                            AND d.refobjid = $2 AND d.refobjsubid = c.attnum AND d.deptype = 'i') AS q
        ON c.attidentity <> ''
$columns$;
COMMENT ON FUNCTION reshard.replayed_table_columns(bigint, oid) IS
    'the columns of a table that has just been made, of a partition those with something of their own; null where one needs what the shards of a migration may not have';

CREATE FUNCTION reshard.replayed_table(task_id bigint, destination text, relation oid) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $table$
DECLARE
    made record;
    columns text;
    statements text[] := '{}';
    afterwards text[] := '{}';
    owned record;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname) AS name, n.nspname AS schema, c.relkind, c.reloptions,
           c.relispartition, pg_get_partkeydef(c.oid) AS key, pg_get_expr(c.relpartbound, c.oid) AS bound,
           (SELECT format('%I.%I', q.nspname, p.relname)
              FROM pg_inherits AS i JOIN pg_class AS p ON p.oid = i.inhparent
              JOIN pg_namespace AS q ON q.oid = p.relnamespace
             WHERE i.inhrelid = c.oid) AS parent,
           (SELECT array_agg('toast.' || o) FROM unnest(t.reloptions) AS o) AS toast_options,
           r.rolname AS owner, c.relowner
      INTO made
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_roles AS r ON r.oid = c.relowner
      LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
      LEFT JOIN pg_am AS m ON m.oid = c.relam
     WHERE c.oid = $3 AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
       AND c.reloftype = 0 AND c.reltablespace = 0 AND coalesce(m.amname, 'heap') = 'heap'
       AND (c.relispartition OR NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid))
       AND NOT EXISTS (SELECT FROM pg_inherits AS i
                        WHERE i.inhrelid = c.oid AND NOT reshard.is_known_table($1, i.inhparent))
       AND NOT reshard.needs_unknown($1, 'pg_class'::regclass, c.oid,
                                     coalesce((SELECT i.inhparent FROM pg_inherits AS i
                                                WHERE i.inhrelid = c.oid), c.oid))
       AND NOT EXISTS (
           SELECT FROM pg_constraint AS k
            WHERE k.conrelid = c.oid AND k.coninhcount = 0
              AND (reshard.needs_unknown($1, 'pg_constraint'::regclass, k.oid, c.oid)
                   OR k.contype = 'f' AND NOT reshard.fits_on_shards($1, $2, k.oid)));
    columns := reshard.replayed_table_columns($1, $3);
    IF NOT FOUND OR columns IS NULL
       OR NOT (reshard.leaves_out_owners($1) OR reshard.is_known_role($1, made.relowner)) THEN
        RETURN NULL;
    END IF;
    -- It was there before it was published: then it came along with the schema.
    IF EXISTS (SELECT FROM reshard.schema_statement AS s
                WHERE s.task_id = $1 AND s.shard = 0 AND s.kind = 'table'
                  AND format('%I.%I', s.schema_name, s.object_name) = made.name) THEN
        RETURN '';
    END IF;

    IF NOT reshard.is_known_schema($1, made.schema) THEN
        statements := statements || format('CREATE SCHEMA IF NOT EXISTS %I', made.schema);
    END IF;
    FOR owned IN
        SELECT s.oid, format('%I.%I', n.nspname, s.relname) AS name, a.attname,
               format_type(q.seqtypid, NULL) AS type
          FROM pg_depend AS d
          JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
          JOIN pg_sequence AS q ON q.seqrelid = s.oid
          JOIN pg_namespace AS n ON n.oid = s.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
           AND d.refobjid = $3 AND d.deptype = 'a'
    LOOP
        statements := statements || format('CREATE SEQUENCE %s AS %s %s', owned.name, owned.type,
                                           reshard.replayed_sequence(owned.oid));
        afterwards := afterwards || format('ALTER SEQUENCE %s OWNED BY %s.%I', owned.name, made.name,
                                           owned.attname);
    END LOOP;
    statements := statements
        || concat_ws(' ', 'CREATE TABLE', made.name,
                     CASE WHEN made.relispartition THEN 'PARTITION OF ' || made.parent END,
                     CASE WHEN NOT made.relispartition OR columns <> '' THEN format('(%s)', columns) END,
                     made.bound, 'PARTITION BY ' || made.key,
                     (SELECT format('WITH (%s)', string_agg(
                                 format('%s = %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', '))
                        FROM unnest(made.reloptions || made.toast_options) AS o HAVING count(*) > 0))
        || afterwards
        || ARRAY(SELECT format('ALTER TABLE ONLY %s ALTER COLUMN %I SET STORAGE %s', made.name, a.attname,
                               CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL'
                                                 WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
                   FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
                  WHERE a.attrelid = $3 AND a.attnum > 0 AND NOT a.attisdropped
                    AND a.attstorage <> t.typstorage)
        || ARRAY(SELECT format('ALTER TABLE %s%s ADD CONSTRAINT %I %s',
                               CASE WHEN made.relkind = 'r' THEN 'ONLY ' END, made.name,
                               k.conname, pg_get_constraintdef(k.oid))
                   FROM pg_constraint AS k
                  WHERE k.conrelid = $3 AND k.coninhcount = 0 AND k.contype IN ('p', 'u', 'x', 'c', 'f')
                  ORDER BY k.contype = 'f', k.conname);
    IF NOT reshard.leaves_out_owners($1) THEN
        statements := statements || format('ALTER TABLE %s OWNER TO %I', made.name, made.owner);
    END IF;
    -- Also where none were ever given: the shard may have default privileges of its own.
    statements := statements
        || reshard.replayed_privileges($1, $3)
        || ARRAY(SELECT reshard.replayed_privileges($1, s.oid)
                   FROM pg_depend AS d
                   JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
                  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = $3 AND d.deptype IN ('a', 'i')
                  ORDER BY s.relname);
    -- Null among them: the whole is null.
    RETURN CASE WHEN array_position(statements, NULL) IS NULL THEN array_to_string(statements, E';\n') END;
END
$table$;
COMMENT ON FUNCTION reshard.replayed_table(bigint, text, oid) IS
    'statements that make a new table on the shards of a migration; empty where they have it';

CREATE FUNCTION reshard.is_empty_and_locked(relation oid) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $empty$
DECLARE
    filled boolean;
BEGIN
    -- A snapshot from before the lock might not see the latest rows.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', relation::regclass);
    EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s)', relation::regclass) INTO filled;
    RETURN NOT filled;
END
$empty$;
COMMENT ON FUNCTION reshard.is_empty_and_locked(oid) IS
    'locks a table against writers and says whether it has no rows';
