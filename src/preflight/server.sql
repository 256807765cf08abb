-- What a server says about itself, as one JSON document. Read-only.
SELECT jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    -- Clones of one server share its system identifier; no two start at once.
    'system', (SELECT concat_ws('/', c.system_identifier, extract(epoch FROM pg_postmaster_start_time()), current_setting('port')) FROM pg_control_system() AS c),
    'database', d.datname,
    'in_recovery', pg_is_in_recovery(),
    'wal_level', current_setting('wal_level'),
    'max_slots', current_setting('max_replication_slots')::int,
    'used_slots', (SELECT count(*) FROM pg_replication_slots),
    'max_senders', current_setting('max_wal_senders')::int,
    'used_senders', (SELECT count(*) FROM pg_stat_replication),
    'max_origins', coalesce(current_setting('max_active_replication_origins', true),
                            current_setting('max_replication_slots'))::int,
    'used_origins', (SELECT count(*) FROM pg_replication_origin),
    'max_apply_workers', current_setting('max_logical_replication_workers')::int,
    'used_apply_workers', (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
    'max_workers', current_setting('max_worker_processes')::int,
    'used_workers', (SELECT count(*) FROM pg_stat_activity AS a
                      WHERE a.backend_type NOT IN (
                          'client backend', 'autovacuum launcher', 'autovacuum worker', 'walsender',
                          'walreceiver', 'startup', 'checkpointer', 'background writer',
                          'walwriter', 'archiver', 'logger', 'walsummarizer', 'slotsync worker',
                          'io worker', 'standalone backend', 'parallel worker')
                        AND (a.backend_type NOT LIKE 'reshard %' OR a.datid IS DISTINCT FROM d.oid)),
    'max_connections', current_setting('max_connections')::int,
    'used_connections', (SELECT count(*) FROM pg_stat_activity AS a
                          WHERE a.backend_type = 'client backend'
                            AND a.application_name NOT LIKE 'reshard%'),
    'encoding', pg_encoding_to_char(d.encoding),
    'locale', concat_ws(' ', d.datlocprovider::text, d.datcollate, d.datctype,
                        coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')),
    'collation_version', pg_database_collation_actual_version(d.oid),
    -- Collations in use whose rules are no longer those that indexes were built by.
    'outdated_collations', coalesce((
        SELECT jsonb_agg(jsonb_build_object('name', o.name, 'recorded', o.recorded, 'actual', o.actual)
                         ORDER BY o.name)
          FROM (SELECT 'database ' || quote_ident(d.datname), d.datcollversion,
                       pg_database_collation_actual_version(d.oid)
                UNION ALL
                SELECT format('collation %I.%I', n.nspname, c.collname), c.collversion,
                       pg_collation_actual_version(c.oid)
                  FROM pg_collation AS c JOIN pg_namespace AS n ON n.oid = c.collnamespace
                 WHERE EXISTS (SELECT FROM pg_depend AS u
                                WHERE u.refclassid = 'pg_collation'::regclass AND u.refobjid = c.oid)
               ) AS o (name, recorded, actual)
         WHERE o.recorded <> o.actual), '[]'),
    'event_triggers', coalesce((
        SELECT jsonb_agg(quote_ident(e.evtname) ORDER BY e.evtname)
          FROM pg_event_trigger AS e
         WHERE e.evtenabled IN ('O', 'A') AND e.evtevent <> 'login'
           AND NOT EXISTS (SELECT FROM pg_depend AS x
                            WHERE x.classid = 'pg_event_trigger'::regclass AND x.objid = e.oid
                              AND x.deptype = 'e')), '[]'),
    'tablespaces', (SELECT jsonb_agg(t.spcname) FROM pg_tablespace AS t),
    'slot_limits', coalesce((
        SELECT jsonb_agg(s.name || ' = ' || s.setting || coalesce(s.unit, '') ORDER BY s.name)
          FROM pg_settings AS s
         WHERE s.name = 'max_slot_wal_keep_size' AND s.setting <> '-1'
            OR s.name = 'idle_replication_slot_timeout' AND s.setting <> '0'), '[]'),
    -- This session is read-only by itself.
    'read_only', (SELECT s.reset_val = 'on' FROM pg_settings AS s
                   WHERE s.name = 'default_transaction_read_only'),
    'synchronous_standbys', (
        SELECT jsonb_build_object(
                   'names', s.names,
                   -- Names without a number before them mean one of them.
                   'needed', CASE WHEN s.names ~ '[^[:space:]]' AND NOT pg_is_in_recovery()
                       THEN coalesce((regexp_match(s.names, '^[[:space:]]*(?:first|any)?[[:space:]]*([0-9]+)[[:space:]]*[(]',
                                                   'i'))[1]::int, 1)
                       ELSE 0 END,
                   'connected', (SELECT count(*) FROM pg_stat_replication AS r
                                  WHERE r.sync_state IN ('sync', 'quorum')))
          FROM current_setting('synchronous_standby_names') AS s (names)),
    -- Subscriptions read names and values as the database and the role say.
    'misreading', coalesce((
        SELECT jsonb_agg(o.name || ' = ' || o.value ORDER BY o.name)
          FROM (SELECT s.name, s.reset_val
                  FROM pg_settings AS s
                 WHERE s.name = 'array_nulls' AND s.reset_val <> 'on'
                    OR s.name = 'xmloption' AND s.reset_val <> 'content'
                UNION ALL
                -- This session has said its encoding when it began: pg_settings knows that one alone.
                SELECT 'client_encoding', e.value
                  FROM (SELECT coalesce(
                            (SELECT split_part(o.option, '=', 2)
                               FROM pg_db_role_setting AS r, unnest(r.setconfig) AS o (option)
                              WHERE o.option LIKE 'client_encoding=%'
                                AND r.setdatabase IN (0, d.oid)
                                AND r.setrole IN (0, (SELECT u.oid FROM pg_roles AS u
                                                       WHERE u.rolname = current_user))
                              ORDER BY r.setrole <> 0 DESC, r.setdatabase <> 0 DESC LIMIT 1),
                            (SELECT f.setting FROM pg_file_settings AS f
                              WHERE f.name = 'client_encoding' ORDER BY f.seqno DESC LIMIT 1))
                       ) AS e (value)
                 -- SQL_ASCII means no conversion.
                 WHERE pg_char_to_encoding(e.value) NOT IN (d.encoding, pg_char_to_encoding('SQL_ASCII'))
               ) AS o (name, value)), '[]'),
    'helper_schema', (SELECT coalesce(obj_description(n.oid, 'pg_namespace'), '')
                        FROM pg_namespace AS n WHERE n.nspname = 'reshard'),
    'roles', (SELECT jsonb_agg(r.rolname) FROM pg_roles AS r),
    'extensions', coalesce((SELECT jsonb_object_agg(e.extname, e.extversion)
                              FROM pg_extension AS e), '{}'),
    'available', coalesce((SELECT jsonb_object_agg(a.name, a.default_version)
                             FROM pg_available_extensions AS a), '{}'),
    'prepared', coalesce((SELECT jsonb_agg(p.gid ORDER BY p.prepared)
                            FROM pg_prepared_xacts AS p WHERE p.database = current_database()), '[]'),
    'long_transactions', coalesce((
        SELECT jsonb_agg(jsonb_build_object(
                   'pid', a.pid, 'user', a.usename, 'application', a.application_name,
                   'state', a.state, 'seconds', extract(epoch FROM now() - a.xact_start)::bigint)
                   ORDER BY a.xact_start)
          FROM pg_stat_activity AS a
         WHERE a.xact_start < now() - interval '1 minute' AND a.pid <> pg_backend_pid()
           AND (a.datid = d.oid OR a.backend_xid IS NOT NULL)
           AND a.backend_type IN ('client backend', 'autovacuum worker')
           AND a.application_name NOT LIKE 'reshard%'), '[]')
)::text
  FROM pg_database AS d
 WHERE d.datname = current_database()
