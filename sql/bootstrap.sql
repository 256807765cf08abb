-- The state of reshard: every table that a worker or a view reads.
--
-- All of it lives in schema "reshard" and is part of the extension. Each table
-- has a primary key, because a publication FOR ALL TABLES covers these tables
-- too and an UPDATE of a published table without identity would fail.

DO $encoding$
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE feature_not_supported USING
            MESSAGE = format('encoding %s of database "%s" is not supported',
                             getdatabaseencoding(), current_database()),
            DETAIL = 'The extension reads names and texts of its database as UTF8.',
            HINT = 'Move the database to UTF8 first: pg_dump, then CREATE DATABASE ... ENCODING ''UTF8''.';
    END IF;
END
$encoding$;

CREATE SCHEMA reshard;
COMMENT ON SCHEMA reshard IS 'state tables and views of the reshard extension';
GRANT USAGE ON SCHEMA reshard TO PUBLIC;

CREATE FUNCTION reshard.token() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $token$
    -- With the extension's own number: one that was dropped and created again begins
    -- to count its tasks anew.
    SELECT left(md5(concat_ws('/', (pg_control_system()).system_identifier, d.oid, e.oid)), 6)
      FROM pg_database AS d, pg_extension AS e
     WHERE d.datname = current_database() AND e.extname = 'reshard'
$token$;
COMMENT ON FUNCTION reshard.token() IS
    'tells this database, and this installation of the extension in it, from all others in names of objects';

-- Clusters ------------------------------------------------------------------

CREATE FOREIGN DATA WRAPPER reshard NO HANDLER NO VALIDATOR;
COMMENT ON FOREIGN DATA WRAPPER reshard IS
    'shards declared with reshard_add_shard(); passwords are kept in user mappings';

-- Holds passwords: for superusers alone, as pg_user_mapping is.
CREATE VIEW reshard.declared_shard AS
SELECT (SELECT o.option_value FROM pg_catalog.pg_options_to_table(s.srvoptions) AS o
         WHERE o.option_name = 'cluster') AS cluster,
       (SELECT o.option_value::int FROM pg_catalog.pg_options_to_table(s.srvoptions) AS o
         WHERE o.option_name = 'shard') AS shard,
       (SELECT o.option_value FROM pg_catalog.pg_options_to_table(s.srvoptions) AS o
         WHERE o.option_name = 'conninfo') AS conninfo,
       (SELECT o.option_value FROM pg_catalog.pg_options_to_table(s.srvoptions) AS o
         WHERE o.option_name = 'database_id') AS database_id,
       (SELECT o.option_value FROM pg_catalog.pg_options_to_table(m.umoptions) AS o
         WHERE o.option_name = 'password') AS password
  FROM pg_catalog.pg_foreign_server AS s
  JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw
  LEFT JOIN pg_catalog.pg_user_mapping AS m ON m.umserver = s.oid AND m.umuser = 0
 WHERE w.fdwname = 'reshard';
COMMENT ON VIEW reshard.declared_shard IS
    'shards with their secrets, for workers; the view reshard.shards is for people';

CREATE TABLE reshard.sharding_rule (
    cluster_name text NOT NULL,
    rule_no int NOT NULL,
    column_names name[] NOT NULL CHECK (cardinality(column_names) > 0),
    method text NOT NULL CHECK (method IN ('hash', 'list', 'range')),
    schema_name name,
    table_name name,
    PRIMARY KEY (cluster_name, rule_no),
    CHECK (method = 'hash' OR cardinality(column_names) = 1)
);
COMMENT ON TABLE reshard.sharding_rule IS
    'sharding keys declared with reshard_set_sharding_key(); schema_name and table_name are null for a rule that holds for every table with these columns';
CREATE UNIQUE INDEX sharding_rule_scope
    ON reshard.sharding_rule (cluster_name, coalesce(schema_name, ''), coalesce(table_name, ''), column_names);

CREATE FUNCTION reshard.key_by_rules(relation oid, rules reshard.sharding_rule[],
                                     OUT column_names name[], OUT method text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $key$
    -- A rule for the table, or the nearest one above it, comes before one for all tables
    -- with its columns; of these, one of more columns before one of fewer.
    SELECT r.column_names, r.method
      FROM unnest($2) AS r
      LEFT JOIN LATERAL (
               SELECT min(a.distance) AS distance
                 FROM (SELECT $1 AS oid, 0::bigint AS distance
                       UNION ALL
                       SELECT p.relid, p.ordinality
                         FROM pg_partition_ancestors($1) WITH ORDINALITY AS p (relid, ordinality)) AS a
                 JOIN pg_class AS c ON c.oid = a.oid
                 JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.relname = r.table_name AND n.nspname = coalesce(r.schema_name, n.nspname)
           ) AS named ON r.table_name IS NOT NULL
     WHERE named.distance IS NOT NULL
        OR (r.table_name IS NULL
            AND r.column_names <@ ARRAY(SELECT a.attname FROM pg_attribute AS a
                                         WHERE a.attrelid = $1 AND a.attnum > 0
                                           AND NOT a.attisdropped))
     ORDER BY named.distance NULLS LAST, cardinality(r.column_names) DESC, r.rule_no
     LIMIT 1
$key$;
COMMENT ON FUNCTION reshard.key_by_rules(oid, reshard.sharding_rule[]) IS
    'the columns that spread a table by these rules, and how; null where none holds for it';

CREATE FUNCTION reshard.sharding_key_of(relation oid, cluster text,
                                        OUT column_names name[], OUT method text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $key$
    SELECT k.column_names, k.method
      FROM reshard.key_by_rules($1, ARRAY(SELECT r FROM reshard.sharding_rule AS r
                                           WHERE r.cluster_name = $2)) AS k
$key$;
COMMENT ON FUNCTION reshard.sharding_key_of(oid, text) IS
    'the columns that spread a table over the shards of a cluster, and how; null where each shard has it whole';

CREATE FUNCTION reshard.key_types(relation oid, column_names name[]) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $types$
    SELECT array_agg(format('%s %s', a.atttypid, a.attcollation) ORDER BY k.nr)
      FROM unnest($2) WITH ORDINALITY AS k (name, nr)
      LEFT JOIN pg_attribute AS a
        ON a.attrelid = $1 AND a.attname = k.name AND a.attnum > 0 AND NOT a.attisdropped
$types$;
COMMENT ON FUNCTION reshard.key_types(oid, name[]) IS
    'numbers of the types and collations of a table''s columns: keys with the same ones are placed in the same way';

CREATE FUNCTION reshard.filter_columns(publication name, relation oid) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $filter$
    SELECT ARRAY(SELECT DISTINCT a.attname
                   FROM pg_publication AS b
                   JOIN pg_publication_rel AS r ON r.prpubid = b.oid AND r.prrelid = $2
                  CROSS JOIN LATERAL regexp_matches(r.prqual::text, ':varattno ([0-9]+)', 'g') AS v (number)
                   JOIN pg_attribute AS a ON a.attrelid = $2 AND a.attnum = v.number[1]::int2
                  WHERE b.pubname = $1)
$filter$;
COMMENT ON FUNCTION reshard.filter_columns(name, oid) IS
    'the columns that the row filter of a table in a publication looks at';

CREATE FUNCTION reshard.published_leaves(publication name)
RETURNS TABLE (relation oid, column_names name[], row_filter text, filter_columns name[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $leaves$
    -- Names in row filters are qualified by this search_path.
    SELECT DISTINCT ON (c.oid) c.oid, p.attnames, p.rowfilter, reshard.filter_columns($1, r.oid)
      FROM pg_publication_tables AS p
      JOIN pg_namespace AS s ON s.nspname = p.schemaname
      JOIN pg_class AS r ON r.relnamespace = s.oid AND r.relname = p.tablename
     CROSS JOIN LATERAL (
              SELECT r.oid WHERE r.relkind <> 'p'
              UNION ALL
              SELECT t.relid::oid FROM pg_partition_tree(r.oid) AS t
               WHERE r.relkind = 'p' AND t.isleaf
           ) AS l (oid)
      JOIN pg_class AS c ON c.oid = l.oid
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE p.pubname = $1 AND c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'reshard'
       -- A table without columns has no rows that could be told apart.
       AND EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND a.attgenerated = '' AND a.attname = ANY (p.attnames))
     ORDER BY c.oid
$leaves$;
COMMENT ON FUNCTION reshard.published_leaves(name) IS
    'tables whose rows a publication covers, down to the leaves of partitioned ones, with what it says of their columns and rows';

CREATE FUNCTION reshard.incomparable_columns(relation oid, column_names name[]) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $incomparable$
    SELECT coalesce(array_agg(a.attname ORDER BY a.attnum), '{}')
      FROM pg_attribute AS a
      JOIN pg_type AS d ON d.oid = a.atttypid
      JOIN pg_type AS b ON b.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype ELSE d.oid END
      -- Arrays compare by what they hold.
      JOIN pg_type AS t ON t.oid = CASE WHEN b.typlen = -1 AND b.typelem <> 0 THEN b.typelem ELSE b.oid END
     WHERE a.attrelid = $1 AND a.attname = ANY ($2) AND a.attnum > 0 AND NOT a.attisdropped
       -- The others have the equality of their kind.
       AND t.typtype = 'b'
       -- 403 is the access method btree, 405 is hash.
       AND NOT EXISTS (
               SELECT FROM pg_opclass AS o
                WHERE o.opcdefault AND o.opcmethod IN (403, 405)
                  AND (o.opcintype = t.oid
                       OR EXISTS (SELECT FROM pg_cast AS c
                                   WHERE c.castsource = t.oid AND c.casttarget = o.opcintype
                                     AND c.castmethod = 'b' AND c.castcontext = 'i')))
$incomparable$;
COMMENT ON FUNCTION reshard.incomparable_columns(oid, name[]) IS
    'those of a table''s columns whose types have no equality, like json, xml and point: a row can''t be found by its values';

CREATE TABLE reshard.key_mapping (
    cluster_name text NOT NULL,
    column_name name NOT NULL,
    mapping_no int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('value', 'null', 'range', 'default')),
    value text,
    lower_bound text,
    upper_bound text,
    shard int NOT NULL CHECK (shard >= 0),
    PRIMARY KEY (cluster_name, column_name, mapping_no),
    CHECK ((value IS NOT NULL) = (kind = 'value')),
    CHECK (kind = 'range' OR lower_bound IS NULL AND upper_bound IS NULL)
);
COMMENT ON TABLE reshard.key_mapping IS
    'which keys belong to which shard, by list or range: declared with reshard_map_values(), reshard_map_range() and reshard_map_default(); the view reshard.placements shows it';
COMMENT ON COLUMN reshard.key_mapping.lower_bound IS 'the first key of a range; null: no bound';
COMMENT ON COLUMN reshard.key_mapping.upper_bound IS 'the first key after a range; null: no bound';

CREATE FUNCTION reshard.key_text(key anyelement) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, MDY'
SET IntervalStyle = 'postgres'
SET TimeZone = 'UTC'
SET extra_float_digits = 3
SET bytea_output = 'hex'
AS $text$
BEGIN
    RETURN key::text;
END
$text$;
COMMENT ON FUNCTION reshard.key_text(anyelement) IS
    'a key as text that is read in the same way whatever the session''s settings are';

CREATE FUNCTION reshard.read_key(value text, type oid, OUT key text, OUT error text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $read$
BEGIN
    EXECUTE format('SELECT reshard.key_text($1::%s)', format_type(type, -1)) INTO key USING value;
EXCEPTION WHEN OTHERS THEN
    error := SQLERRM;
END
$read$;
COMMENT ON FUNCTION reshard.read_key(text, oid) IS
    'a key read by the session''s settings as a value of a type, or why it can''t be read';

-- Tasks ---------------------------------------------------------------------

CREATE TABLE reshard.task (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    parent_id bigint REFERENCES reshard.task (id) ON DELETE CASCADE,
    type text NOT NULL
        CHECK (type IN ('reshard', 'schema_sync', 'copy_data', 'replicate', 'replication', 'cutover', 'verify')),
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    phase text NOT NULL,
    source text NOT NULL,
    destination text NOT NULL,
    publication text NOT NULL,
    options jsonb NOT NULL DEFAULT '{}',
    requested_by name NOT NULL DEFAULT session_user,
    stopped boolean NOT NULL DEFAULT false,
    cancelling boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    sqlstate text,
    error text,
    hint text
);
COMMENT ON TABLE reshard.task IS 'one row per background task; the view reshard.tasks shows it';
COMMENT ON COLUMN reshard.task.stopped IS 'the task was stopped by reshard_stop_task() and waits for reshard_resume()';
COMMENT ON COLUMN reshard.task.cancelling IS 'reshard_cancel() was called: nothing is done any more but to end the task';
CREATE INDEX task_parent ON reshard.task (parent_id);
-- The fence is one for the whole database, so one migration at a time.
CREATE UNIQUE INDEX task_live_migration ON reshard.task ((true))
 WHERE parent_id IS NULL AND type IN ('reshard', 'copy_data', 'replicate')
   AND status IN ('pending', 'running', 'failed');

CREATE TABLE reshard.intent (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    verb text NOT NULL
        CHECK (verb IN ('cutover', 'rollback', 'complete', 'cancel', 'stop', 'resume')),
    args jsonb NOT NULL DEFAULT '{}',
    requested_by name NOT NULL DEFAULT session_user,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    handled_at timestamptz,
    error text
);
COMMENT ON TABLE reshard.intent IS
    'what a user asked for; a worker acts on it after the commit, in order of id';
CREATE INDEX intent_unhandled ON reshard.intent (task_id, id) WHERE handled_at IS NULL;

CREATE TABLE reshard.event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    kind text NOT NULL,
    message text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE reshard.event IS 'history of every task; the view reshard.events shows it';
CREATE INDEX event_task ON reshard.event (task_id, id);

-- Nodes ---------------------------------------------------------------------

CREATE TABLE reshard.joined_task (
    token text NOT NULL,
    task_id bigint NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    shard int NOT NULL,
    destination text NOT NULL,
    publication text NOT NULL,
    ddl text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (token, task_id)
);
COMMENT ON TABLE reshard.joined_task IS
    'running migrations of this database that another shard of its cluster coordinates: their state is there';
COMMENT ON COLUMN reshard.joined_task.token IS 'tells the coordinating database from others, in names of objects too';
COMMENT ON COLUMN reshard.joined_task.shard IS 'number of this database in the source cluster';

CREATE TABLE reshard.coordinator (
    token text PRIMARY KEY,
    shard int NOT NULL,
    address text
);
COMMENT ON TABLE reshard.coordinator IS
    'databases whose tasks this one shows: other shards of its cluster, where these tasks run; to delete a row is to forget what it has sent';
COMMENT ON COLUMN reshard.coordinator.token IS 'tells the database from others, as reshard.token() there does';
COMMENT ON COLUMN reshard.coordinator.shard IS 'its number in the source cluster';
COMMENT ON COLUMN reshard.coordinator.address IS 'host, port and database as they are declared there';

CREATE TABLE reshard.mirrored_row (
    view_name text NOT NULL,
    token text NOT NULL REFERENCES reshard.coordinator (token) ON DELETE CASCADE,
    root_id bigint NOT NULL,
    key jsonb NOT NULL,
    shown jsonb NOT NULL,
    generation timestamptz NOT NULL,
    PRIMARY KEY (view_name, token, root_id, key)
);
COMMENT ON TABLE reshard.mirrored_row IS
    'rows of another shard''s views about a task that runs there: the views here show them beside their own';
COMMENT ON COLUMN reshard.mirrored_row.root_id IS 'the task there; rows about its children belong to it';
COMMENT ON COLUMN reshard.mirrored_row.key IS 'tells the rows of a view and task apart';
COMMENT ON COLUMN reshard.mirrored_row.shown IS 'the row, by names of columns';
COMMENT ON COLUMN reshard.mirrored_row.generation IS
    'when all rows of the view and task were last sent: what is older is gone there';

CREATE TABLE reshard.mirror (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    shard int NOT NULL,
    sent_at timestamptz,
    PRIMARY KEY (task_id, shard)
);
COMMENT ON TABLE reshard.mirror IS
    'other shards of the source cluster, whose views show what the views here show of a task';
COMMENT ON COLUMN reshard.mirror.sent_at IS 'all that was committed by then is there';

-- Schema sync ---------------------------------------------------------------

CREATE TABLE reshard.schema_plan (
    task_id bigint PRIMARY KEY REFERENCES reshard.task (id) ON DELETE CASCADE,
    server_version text,
    session text[] NOT NULL,
    planned_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE reshard.schema_plan IS
    'tasks that have their schema statements, and what each session runs before the first of them';

CREATE TABLE reshard.schema_statement (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    shard int NOT NULL,
    ordinal int NOT NULL,
    phase text NOT NULL CHECK (phase IN ('pre', 'post', 'cutover', 'post_cutover')),
    step text NOT NULL,
    kind text NOT NULL,
    schema_name text,
    object_name text,
    table_schema text,
    table_name text,
    sql text NOT NULL,
    shown text,
    settings text[] NOT NULL DEFAULT '{}',
    digest text NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'skipped')),
    percent numeric(5, 2),
    build_phase text,
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    PRIMARY KEY (task_id, shard, ordinal)
);
COMMENT ON TABLE reshard.schema_statement IS
    'one row per schema statement and destination shard; the view reshard.schema_sync shows it';
COMMENT ON COLUMN reshard.schema_statement.shown IS
    'the text for people, without secrets, where sql may hold some';
COMMENT ON COLUMN reshard.schema_statement.build_phase IS
    'what the shard says that it does while it builds an index';
COMMENT ON COLUMN reshard.schema_statement.digest IS
    'tells statements of different text or settings apart; the same in every task';
CREATE INDEX schema_statement_table
    ON reshard.schema_statement (task_id, shard, table_schema, table_name);

-- Copy ----------------------------------------------------------------------

CREATE TABLE reshard.wave (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    wave int NOT NULL,
    source_shard int NOT NULL,
    snapshot text,
    lsn pg_lsn,
    abandoned boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, wave, source_shard)
);
COMMENT ON TABLE reshard.wave IS
    'tables copied under one snapshot and one set of slots; snapshot is null once it is gone';

CREATE TABLE reshard.copy_table (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    table_id int NOT NULL,
    wave int,
    relation oid NOT NULL,
    schema_name name NOT NULL,
    table_name name NOT NULL,
    columns name[] NOT NULL,
    column_list boolean NOT NULL DEFAULT false,
    key_columns name[],
    key_method text,
    source_key name[],
    source_method text,
    source_shard int,
    row_filter text,
    filter_columns name[] NOT NULL DEFAULT '{}',
    format text NOT NULL DEFAULT 'binary' CHECK (format IN ('binary', 'text')),
    identity text NOT NULL DEFAULT 'd',
    identity_index name,
    blocks bigint NOT NULL DEFAULT 0,
    bytes_total bigint NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'copied', 'ready', 'rewritten', 'failed', 'cancelled')),
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    PRIMARY KEY (task_id, table_id)
);
COMMENT ON TABLE reshard.copy_table IS
    'one row per table of a migration: leaves of partitioned tables, each ordinary table';
COMMENT ON COLUMN reshard.copy_table.wave IS 'null while the table waits for a wave';
COMMENT ON COLUMN reshard.copy_table.key_columns IS 'sharding key; null for an omni table, which every shard gets whole';
COMMENT ON COLUMN reshard.copy_table.key_method IS 'how its values are placed: hash, list or range';
COMMENT ON COLUMN reshard.copy_table.source_method IS 'how values of source_key are placed on the source';
COMMENT ON COLUMN reshard.copy_table.source_key IS 'sharding key of a source cluster of several shards; null where each of its shards has the table whole, or where there is one';
COMMENT ON COLUMN reshard.copy_table.source_shard IS 'the one source shard that its rows come from, where each of several has the table whole; never changed once it is chosen';
COMMENT ON COLUMN reshard.copy_table.relation IS 'oid in this database';
COMMENT ON COLUMN reshard.copy_table.row_filter IS 'row filter of the user''s publication, as an expression over the table''s columns';
COMMENT ON COLUMN reshard.copy_table.filter_columns IS 'columns that row_filter looks at';
COMMENT ON COLUMN reshard.copy_table.identity IS 'pg_class.relreplident as it was before the migration';
COMMENT ON COLUMN reshard.copy_table.identity_index IS 'the index that was the replica identity, where identity is i';
COMMENT ON COLUMN reshard.copy_table.status IS
    'copied: all parts committed on all shards; ready: keys and indexes built too; rewritten: truncated or rewritten while it was copied, or rows of it came twice, waits for the next wave';

CREATE TABLE reshard.copy_part (
    task_id bigint NOT NULL,
    table_id int NOT NULL,
    part_no int NOT NULL,
    source_shard int NOT NULL,
    relation oid NOT NULL,
    block_from bigint NOT NULL,
    block_to bigint,
    blocks bigint NOT NULL,
    claim_order int NOT NULL DEFAULT 0,
    bytes_total bigint NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'done', 'failed')),
    attempts int NOT NULL DEFAULT 0,
    not_before timestamptz,
    worker_pid int,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    blocks_done bigint NOT NULL DEFAULT 0,
    started_at timestamptz,
    finished_at timestamptz,
    sqlstate text,
    error text,
    hint text,
    PRIMARY KEY (task_id, table_id, part_no),
    FOREIGN KEY (task_id, table_id) REFERENCES reshard.copy_table ON DELETE CASCADE
);
COMMENT ON TABLE reshard.copy_part IS
    'the unit of copying: a range of a table''s blocks, [block_from, block_to), block_to null = to the end';
COMMENT ON COLUMN reshard.copy_part.relation IS 'oid of the table on its source shard';
COMMENT ON COLUMN reshard.copy_part.blocks IS 'number of its blocks when it was planned';
COMMENT ON COLUMN reshard.copy_part.claim_order IS 'parts of the largest tables are copied first';
COMMENT ON COLUMN reshard.copy_part.bytes_total IS 'the part''s share of the size of its table, out-of-line values included';
COMMENT ON COLUMN reshard.copy_part.bytes IS 'bytes as encoded for COPY, each row counted once';
COMMENT ON COLUMN reshard.copy_part.blocks_done IS 'blocks read so far; never goes back when a part is tried again';
CREATE INDEX copy_part_open ON reshard.copy_part (task_id, claim_order) WHERE status <> 'done';

CREATE TABLE reshard.removal (
    task_id bigint NOT NULL,
    table_id int NOT NULL,
    source_shard int NOT NULL,
    blocks bigint NOT NULL,
    blocks_done bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (task_id, table_id, source_shard),
    FOREIGN KEY (task_id, table_id) REFERENCES reshard.copy_table ON DELETE CASCADE
);
COMMENT ON TABLE reshard.removal IS
    'rows deleted from shards of both clusters once they had moved away for good; the view reshard.removals shows it';
COMMENT ON COLUMN reshard.removal.blocks_done IS 'no row that has moved away is in these blocks any more';

-- Replication ---------------------------------------------------------------

CREATE TABLE reshard.flow (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    wave int NOT NULL DEFAULT 1,
    source_shard int NOT NULL,
    destination_shard int NOT NULL,
    slot_name name NOT NULL,
    publication_name name NOT NULL,
    subscription_name name NOT NULL,
    live boolean NOT NULL DEFAULT false,
    active boolean NOT NULL DEFAULT false,
    confirmed_lsn pg_lsn,
    lag_bytes bigint,
    retained_bytes bigint,
    wal_status text,
    apply_errors bigint,
    error text,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, direction, wave, source_shard, destination_shard)
);
COMMENT ON TABLE reshard.flow IS
    'one row per replication slot; the view reshard.replication_slots shows it';
COMMENT ON COLUMN reshard.flow.live IS 'changes are meant to go this way now: the subscription is enabled';

CREATE TABLE reshard.ddl (
    token text NOT NULL,
    task_id bigint NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    sql text NOT NULL,
    made jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (token, task_id, id)
);
COMMENT ON TABLE reshard.ddl IS
    'DDL that flows replay: a row is published to the shards, where its arrival runs the statement';
COMMENT ON COLUMN reshard.ddl.made IS
    'objects that the statement makes: each with its kind (schema, table, index, column), its name, and of a column its own';

-- Cutover -------------------------------------------------------------------

CREATE TABLE reshard.pooler (
    name text PRIMARY KEY,
    epoch bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'paused')),
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    acknowledged_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE reshard.pooler IS 'what each registered pooler obeys; the view reshard.poolers shows it';

CREATE TABLE reshard.cutover (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    from_cluster text NOT NULL,
    to_cluster text NOT NULL,
    dry_run boolean NOT NULL DEFAULT false,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'aborted')),
    epoch bigint,
    pause_ms double precision,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    sqlstate text,
    error text,
    hint text
);
COMMENT ON TABLE reshard.cutover IS 'every switch of traffic that was tried';

CREATE TABLE reshard.staying_sequence (
    task_id bigint NOT NULL REFERENCES reshard.task (id) ON DELETE CASCADE,
    source_shard int NOT NULL,
    name text NOT NULL,
    increment bigint NOT NULL,
    minimum bigint NOT NULL,
    maximum bigint NOT NULL,
    start bigint NOT NULL,
    divided text,
    opening text NOT NULL DEFAULT '',
    PRIMARY KEY (task_id, source_shard, name)
);
COMMENT ON TABLE reshard.staying_sequence IS
    'sequences of shards that are in both clusters, as they were before a switch gave each shard of the destination its part of the values';
COMMENT ON COLUMN reshard.staying_sequence.divided IS 'what follows ALTER SEQUENCE for its part; null where each shard hands out the same values';
COMMENT ON COLUMN reshard.staying_sequence.opening IS
    'what the latest switch does about it before the shard takes writes again; written with its commit point';

CREATE TABLE reshard.cutover_step (
    cutover_id bigint NOT NULL REFERENCES reshard.cutover (id) ON DELETE CASCADE,
    step_no int NOT NULL,
    step text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (cutover_id, step_no)
);
COMMENT ON TABLE reshard.cutover_step IS 'every step of every cutover; the view reshard.cutovers shows it';

-- Fence ---------------------------------------------------------------------

CREATE SEQUENCE reshard.latch MINVALUE 1 MAXVALUE 3 START 1 CYCLE CACHE 1;
COMMENT ON SEQUENCE reshard.latch IS
    'last_value 1: this database takes writes; 2: it does not; 3: it does, as a shard of the destination that is one of the source too. A sequence is read outside of any snapshot and is WAL-logged';
GRANT SELECT ON SEQUENCE reshard.latch TO PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('reshard.sharding_rule', '');
SELECT pg_catalog.pg_extension_config_dump('reshard.key_mapping', '');
