-- What triggers call on a shard that is in both clusters: who may write which rows there.

CREATE FUNCTION reshard.guard_staying() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $guard$
DECLARE
    latch bigint;
    written record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        written := OLD;
    ELSE
        written := NEW;
    END IF;
    -- Read outside of any snapshot. 1: the source is active; 3: the destination is. The
    -- trigger is about the placement of one of them.
    SELECT s.last_value INTO latch FROM reshard.latch AS s;
    IF latch <> TG_ARGV[3]::bigint OR pg_catalog.current_setting('application_name') = 'reshard repair' THEN
        RETURN written;
    END IF;
    IF TG_WHEN = 'BEFORE' AND TG_OP <> 'INSERT' THEN
        IF pg_catalog.current_setting('reshard.skip_moved_rows') = 'on' THEN
            RETURN NULL;
        END IF;
        written := OLD;
    END IF;
    RAISE EXCEPTION 'row of table "%" does not belong to shard % of cluster "%"',
            TG_TABLE_NAME, TG_ARGV[1], TG_ARGV[0]
        USING ERRCODE = 'read_only_sql_transaction', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
              DETAIL = (SELECT pg_catalog.format('Its sharding key is %s.', pg_catalog.string_agg(
                                   pg_catalog.format('"%s" = %s', k.name,
                                       coalesce(pg_catalog.quote_literal(pg_catalog.to_jsonb(written) ->> k.name), 'NULL')),
                                   ', ' ORDER BY k.nr))
                          FROM pg_catalog.jsonb_array_elements_text(TG_ARGV[2]::jsonb) WITH ORDINALITY AS k (name, nr)),
              HINT = CASE
                  WHEN TG_WHEN = 'BEFORE' AND TG_OP <> 'INSERT' THEN 'It is there for another shard: write to the one that its key names. A statement that goes to all shards passes over such rows with SET reshard.skip_moved_rows = on.'
                  ELSE 'Write it to the shard that its key names.'
              END;
END
$guard$;
COMMENT ON FUNCTION reshard.guard_staying() IS
    'row trigger of a shard in both clusters that keeps writers off rows of other shards of the active one';
