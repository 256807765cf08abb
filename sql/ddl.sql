-- The DDL guard: nothing changes under a running migration unseen.

CREATE FUNCTION reshard.is_moved(task_id bigint, publication text, relation oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $is_moved$
    SELECT EXISTS (
        SELECT
          FROM (SELECT $3
                UNION
                SELECT a.relid FROM pg_catalog.pg_partition_ancestors($3) AS a
                UNION
                SELECT t.relid FROM pg_catalog.pg_partition_tree($3) AS t) AS r (oid)
         WHERE EXISTS (SELECT FROM reshard.copy_table AS m
                        WHERE m.task_id = $1 AND m.relation = r.oid)
            OR EXISTS (
               -- Before the tables are listed: what the publication covers.
               SELECT
                 FROM pg_catalog.pg_class AS c
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                 JOIN pg_catalog.pg_publication AS p ON p.pubname = $2
                WHERE c.oid = r.oid AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
                  AND n.nspname NOT IN ('reshard', 'pg_catalog', 'information_schema')
                  AND (p.puballtables
                       OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel AS x
                                   WHERE x.prpubid = p.oid AND x.prrelid = c.oid)
                       OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace AS x
                                   WHERE x.pnpubid = p.oid AND x.pnnspid = n.oid))))
$is_moved$;
COMMENT ON FUNCTION reshard.is_moved(bigint, text, oid) IS
    'whether a table, a partition of it or a table above it belongs to a migration';

CREATE FUNCTION reshard.changed_by_ddl()
RETURNS TABLE (identity text, relation oid, publication text, classid oid, objid oid)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $changed$
    -- What is a part of a table, or is used by it, counts as the table.
    SELECT c.object_identity, r.oid,
           CASE c.classid
               WHEN 'pg_catalog.pg_publication'::regclass THEN
                   (SELECT p.pubname FROM pg_catalog.pg_publication AS p WHERE p.oid = c.objid)
               WHEN 'pg_catalog.pg_publication_rel'::regclass THEN
                   (SELECT p.pubname FROM pg_catalog.pg_publication_rel AS x
                      JOIN pg_catalog.pg_publication AS p ON p.oid = x.prpubid WHERE x.oid = c.objid)
               WHEN 'pg_catalog.pg_publication_namespace'::regclass THEN
                   (SELECT p.pubname FROM pg_catalog.pg_publication_namespace AS x
                      JOIN pg_catalog.pg_publication AS p ON p.oid = x.pnpubid WHERE x.oid = c.objid)
           END,
           c.classid, c.objid
      FROM pg_catalog.pg_event_trigger_ddl_commands() AS c
      LEFT JOIN LATERAL (
               SELECT coalesce(
                          (SELECT i.indrelid FROM pg_catalog.pg_index AS i WHERE i.indexrelid = c.objid),
                          (SELECT d.refobjid FROM pg_catalog.pg_depend AS d
                             JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
                            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.objid
                              AND d.refclassid = 'pg_catalog.pg_class'::regclass
                              AND d.deptype IN ('a', 'i') LIMIT 1),
                          c.objid)
                WHERE c.classid = 'pg_catalog.pg_class'::regclass
               UNION ALL
               SELECT g.tgrelid FROM pg_catalog.pg_trigger AS g
                WHERE c.classid = 'pg_catalog.pg_trigger'::regclass AND g.oid = c.objid
               UNION ALL
               SELECT p.polrelid FROM pg_catalog.pg_policy AS p
                WHERE c.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = c.objid
               UNION ALL
               SELECT w.ev_class FROM pg_catalog.pg_rewrite AS w
                WHERE c.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = c.objid
               UNION ALL
               SELECT s.stxrelid FROM pg_catalog.pg_statistic_ext AS s
                WHERE c.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = c.objid
               UNION ALL
               SELECT k.conrelid FROM pg_catalog.pg_constraint AS k
                WHERE c.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = c.objid
               UNION ALL
               SELECT DISTINCT d.objid
                 FROM pg_catalog.pg_type AS t
                 JOIN pg_catalog.pg_depend AS d
                   ON d.refclassid = 'pg_catalog.pg_type'::regclass
                  AND d.refobjid IN (t.oid, nullif(t.typarray, 0))
                  AND d.classid = 'pg_catalog.pg_class'::regclass
                WHERE c.classid = 'pg_catalog.pg_type'::regclass AND t.oid = c.objid
                  AND c.command_tag LIKE 'ALTER %'
               UNION ALL
               SELECT x.oid FROM pg_catalog.pg_class AS x
                WHERE c.classid = 'pg_catalog.pg_namespace'::regclass AND x.relnamespace = c.objid
                  AND c.command_tag = 'ALTER SCHEMA' AND x.relkind IN ('r', 'p')
           ) AS r (oid) ON true
     WHERE NOT c.in_extension AND c.command_tag NOT IN ('REINDEX', 'REFRESH MATERIALIZED VIEW')
$changed$;
COMMENT ON FUNCTION reshard.changed_by_ddl() IS
    'tables and publications that the DDL of an event trigger has changed';

CREATE FUNCTION reshard.dropped_by_ddl(task_id bigint, publication text)
RETURNS TABLE (identity text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $dropped$
    SELECT d.object_identity
      FROM pg_catalog.pg_event_trigger_dropped_objects() AS d
      LEFT JOIN pg_catalog.pg_publication AS p ON p.pubname = $2
     WHERE NOT d.is_temporary AND d.schema_name IS DISTINCT FROM 'reshard'
       AND CASE d.object_type
           WHEN 'table' THEN
               EXISTS (SELECT FROM reshard.copy_table AS m
                        WHERE m.task_id = $1 AND m.relation = d.objid)
               -- A partition, or a table that isn't listed yet.
               OR NOT EXISTS (SELECT FROM reshard.copy_table AS m WHERE m.task_id = $1)
                  AND coalesce(p.puballtables, false)
           WHEN 'publication' THEN d.object_name = $2
           WHEN 'publication relation' THEN $2 = ANY (d.address_args)
           WHEN 'publication namespace' THEN $2 = ANY (d.address_args)
           WHEN 'index' THEN EXISTS (
               SELECT FROM reshard.schema_statement AS s
                WHERE s.task_id = $1 AND s.shard = 0
                  AND s.kind IN ('index', 'primary_key', 'unique', 'exclusion')
                  AND s.schema_name = d.schema_name AND s.object_name = d.object_name
                  AND reshard.is_moved($1, $2, pg_catalog.to_regclass(
                          pg_catalog.format('%I.%I', s.table_schema, s.table_name))))
           WHEN 'trigger' THEN d.original AND reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2])))
           WHEN 'policy' THEN d.original AND reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2])))
           WHEN 'rule' THEN d.original AND reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2])))
           WHEN 'table column' THEN reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2])))
           WHEN 'table constraint' THEN reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2])))
           ELSE false END
$dropped$;
COMMENT ON FUNCTION reshard.dropped_by_ddl(bigint, text) IS
    'tables of a migration, and parts of them, that the DDL of an event trigger has dropped';

CREATE FUNCTION reshard.changes_of_ddl(event text, task_id bigint, publication text)
RETURNS TABLE (identity text, classid oid, objid oid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $changes$
BEGIN
    IF event = 'sql_drop' THEN
        RETURN QUERY
        SELECT d.identity, NULL::oid, NULL::oid FROM reshard.dropped_by_ddl($2, $3) AS d;
    ELSE
        RETURN QUERY
        SELECT DISTINCT c.identity, c.classid, c.objid
          FROM reshard.changed_by_ddl() AS c
         WHERE c.publication = $3 OR reshard.is_moved($2, $3, c.relation);
    END IF;
END
$changes$;
COMMENT ON FUNCTION reshard.changes_of_ddl(text, bigint, text) IS
    'objects of a migration that the DDL of an event trigger has changed or dropped';

CREATE FUNCTION reshard.is_known_type(task_id bigint, type oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $known$
    -- 16384 is FirstNormalObjectId: those below are on every server.
    SELECT $2 < 16384 OR EXISTS (
        SELECT
          FROM pg_catalog.pg_type AS t
          JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
          JOIN reshard.schema_statement AS s
            ON s.schema_name = n.nspname AND s.object_name = t.typname
         WHERE t.oid = $2 AND s.task_id = $1 AND s.shard = 0 AND s.kind IN ('type', 'domain'))
$known$;
COMMENT ON FUNCTION reshard.is_known_type(bigint, oid) IS
    'whether the shards of a migration have a type';

CREATE FUNCTION reshard.replayed(task_id bigint, tag text, query text, classid oid, objid oid)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $replayed$
DECLARE
    names text[];
    columns text;
BEGIN
    IF classid <> 'pg_catalog.pg_class'::regclass THEN
        RETURN NULL;
    END IF;
    IF tag = 'CREATE INDEX' THEN
        -- Of columns alone: an expression may call what the shards don't have.
        RETURN (SELECT regexp_replace(
                           regexp_replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '),
                           '^CREATE (UNIQUE )?INDEX ', 'CREATE \1INDEX IF NOT EXISTS ')
                  FROM pg_index AS i
                 WHERE i.indexrelid = $5 AND i.indexprs IS NULL AND i.indpred IS NULL
                   AND strpos(pg_get_indexdef(i.indexrelid), ' ON ONLY ')
                       IN (0, strpos(pg_get_indexdef(i.indexrelid), ' ON ')));
    END IF;
    IF tag <> 'ALTER TABLE' THEN
        RETURN NULL;
    END IF;
    names := pg_catalog.reshard_added_columns(query);
    SELECT string_agg(format('ADD COLUMN IF NOT EXISTS %I %s%s%s%s', a.attname,
                             format_type(a.atttypid, a.atttypmod),
                             CASE WHEN a.attcollation <> t.typcollation THEN
                                  (SELECT format(' COLLATE %I.%I', n.nspname, l.collname)
                                     FROM pg_collation AS l
                                     JOIN pg_namespace AS n ON n.oid = l.collnamespace
                                    WHERE l.oid = a.attcollation) END,
                             ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
                             CASE WHEN a.attnotnull THEN ' NOT NULL' END),
                      ', ' ORDER BY a.attnum)
      INTO columns
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = $5 AND a.attname = ANY (names) AND NOT a.attisdropped
       AND a.attgenerated = '' AND a.attidentity = ''
       -- A default that is no constant could be another value on each server.
       AND NOT EXISTS (SELECT FROM regexp_matches(d.adbin::text, '\{([A-Z]+)', 'g') AS e (node)
                        WHERE e.node[1] NOT IN ('CONST', 'FUNCEXPR', 'RELABELTYPE'))
       AND NOT EXISTS (SELECT FROM regexp_matches(d.adbin::text, ':funcid (\d+)', 'g') AS e (id)
                         LEFT JOIN pg_proc AS p ON p.oid = e.id[1]::oid AND p.oid < 16384
                        WHERE p.provolatile IS DISTINCT FROM 'i')
       AND reshard.is_known_type($1, a.atttypid)
    HAVING count(*) = cardinality(names);
    RETURN (SELECT format('ALTER TABLE %I.%I %s', n.nspname, c.relname, columns)
              FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE c.oid = $5 AND columns IS NOT NULL);
END
$replayed$;
COMMENT ON FUNCTION reshard.replayed(bigint, text, text, oid, oid) IS
    'the statement that does on the shards what DDL did here, null where it is none that can be replayed';

CREATE FUNCTION reshard.guard_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $guard$
DECLARE
    running record;
    change record;
    flowing boolean;
    statement text;
    done text;
BEGIN
    IF pg_catalog.current_setting('reshard.ddl_guard', true) = 'off' THEN
        RETURN;
    END IF;
    FOR running IN
        SELECT t.id, t.id AS shown, t.publication, t.source, t.destination,
               coalesce(t.options ->> 'ddl', 'block') AS mode,
               pg_catalog.format('its phase is %s.', t.phase) AS about
          FROM reshard.task AS t
         WHERE t.type IN ('reshard', 'copy_data', 'replicate')
           AND t.status IN ('pending', 'running', 'failed')
        UNION ALL
        -- Without a number here: the publication says which tables these are.
        SELECT NULL, j.task_id, j.publication, j.source, j.destination, j.ddl,
               'it was started on another shard of the source.'
          FROM reshard.joined_task AS j
         ORDER BY 2
    LOOP
        FOR change IN
            SELECT * FROM reshard.changes_of_ddl(TG_EVENT, running.id, running.publication)
        LOOP
            IF running.mode = 'replay' THEN
                -- As a writer does: a cutover waits for us, or we for it.
                PERFORM pg_catalog.pg_advisory_xact_lock_shared(1919251304, 0);
                flowing := EXISTS (
                    SELECT FROM reshard.task AS t
                     WHERE t.id = running.id
                       AND t.phase IN ('catch_up', 'replicating', 'rolled_back'));
                statement := CASE WHEN flowing THEN
                    reshard.replayed(running.id, TG_TAG, pg_catalog.current_query(),
                                     change.classid, change.objid) END;
            END IF;
            IF running.mode = 'block' OR running.mode = 'replay' AND statement IS NULL THEN
                RAISE EXCEPTION 'cannot execute % on %: migration % is moving it',
                        TG_TAG, change.identity, running.shown
                    USING ERRCODE = 'object_not_in_prerequisite_state',
                          DETAIL = pg_catalog.format(
                              'Task %s moves publication "%s" from cluster "%s" to cluster "%s"; %s%s',
                              running.shown, running.publication, running.source, running.destination,
                              running.about,
                              CASE WHEN running.mode = 'replay' THEN
                                  ' Replayed are, while changes flow to the shards, statements of their own that add columns without default or with a constant one, and indexes of columns.'
                              END),
                          HINT = pg_catalog.format(
                              'Wait for its end, or cancel it: SELECT reshard_cancel(%s); or, where the same change is made on every shard, as a superuser: SET reshard.ddl_guard = off;',
                              running.shown);
            END IF;
            done := 'written down';
            IF statement IS NOT NULL THEN
                done := 'replayed';
                INSERT INTO reshard.ddl (token, task_id, sql)
                SELECT pg_catalog.left(pg_catalog.md5(pg_catalog.concat_ws('/',
                           (pg_catalog.pg_control_system()).system_identifier, d.oid)), 6),
                       running.id, statement
                  FROM pg_catalog.pg_database AS d
                 WHERE d.datname = pg_catalog.current_database();
            END IF;
            INSERT INTO reshard.event (task_id, severity, kind, message, detail)
            VALUES (running.id, CASE done WHEN 'replayed' THEN 'info' ELSE 'warning' END, 'ddl',
                    pg_catalog.format('%s on %s', TG_TAG, change.identity),
                    pg_catalog.jsonb_build_object('tag', TG_TAG, 'object', change.identity,
                                                  'role', session_user, 'done', done));
        END LOOP;
    END LOOP;
END
$guard$;
COMMENT ON FUNCTION reshard.guard_ddl() IS
    'event trigger that forbids, or writes down, DDL on the tables of running migrations';

CREATE EVENT TRIGGER reshard_ddl ON ddl_command_end EXECUTE FUNCTION reshard.guard_ddl();
ALTER EVENT TRIGGER reshard_ddl ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_ddl IS 'DDL on tables of running migrations';

CREATE EVENT TRIGGER reshard_drop ON sql_drop EXECUTE FUNCTION reshard.guard_ddl();
ALTER EVENT TRIGGER reshard_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_drop IS 'DROP of tables of running migrations';
