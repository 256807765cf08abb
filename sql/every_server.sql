-- Tables that every server of both clusters has.

CREATE TABLE IF NOT EXISTS reshard.marker (
    id text PRIMARY KEY,
    value bigint NOT NULL
);
COMMENT ON TABLE reshard.marker IS
    'rows whose arrival at a subscriber proves that all earlier changes have been applied';

CREATE TABLE IF NOT EXISTS reshard.copied_part (
    token text NOT NULL,
    task_id bigint NOT NULL,
    wave int NOT NULL,
    table_id int NOT NULL,
    part_no int NOT NULL,
    rows bigint NOT NULL,
    PRIMARY KEY (token, task_id, wave, table_id, part_no)
);
COMMENT ON TABLE reshard.copied_part IS
    'parts whose rows are here: written in the transaction that brought the rows';

CREATE TABLE IF NOT EXISTS reshard.traffic (
    name text PRIMARY KEY,
    active_cluster text NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'paused')),
    epoch bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE reshard.traffic IS
    'the cutover flag as this server knows it, one row per migrated database: poolers and applications poll it; the highest epoch of all servers wins';
GRANT SELECT ON reshard.traffic TO PUBLIC;
