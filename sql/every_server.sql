-- Tables that every server of both clusters has.

CREATE TABLE IF NOT EXISTS reshard.marker (
    id text PRIMARY KEY,
    value bigint NOT NULL
);
COMMENT ON TABLE reshard.marker IS
    'rows whose arrival at a subscriber proves that all earlier changes have been applied';

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
