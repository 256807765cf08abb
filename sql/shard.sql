-- What reshard puts on a destination shard alone: plain SQL in one schema.
-- Run again and again without harm; dropped as a whole at the end.

DO $foreign$
BEGIN
    IF EXISTS (SELECT FROM pg_namespace AS n
                WHERE n.nspname = 'reshard'
                  AND obj_description(n.oid, 'pg_namespace') IS DISTINCT FROM
                      'helper objects of a running resharding; dropped when it ends') THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'schema "reshard" was not made by a migration',
            HINT = 'Rename it: the helper objects of a migration have to be in one of that name.';
    END IF;
END
$foreign$;

CREATE SCHEMA IF NOT EXISTS reshard;
COMMENT ON SCHEMA reshard IS 'helper objects of a running resharding; dropped when it ends';
GRANT USAGE ON SCHEMA reshard TO PUBLIC;

CREATE TABLE IF NOT EXISTS reshard.applied_statement (
    token text NOT NULL,
    digest text NOT NULL,
    task_id bigint NOT NULL,
    ordinal int NOT NULL,
    objects oid[] NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (token, digest)
);
COMMENT ON TABLE reshard.applied_statement IS
    'schema statements that took effect here: written in the transaction of the statement';
COMMENT ON COLUMN reshard.applied_statement.objects IS
    'schema, table and object of the statement: it counts as applied as long as they are the same';

CREATE TABLE IF NOT EXISTS reshard.default_privileges (
    token text NOT NULL,
    task_id bigint NOT NULL,
    entries jsonb NOT NULL,
    PRIMARY KEY (token, task_id)
);
COMMENT ON TABLE reshard.default_privileges IS
    'default privileges as they were before a task changed them, for a migration that is cancelled';

CREATE OR REPLACE FUNCTION reshard.restore_default_privileges(token text, task_id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $restore$
DECLARE
    entry record;
    item record;
    head text;
    objects text;
BEGIN
    IF NOT EXISTS (SELECT FROM reshard.default_privileges AS p WHERE p.token = $1 AND p.task_id = $2) THEN
        RETURN;
    END IF;
    FOR entry IN
        WITH before AS (
            SELECT r.oid AS role, n.oid AS namespace, e.type, e.privileges::aclitem[] AS privileges
              FROM reshard.default_privileges AS p
             CROSS JOIN LATERAL jsonb_to_recordset(p.entries)
                        AS e (role name, schema name, type text, privileges text)
              JOIN pg_roles AS r ON r.rolname = e.role
              LEFT JOIN pg_namespace AS n ON n.nspname = e.schema
             WHERE p.token = $1 AND p.task_id = $2 AND (e.schema IS NULL OR n.oid IS NOT NULL)
        ), present AS (
            SELECT d.defaclrole AS role, nullif(d.defaclnamespace, 0) AS namespace,
                   d.defaclobjtype::text AS type, d.defaclacl AS privileges
              FROM pg_default_acl AS d
        ), changed AS (
            SELECT coalesce(a.role, b.role) AS role, coalesce(a.namespace, b.namespace) AS namespace,
                   coalesce(a.type, b.type) AS type, a.privileges AS present, b.privileges AS before
              FROM present AS a
              FULL JOIN before AS b
                ON b.role = a.role AND b.type = a.type AND coalesce(b.namespace, 0) = coalesce(a.namespace, 0)
             WHERE a.privileges::text IS DISTINCT FROM b.privileges::text
        )
        -- Those of a schema come on top of the others: without an entry there are none.
        SELECT pg_get_userbyid(c.role) AS role, n.nspname AS schema, c.type,
               coalesce(c.present, f.privileges) AS present, coalesce(c.before, f.privileges) AS before
          FROM changed AS c
          LEFT JOIN pg_namespace AS n ON n.oid = c.namespace
          LEFT JOIN LATERAL (
                   SELECT acldefault(CASE c.type WHEN 'S' THEN 's' ELSE c.type END::"char", c.role)
                    WHERE c.namespace IS NULL) AS f (privileges) ON true
    LOOP
        head := concat('ALTER DEFAULT PRIVILEGES FOR ROLE ', quote_ident(entry.role),
                       ' IN SCHEMA ' || quote_ident(entry.schema));
        objects := CASE entry.type WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                                   WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END;
        FOR item IN
            SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS name
              FROM aclexplode(entry.present) AS x
        LOOP
            EXECUTE format('%s REVOKE ALL ON %s FROM %s', head, objects, item.name);
        END LOOP;
        FOR item IN
            SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS name,
                   x.privilege_type, CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
              FROM aclexplode(entry.before) AS x
        LOOP
            EXECUTE format('%s GRANT %s ON %s TO %s%s', head, item.privilege_type, objects, item.name, item.option);
        END LOOP;
    END LOOP;
END
$restore$;
COMMENT ON FUNCTION reshard.restore_default_privileges(text, bigint) IS
    'gives back the default privileges that a task has changed';

CREATE TABLE IF NOT EXISTS reshard.public_schema (
    token text NOT NULL,
    task_id bigint NOT NULL,
    owner name NOT NULL,
    comment text,
    privileges aclitem[],
    PRIMARY KEY (token, task_id)
);
COMMENT ON TABLE reshard.public_schema IS
    'schema "public" as it was before a task changed it, for a migration that is cancelled';

CREATE OR REPLACE FUNCTION reshard.keep_shared(token text, task_id bigint) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $keep$
    INSERT INTO reshard.public_schema (token, task_id, owner, comment, privileges)
    SELECT $1, $2, pg_get_userbyid(n.nspowner), obj_description(n.oid, 'pg_namespace'), n.nspacl
      FROM pg_namespace AS n
     WHERE n.nspname = 'public'
        ON CONFLICT DO NOTHING;
    INSERT INTO reshard.default_privileges (token, task_id, entries)
    SELECT $1, $2, coalesce(jsonb_agg(jsonb_build_object(
                       'role', pg_get_userbyid(d.defaclrole), 'schema', n.nspname,
                       'type', d.defaclobjtype::text, 'privileges', d.defaclacl::text)), '[]')
      FROM pg_default_acl AS d
      LEFT JOIN pg_namespace AS n ON n.oid = d.defaclnamespace
        ON CONFLICT DO NOTHING
$keep$;
COMMENT ON FUNCTION reshard.keep_shared(text, bigint) IS
    'notes schema "public" and the default privileges, which a task is about to change; the first time counts';

CREATE OR REPLACE FUNCTION reshard.restore_public_schema(token text, task_id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $restore$
DECLARE
    before reshard.public_schema;
    item record;
BEGIN
    SELECT * INTO before FROM reshard.public_schema AS p WHERE p.token = $1 AND p.task_id = $2;
    IF NOT FOUND OR to_regnamespace('public') IS NULL THEN
        RETURN;
    END IF;
    FOR item IN
        SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS name
          FROM pg_namespace AS n
         CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS x
         WHERE n.nspname = 'public'
    LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %s CASCADE', item.name);
    END LOOP;
    EXECUTE format('ALTER SCHEMA public OWNER TO %I', before.owner);
    EXECUTE format('COMMENT ON SCHEMA public IS %s', coalesce(quote_literal(before.comment), 'NULL'));
    FOR item IN
        SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS name,
               x.privilege_type, CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
          FROM aclexplode(coalesce(before.privileges, acldefault('n', quote_ident(before.owner)::regrole))) AS x
    LOOP
        EXECUTE format('GRANT %s ON SCHEMA public TO %s%s', item.privilege_type, item.name, item.option);
    END LOOP;
END
$restore$;
COMMENT ON FUNCTION reshard.restore_public_schema(text, bigint) IS
    'gives schema "public" back the owner, comment and privileges that a task has changed';

CREATE SEQUENCE IF NOT EXISTS reshard.latch MINVALUE 1 MAXVALUE 2 START 2 CYCLE CACHE 1;
COMMENT ON SEQUENCE reshard.latch IS
    'last_value 1: this database takes writes; 2: it does not. A sequence is read outside of any snapshot and is WAL-logged';
GRANT SELECT ON SEQUENCE reshard.latch TO PUBLIC;

CREATE TABLE IF NOT EXISTS reshard.ddl (
    token text NOT NULL,
    task_id bigint NOT NULL,
    id bigint NOT NULL,
    sql text NOT NULL,
    made jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (token, task_id, id)
);
COMMENT ON TABLE reshard.ddl IS
    'DDL of the source that has been replayed here';
COMMENT ON COLUMN reshard.ddl.made IS
    'objects that came with the statement: those that were here before are not among them';

CREATE OR REPLACE FUNCTION reshard.replay_ddl() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
SET IntervalStyle = 'postgres'
SET TimeZone = 'UTC'
SET extra_float_digits = 3
SET lc_monetary = 'C'
SET standard_conforming_strings = on
AS $replay$
BEGIN
    -- A row may come by several flows: the first one counts.
    PERFORM pg_catalog.pg_advisory_xact_lock(1919251304, 1);
    IF EXISTS (SELECT FROM reshard.ddl AS d
                WHERE d.token = NEW.token AND d.task_id = NEW.task_id AND d.id = NEW.id) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(jsonb_agg(m.object ORDER BY m.nr), '[]') INTO NEW.made
      FROM jsonb_array_elements(NEW.made) WITH ORDINALITY AS m (object, nr)
     WHERE CASE m.object ->> 'kind'
           WHEN 'schema' THEN to_regnamespace(m.object ->> 'name') IS NULL
           WHEN 'column' THEN NOT EXISTS (
               SELECT FROM pg_attribute AS a
                WHERE a.attrelid = to_regclass(m.object ->> 'name')
                  AND a.attname = m.object ->> 'column' AND NOT a.attisdropped)
           ELSE to_regclass(m.object ->> 'name') IS NULL END;
    EXECUTE NEW.sql;
    RETURN NEW;
END
$replay$;
COMMENT ON FUNCTION reshard.replay_ddl() IS
    'trigger that runs a statement of the source where it stands in the stream of changes';
CREATE OR REPLACE TRIGGER replay BEFORE INSERT ON reshard.ddl
    FOR EACH ROW EXECUTE FUNCTION reshard.replay_ddl();
ALTER TABLE reshard.ddl ENABLE REPLICA TRIGGER replay;
