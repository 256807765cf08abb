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

CREATE FUNCTION reshard.users_of_type(type oid) RETURNS SETOF oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $users$
    -- Arrays, domains, composite types and ranges over it, row types of tables among them.
    WITH RECURSIVE holder (type) AS (
        SELECT $1
        UNION
        SELECT x.type
          FROM holder AS h
          JOIN pg_depend AS d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = h.type
         CROSS JOIN LATERAL (
                  SELECT d.objid WHERE d.classid = 'pg_type'::regclass
                  UNION ALL
                  SELECT c.reltype FROM pg_class AS c
                   WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.reltype <> 0
               ) AS x (type)
    )
    SELECT DISTINCT c.oid
      FROM holder AS h
      JOIN pg_depend AS d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = h.type
                         AND d.classid = 'pg_class'::regclass AND d.objsubid <> 0
      JOIN pg_class AS c ON c.oid = d.objid AND c.relkind IN ('r', 'p')
$users$;
COMMENT ON FUNCTION reshard.users_of_type(oid) IS
    'tables with a column of a type, or of one that is made of it';

CREATE FUNCTION reshard.heirs_of(relation oid) RETURNS SETOF oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $heirs$
    WITH RECURSIVE heir (oid) AS (
        SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = $1
        UNION
        SELECT i.inhrelid FROM heir AS h JOIN pg_inherits AS i ON i.inhparent = h.oid
    )
    SELECT h.oid FROM heir AS h
$heirs$;
COMMENT ON FUNCTION reshard.heirs_of(oid) IS
    'tables that inherit from a table, which ALTER TABLE of it alters as well';

CREATE FUNCTION reshard.changed_by_ddl()
RETURNS TABLE (identity text, relation oid, publication text, classid oid, objid oid, objsubid int,
               tag text, type text)
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
           c.classid, c.objid, c.objsubid, c.command_tag, c.object_type
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
               SELECT u.oid FROM reshard.users_of_type(
                   CASE c.classid
                       WHEN 'pg_catalog.pg_type'::regclass THEN c.objid
                       WHEN 'pg_catalog.pg_class'::regclass THEN
                           (SELECT x.reltype FROM pg_catalog.pg_class AS x WHERE x.oid = c.objid)
                   END) AS u (oid)
                WHERE c.command_tag LIKE 'ALTER %'
               UNION ALL
               SELECT h.oid FROM reshard.heirs_of(c.objid) AS h (oid)
                WHERE c.classid = 'pg_catalog.pg_class'::regclass AND c.command_tag = 'ALTER TABLE'
               UNION ALL
               SELECT x.prrelid FROM pg_catalog.pg_publication_rel AS x
                WHERE c.classid = 'pg_catalog.pg_publication_rel'::regclass AND x.oid = c.objid
               UNION ALL
               SELECT x.oid FROM pg_catalog.pg_class AS x
                WHERE c.classid = 'pg_catalog.pg_namespace'::regclass AND x.relnamespace = c.objid
                  AND c.command_tag = 'ALTER SCHEMA' AND x.relkind IN ('r', 'p')
           ) AS r (oid) ON true
     WHERE NOT c.in_extension AND c.command_tag NOT IN ('REINDEX', 'REFRESH MATERIALIZED VIEW')
$changed$;
COMMENT ON FUNCTION reshard.changed_by_ddl() IS
    'tables and publications that the DDL of an event trigger has changed';

CREATE FUNCTION reshard.is_planned_index(task_id bigint, publication text, schema text, name text)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $planned$
    SELECT EXISTS (
        SELECT FROM reshard.schema_statement AS s
         WHERE s.task_id = $1 AND s.shard = 0
           AND s.kind IN ('index', 'primary_key', 'unique', 'exclusion')
           AND s.schema_name = $3 AND s.object_name = $4
           AND reshard.is_moved($1, $2, pg_catalog.to_regclass(
                   pg_catalog.format('%I.%I', s.table_schema, s.table_name))))
$planned$;
COMMENT ON FUNCTION reshard.is_planned_index(bigint, text, text, text) IS
    'whether an index, which may be gone, belongs to a table of a migration, by the plan of its schema';

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
           WHEN 'index' THEN reshard.is_planned_index($1, $2, d.schema_name, d.object_name)
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
RETURNS TABLE (identity text, relation oid, classid oid, objid oid, objsubid int, tag text, type text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $changes$
BEGIN
    IF event = 'sql_drop' THEN
        RETURN QUERY
        SELECT d.identity, NULL::oid, NULL::oid, NULL::oid, NULL::int, NULL, NULL
          FROM reshard.dropped_by_ddl($2, $3) AS d;
    ELSE
        -- Each object once, for itself if it is a table of the migration.
        RETURN QUERY
        SELECT DISTINCT ON (c.identity, c.classid, c.objid, c.objsubid, c.tag, c.type)
               c.identity, c.relation, c.classid, c.objid, c.objsubid, c.tag, c.type
          FROM reshard.changed_by_ddl() AS c
         WHERE c.publication = $3 OR reshard.is_moved($2, $3, c.relation)
         ORDER BY c.identity, c.classid, c.objid, c.objsubid, c.tag, c.type,
                  c.relation IS DISTINCT FROM c.objid, c.relation;
    END IF;
END
$changes$;
COMMENT ON FUNCTION reshard.changes_of_ddl(text, bigint, text) IS
    'objects of a migration that the DDL of an event trigger has changed or dropped';

CREATE FUNCTION reshard.is_flowing(task_id bigint) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $flowing$
    SELECT EXISTS (SELECT FROM reshard.task AS t
                    WHERE t.id = $1 AND t.phase IN ('catch_up', 'replicating', 'rolled_back'))
$flowing$;
COMMENT ON FUNCTION reshard.is_flowing(bigint) IS 'whether changes flow to the shards of a migration';

CREATE FUNCTION reshard.running_migrations()
RETURNS TABLE (id bigint, shown bigint, publication text, source text, destination text, mode text, about text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $running$
    SELECT t.id, t.id, t.publication, t.source, t.destination,
           coalesce(t.options ->> 'ddl', 'block'), format('its phase is %s.', t.phase)
      FROM reshard.task AS t
     WHERE t.type IN ('reshard', 'copy_data', 'replicate')
       AND t.status IN ('pending', 'running', 'failed')
    UNION ALL
    -- Without a number here: the publication says which tables these are.
    SELECT NULL, j.task_id, j.publication, j.source, j.destination, j.ddl,
           'it was started on another shard of the source.'
      FROM reshard.joined_task AS j
     ORDER BY 2
$running$;
COMMENT ON FUNCTION reshard.running_migrations() IS 'migrations whose tables are guarded, with their option "ddl"';

CREATE FUNCTION reshard.refuse_ddl(
    tag text, identity text, task_id bigint, publication text, source text, destination text,
    mode text, about text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $refuse$
BEGIN
    RAISE EXCEPTION 'cannot execute % on %: migration % is moving it', $1, $2, $3
        USING ERRCODE = 'object_not_in_prerequisite_state',
              DETAIL = format(
                  'Task %s moves publication "%s" from cluster "%s" to cluster "%s"; %s%s',
                  $3, $4, $5, $6, $8,
                  CASE WHEN $7 = 'replay' THEN
                      ' Replayed are, while changes flow to the shards: ALTER TABLE by itself that adds columns without default or with a constant one, new indexes, new tables and partitions without rows, comments, GRANT and REVOKE; as long as they need nothing that the shards may lack.'
                  END),
              HINT = format(
                  'Wait for its end, or cancel it: SELECT reshard_cancel(%s); or, where the same change is made on every shard, as a superuser: SET reshard.ddl_guard = off;',
                  $3);
END
$refuse$;
COMMENT ON FUNCTION reshard.refuse_ddl(text, text, bigint, text, text, text, text, text) IS
    'raises the error of the DDL guard';

CREATE FUNCTION reshard.replayed(
    task_id bigint, destination text, tag text, type text, identity text, relation oid,
    classid oid, objid oid, objsubid int, made oid[], query text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $replayed$
DECLARE
    statement text;
BEGIN
    IF tag = 'COMMENT' THEN
        RETURN reshard.replayed_comment($1, $4, $5, $7, $8, $9);
    ELSIF classid = 'pg_publication_rel'::regclass AND tag = 'ALTER PUBLICATION' THEN
        -- Nobody else writes to it until it flows, and nothing was written before.
        IF NOT reshard.is_empty_and_locked($6) THEN
            RETURN NULL;
        END IF;
        statement := reshard.replayed_table($1, $2, $6);
        RETURN statement || E';\n' || pg_catalog.reshard_join_table($1, $6);
    ELSIF classid IS DISTINCT FROM 'pg_class'::regclass THEN
        RETURN NULL;
    ELSIF tag = 'CREATE TABLE' THEN
        statement := reshard.replayed_table($1, $2, $8);
        RETURN statement || E';\n' || pg_catalog.reshard_join_table($1, $8);
    ELSIF tag = 'CREATE INDEX'
          AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = $8 AND $6 = ANY (made)) THEN
        RETURN reshard.replayed_index($1, $8);
    ELSIF relation = ANY (made)
          AND tag IN ('CREATE INDEX', 'ALTER TABLE', 'CREATE SEQUENCE', 'ALTER SEQUENCE') THEN
        -- Keys, foreign keys and sequences of a new table come along with it.
        RETURN '';
    ELSIF tag = 'ALTER TABLE' AND (objid = relation OR reshard.is_known_table($1, $8)) THEN
        RETURN reshard.replayed_columns($1, $11, $8);
    END IF;
    RETURN NULL;
END
$replayed$;
COMMENT ON FUNCTION reshard.replayed(bigint, text, text, text, text, oid, oid, oid, int, oid[], text) IS
    'the statements that do on the shards what DDL did here; empty where others do, null where it can''t be replayed';

CREATE FUNCTION reshard.made_by_ddl(
    task_id bigint, tag text, relation oid, classid oid, objid oid, query text)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $made$
    SELECT coalesce((
        SELECT CASE
               WHEN $2 = 'CREATE INDEX' THEN
                   jsonb_build_array(jsonb_build_object('kind', 'index', 'name', o.name))
               WHEN $2 = 'ALTER TABLE' THEN
                   (SELECT jsonb_agg(jsonb_build_object('kind', 'column', 'name', o.name, 'column', a.name))
                      FROM unnest(reshard_added_columns($6)) AS a (name))
               WHEN $2 IN ('CREATE TABLE', 'ALTER PUBLICATION') THEN
                   CASE WHEN reshard.is_known_schema($1, o.schema) THEN '[]'::jsonb
                        ELSE jsonb_build_array(jsonb_build_object(
                                 'kind', 'schema', 'name', quote_ident(o.schema))) END
                   || jsonb_build_object('kind', 'table', 'name', o.name)
               END
          FROM (SELECT format('%I.%I', n.nspname, c.relname) AS name, n.nspname AS schema
                  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE c.oid = CASE WHEN $2 = 'ALTER PUBLICATION' THEN $3
                                    WHEN $4 = 'pg_class'::regclass THEN $5 END) AS o), '[]')
$made$;
COMMENT ON FUNCTION reshard.made_by_ddl(bigint, text, oid, oid, oid, text) IS
    'objects that a replayed statement makes on the shards, in the order of their making';

CREATE FUNCTION reshard.note_ddl(task_id bigint, tag text, identity text, statement text, made jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $note$
BEGIN
    IF statement IS NOT NULL THEN
        INSERT INTO reshard.ddl (token, task_id, sql, made) VALUES (reshard.token(), $1, $4, $5);
    END IF;
    INSERT INTO reshard.event (task_id, severity, kind, message, detail)
    VALUES ($1, CASE WHEN statement IS NULL THEN 'warning' ELSE 'info' END, 'ddl',
            format('%s on %s', $2, $3),
            jsonb_build_object('tag', $2, 'object', $3, 'role', session_user,
                               'done', CASE WHEN statement IS NULL THEN 'written down' ELSE 'replayed' END));
END
$note$;
COMMENT ON FUNCTION reshard.note_ddl(bigint, text, text, text, jsonb) IS
    'writes DDL down, and has the flows of a migration bring it to the shards where there is a statement for it';

-- Values stand in statements as text: the settings are those that replay_ddl() runs them with.
CREATE FUNCTION reshard.guard_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
SET IntervalStyle = 'postgres'
SET TimeZone = 'UTC'
SET extra_float_digits = 3
SET lc_monetary = 'C'
SET standard_conforming_strings = on
AS $guard$
DECLARE
    running record;
    change record;
    made oid[];
    flowing boolean;
    statement text;
BEGIN
    IF current_setting('reshard.ddl_guard', true) = 'off' THEN
        RETURN;
    END IF;
    FOR running IN SELECT * FROM reshard.running_migrations() LOOP
        flowing := false;
        made := '{}';
        IF running.mode = 'replay' AND TG_EVENT = 'ddl_command_end' THEN
            -- As a writer does: a cutover waits for us, or we for it.
            PERFORM pg_advisory_xact_lock_shared(1919251304, 0);
            flowing := reshard.is_flowing(running.id);
            made := ARRAY(SELECT c.objid
                            FROM reshard.changes_of_ddl(TG_EVENT, running.id, running.publication) AS c
                           WHERE c.tag = 'CREATE TABLE' AND c.type = 'table');
        END IF;
        FOR change IN
            SELECT * FROM reshard.changes_of_ddl(TG_EVENT, running.id, running.publication) AS c
             ORDER BY c.tag = 'CREATE TABLE' DESC, c.tag = 'COMMENT'
        LOOP
            statement := CASE WHEN flowing THEN
                reshard.replayed(running.id, running.destination, change.tag, change.type, change.identity,
                                 change.relation, change.classid, change.objid, change.objsubid, made,
                                 current_query()) END;
            -- What has committed by now would stay half done.
            IF (running.mode = 'block' OR running.mode = 'replay' AND statement IS NULL)
               AND NOT coalesce(reshard_commits_early(current_query()), false) THEN
                statement := reshard.refuse_ddl(
                    TG_TAG, change.identity, running.shown, running.publication,
                    running.source, running.destination, running.mode, running.about);
            ELSIF statement IS DISTINCT FROM '' THEN
                PERFORM reshard.note_ddl(
                    running.id, TG_TAG, change.identity, statement,
                    reshard.made_by_ddl(running.id, change.tag, change.relation, change.classid,
                                        change.objid, current_query()));
            END IF;
        END LOOP;
        -- They forbid nobody anything while the tables move: never refused.
        IF TG_TAG IN ('GRANT', 'REVOKE') AND TG_EVENT = 'ddl_command_end' AND running.id IS NOT NULL THEN
            PERFORM reshard.note_ddl(
                        running.id, TG_TAG, r.oid::regclass::text,
                        CASE WHEN flowing THEN reshard.replayed_privileges(running.id, r.oid) END, '[]')
               FROM reshard.regranted(running.id) AS r (oid);
        END IF;
    END LOOP;
END
$guard$;
COMMENT ON FUNCTION reshard.guard_ddl() IS
    'event trigger that forbids, or writes down, DDL on the tables of running migrations';

CREATE FUNCTION reshard.refuse_concurrent_ddl(tag text, relation oid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $refuse$
DECLARE
    running record;
    command text := CASE tag WHEN 'ALTER TABLE' THEN 'ALTER TABLE ... DETACH PARTITION ... CONCURRENTLY'
                             ELSE tag || ' CONCURRENTLY' END;
    refused text;
BEGIN
    FOR running IN SELECT * FROM reshard.running_migrations() LOOP
        CONTINUE WHEN running.mode = 'allow'
                   -- An index can be replayed once it is there.
                   OR running.mode = 'replay' AND tag = 'CREATE INDEX' AND reshard.is_flowing(running.id);
        IF tag = 'DROP INDEX' AND EXISTS (
               SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.oid = $2
                  AND reshard.is_planned_index(running.id, running.publication, n.nspname, c.relname))
           OR tag <> 'DROP INDEX' AND reshard.is_moved(running.id, running.publication, $2) THEN
            refused := reshard.refuse_ddl(
                command, $2::regclass::text, running.shown, running.publication,
                running.source, running.destination, running.mode, running.about);
        END IF;
    END LOOP;
END
$refuse$;
COMMENT ON FUNCTION reshard.refuse_concurrent_ddl(text, oid) IS
    'refuses DDL that commits before its end, on a table of a running migration, before it has begun: afterwards it would stay half done';

-- Without a search_path of its own: names are looked up as the user's.
CREATE FUNCTION reshard.guard_concurrently() RETURNS event_trigger
LANGUAGE plpgsql
AS $guard$
DECLARE
    relation pg_catalog.oid;
BEGIN
    IF pg_catalog.current_setting('reshard.ddl_guard', true) OPERATOR(pg_catalog.=) 'off' THEN
        RETURN;
    END IF;
    relation := pg_catalog.reshard_concurrently_changed(pg_catalog.current_query());
    IF relation IS NOT NULL THEN
        PERFORM reshard.refuse_concurrent_ddl(TG_TAG, relation);
    END IF;
END
$guard$;
COMMENT ON FUNCTION reshard.guard_concurrently() IS
    'event trigger that forbids DDL with CONCURRENTLY on tables of running migrations before it begins';

CREATE FUNCTION reshard.guard_extension() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $guard$
DECLARE
    running record;
BEGIN
    -- Which one is dropped isn't known yet; afterwards nobody is left to ask.
    IF current_setting('reshard.ddl_guard', true) = 'off' OR current_query() !~* 'reshard' THEN
        RETURN;
    END IF;
    FOR running IN SELECT * FROM reshard.running_migrations() LIMIT 1 LOOP
        RAISE EXCEPTION 'cannot drop extension reshard: migration % needs it', running.shown
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = format(
                      'Task %s moves publication "%s" from cluster "%s" to cluster "%s". Its replication slots would stay and keep WAL, its subscriptions and helper objects would stay on the shards.',
                      running.shown, running.publication, running.source, running.destination),
                  HINT = format(
                      'End it first: SELECT reshard_cancel(%1$s); or, after the switch, SELECT reshard_complete(%1$s); as a last resort, as a superuser: SET reshard.ddl_guard = off;',
                      running.shown);
    END LOOP;
END
$guard$;
COMMENT ON FUNCTION reshard.guard_extension() IS
    'event trigger that forbids DROP EXTENSION while a migration runs';
