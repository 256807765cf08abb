-- What triggers of a migration call, the same on every server of both clusters: the
-- fence, which keeps writers off a cluster that is not active, and what looks after rows.

CREATE OR REPLACE FUNCTION reshard.fence() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $fence$
DECLARE
    latch bigint;
    flag record;
BEGIN
    -- The trigger is enabled ALWAYS, so that no session gets by that calls itself
    -- a replica. Those that bring what the other cluster wrote do.
    IF pg_catalog.current_setting('application_name') = 'reshard copy'
       OR (pg_catalog.current_setting('session_replication_role') = 'replica'
           AND EXISTS (SELECT FROM pg_catalog.pg_stat_get_subscription(NULL) AS w
                         JOIN pg_catalog.pg_subscription AS s ON s.oid = w.subid
                        WHERE w.pid = pg_catalog.pg_backend_pid()
                          AND s.subname ~ '^reshard_')) THEN
        RETURN NULL;
    END IF;
    -- The lease: a cutover takes this lock exclusively, so it waits for those
    -- that have written, and holds those that are about to.
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(1919251304, 0);
    -- A DBA who mends a conflict writes to the closed cluster; on the active one he is
    -- waited for like others.
    IF pg_catalog.current_setting('application_name') = 'reshard repair' THEN
        RETURN NULL;
    END IF;
    -- The latch: read outside of any snapshot, so that a REPEATABLE READ
    -- transaction sees it as well.
    SELECT s.last_value INTO latch FROM reshard.latch AS s;
    IF latch = 2 THEN
        SELECT t.active_cluster, t.state, t.epoch INTO flag
          FROM reshard.traffic AS t ORDER BY t.epoch DESC LIMIT 1;
        RAISE EXCEPTION 'cannot write to table "%" of cluster "%": the cluster is not active',
                TG_TABLE_NAME, TG_ARGV[0]
            USING ERRCODE = 'read_only_sql_transaction',
                  DETAIL = CASE
                      WHEN flag.active_cluster IS NULL OR flag.active_cluster = TG_ARGV[0]
                      THEN 'Another cluster takes the writes of this database.'
                      ELSE pg_catalog.format('Cluster "%s" is active since epoch %s.',
                                             flag.active_cluster, flag.epoch)
                  END,
                  HINT = CASE
                      WHEN flag.active_cluster IS NULL OR flag.active_cluster = TG_ARGV[0]
                      THEN 'Read reshard.traffic again and connect to the active cluster.'
                      ELSE pg_catalog.format('Connect to cluster "%s" (epoch %s); reshard.traffic always names the active one.',
                                             flag.active_cluster, flag.epoch)
                  END;
    END IF;
    IF TG_OP = 'TRUNCATE' AND TG_ARGV[1] = 'part' THEN
        RAISE EXCEPTION 'cannot truncate table "%" while it is moved', TG_TABLE_NAME
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = pg_catalog.format('Each shard of cluster "%s" has a part of its rows; the other cluster would lose those of all shards.', TG_ARGV[0]),
                  HINT = 'DELETE its rows instead, on each shard.';
    END IF;
    RETURN NULL;
END
$fence$;
COMMENT ON FUNCTION reshard.fence() IS
    'statement trigger that keeps writers off a cluster that is not active';

CREATE OR REPLACE FUNCTION reshard.detoast() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 3
SET DateStyle = 'ISO, MDY'
SET IntervalStyle = 'postgres'
AS $detoast$
BEGIN
    -- An UPDATE of the sharding key becomes an INSERT on another shard. Values
    -- that are stored out of line and did not change are not in the WAL; a
    -- round trip through text makes them new values, which are.
    EXECUTE pg_catalog.format('SELECT ($1::text::%s).*', TG_RELID::pg_catalog.regclass)
       USING NEW INTO NEW;
    RETURN NEW;
END
$detoast$;
COMMENT ON FUNCTION reshard.detoast() IS
    'row trigger that writes a whole row to the WAL when its sharding key changes';

CREATE OR REPLACE FUNCTION reshard.refuse_row() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $refuse$
DECLARE
    key text := coalesce(pg_catalog.quote_literal(pg_catalog.to_jsonb(NEW) ->> TG_ARGV[1]), 'NULL');
    moves boolean := true;
BEGIN
    IF TG_ARGV[3] <> '' THEN
        -- The user's row filter: other rows stay where they are.
        EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM (SELECT ($1).*) AS t WHERE %s)', TG_ARGV[3])
           INTO moves USING NEW;
    END IF;
    IF NOT moves THEN
        RETURN NULL;
    END IF;
    -- The trigger's WHEN is the placement; this only says what it found.
    IF TG_ARGV[2] <> '' THEN
        RAISE EXCEPTION 'row of table "%" does not belong to shard % of cluster "%"',
                TG_TABLE_NAME, TG_ARGV[2], TG_ARGV[0]
            USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  COLUMN = TG_ARGV[1],
                  DETAIL = pg_catalog.format('Its sharding key "%s" is %s.', TG_ARGV[1], key),
                  HINT = 'Write it to the shard that its key is mapped to: reshard_shard_for() and reshard.placements of the source database name it.';
    END IF;
    RAISE EXCEPTION 'no shard of cluster "%" takes this row of table "%"', TG_ARGV[0], TG_TABLE_NAME
        USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
              COLUMN = TG_ARGV[1],
              DETAIL = pg_catalog.format('Its sharding key "%s" is %s, which is mapped to no shard.',
                                         TG_ARGV[1], key),
              HINT = 'While the table is moved, write only keys that are mapped to a shard; or cancel the migration, map the key and start it again.';
END
$refuse$;
COMMENT ON FUNCTION reshard.refuse_row() IS
    'row trigger that refuses rows which a shard, or all of them, do not take';
