//! A cancelled run takes back what it made, and nothing else.

use reshard_scenarios::oracle::dump;
use reshard_scenarios::{Migration, Result, Rig};

use super::super::common::{with_extension, STEP};
use super::{declare_whole, has_extension};

/// What a database has outside of schemas of its own, and changes of what each
/// database begins with.
const OUTSIDE: &str = "
CREATE FOREIGN DATA WRAPPER \"f w\"; CREATE SERVER \"s 1\" FOREIGN DATA WRAPPER \"f w\";
CREATE USER MAPPING FOR CURRENT_USER SERVER \"s 1\" OPTIONS (\"user\" 'u');
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER \"e t\" ON ddl_command_end EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER \"e t\" DISABLE;
ALTER SCHEMA public OWNER TO owner; COMMENT ON SCHEMA public IS 'changed';
GRANT ALL ON SCHEMA public TO reader; REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA public GRANT ALL ON TABLES TO reader WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
CREATE TYPE pair AS (a int, b int); CREATE CAST (pair AS text) WITH INOUT AS ASSIGNMENT;
CREATE OPERATOR public.=== (FUNCTION = int4eq, LEFTARG = int4, RIGHTARG = int4);
CREATE OPERATOR FAMILY hashed USING hash;
CREATE OPERATOR CLASS hashed_int FOR TYPE int4 USING hash FAMILY hashed AS OPERATOR 1 ===, FUNCTION 1 hashint4(int4);
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE CONVERSION conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH CONFIGURATION search (COPY = simple);
CREATE TABLE t (id bigint PRIMARY KEY);
CREATE UNLOGGED TABLE counted (n int); INSERT INTO counted VALUES (1);
CREATE MATERIALIZED VIEW broken AS SELECT 1 / count(*) AS n FROM counted;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 / count(*) AS n FROM counted WITH NO DATA;
CREATE TABLE secured (id bigint PRIMARY KEY); ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON secured USING (false); GRANT SELECT ON secured TO owner;
CREATE MATERIALIZED VIEW seen AS SELECT id FROM secured; ALTER MATERIALIZED VIEW seen OWNER TO owner;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_leaves_no_object_behind_whatever_its_kind() {
    with_extension(1, |rig| async move {
        for server in rig.servers() {
            server.execute("CREATE ROLE owner; CREATE ROLE reader").await?;
        }
        if has_extension(&rig, "lo").await? {
            // It was there before, and stays, with what depends on it.
            rig.source.execute("CREATE EXTENSION lo").await?;
            rig.shards[0].execute("CREATE EXTENSION lo; CREATE TABLE of_the_dba (l lo)").await?;
        }
        rig.shards[0]
            .execute(
                "ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA public GRANT SELECT ON TABLES TO reader;
                 ALTER DEFAULT PRIVILEGES FOR ROLE reader GRANT ALL ON TABLES TO PUBLIC",
            )
            .await?;
        let before = dump(&rig.shards[0])?;
        rig.source.execute(OUTSIDE).await?;
        declare_whole(&rig).await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["replicating"], STEP).await?;
        assert_ne!(body(&dump(&rig.shards[0])?), body(&before));
        views_are_filled_as_far_as_they_can_be(&rig).await?;
        // A worker that died before it wrote down what the shard had committed.
        rig.source
            .execute("UPDATE reshard.schema_statement SET status = 'running' WHERE kind IN ('table', 'type')")
            .await?;
        run.cancel(STEP).await?;
        assert_eq!(body(&dump(&rig.shards[0])?), body(&before));
        Ok(())
    })
    .await;
}

/// One that fails on the shard is told and stops nothing, one that the source hasn't filled is
/// left alone, one whose owner is under a policy sees what its owner sees.
async fn views_are_filled_as_far_as_they_can_be(rig: &Rig) -> Result<()> {
    let session = rig.source.connect().await?;
    let views = session
        .column("SELECT object_name || ' ' || status || ' ' || (error LIKE '%division by zero%')::text FROM reshard.schema_sync WHERE kind = 'refresh' AND status = 'failed'")
        .await?;
    assert_eq!(views, ["broken failed true"]);
    let warned: i64 = session
        .one("SELECT count(*) FROM reshard.events WHERE kind = 'view_not_filled' AND severity = 'warning' AND message LIKE '%public.broken%'")
        .await?;
    assert_eq!(warned, 1);
    let filled = rig.shards[0]
        .connect()
        .await?
        .column("SELECT relname || ' ' || relispopulated::text FROM pg_class WHERE relkind = 'm' ORDER BY 1")
        .await?;
    assert_eq!(filled, ["broken false", "seen true", "unfilled false"]);
    Ok(())
}

/// A dump without what differs each time.
fn body(dump: &str) -> Vec<&str> {
    dump.lines().filter(|line| !line.contains("restrict ")).collect()
}

/// Routines of one name that tell themselves apart by their arguments alone, some of
/// them on the shard before.
const OVERLOADED: &str = "
CREATE SCHEMA s;
CREATE FUNCTION s.\"f(x\"(text) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION s.step(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2'";
const OF_THE_SHARD: &str = "
CREATE FUNCTION s.\"f(x\"(a boolean DEFAULT true) RETURNS integer LANGUAGE sql AS 'SELECT 2';
CREATE FUNCTION s.\"f(x\"(VARIADIC a bigint[]) RETURNS integer LANGUAGE sql AS 'SELECT 3';
CREATE PROCEDURE s.p(a integer) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE s.total(integer) (SFUNC = s.step, STYPE = integer);
CREATE FUNCTION s.total(text) RETURNS text LANGUAGE sql AS 'SELECT $1'";
const OF_THE_SOURCE: &str = "
CREATE TYPE s.\"T,(\" AS (a integer);
CREATE FUNCTION s.\"f(x\"(integer, b text DEFAULT 'DEFAULT, )', OUT c s.\"T,(\") LANGUAGE sql AS 'SELECT NULL::s.\"T,(\"';
CREATE FUNCTION s.\"f(x\"(a integer[] DEFAULT ARRAY[1, 2]) RETURNS integer LANGUAGE sql AS 'SELECT 4';
CREATE FUNCTION s.\"f(x\"(VARIADIC a numeric[]) RETURNS TABLE (n integer, t text) LANGUAGE sql AS 'SELECT 1, ''x''';
CREATE PROCEDURE s.p(INOUT a text, b integer DEFAULT (1 + abs(-2))) LANGUAGE sql AS 'SELECT $1';
CREATE AGGREGATE s.total(integer, integer) (SFUNC = int4_sum_of, STYPE = bigint);
CREATE AGGREGATE s.middle(double precision ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE TABLE t (id bigint PRIMARY KEY)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_leaves_routines_alone_that_share_only_their_name_with_its_own() {
    with_extension(1, |rig| async move {
        rig.shards[0].execute(OVERLOADED).await?;
        rig.shards[0].execute(OF_THE_SHARD).await?;
        let before = dump(&rig.shards[0])?;
        rig.source.execute(OVERLOADED).await?;
        rig.source
            .execute("CREATE FUNCTION int4_sum_of(bigint, integer, integer) RETURNS bigint LANGUAGE sql AS 'SELECT $1 + $2 + $3'")
            .await?;
        rig.source.execute(OF_THE_SOURCE).await?;
        declare_whole(&rig).await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["replicating"], STEP).await?;
        let there = rig.shards[0].connect().await?;
        let count = "SELECT count(*) FROM pg_proc WHERE pronamespace = 's'::regnamespace";
        let routines: i64 = there.one(count).await?;
        assert_eq!(routines, 13);
        run.cancel(STEP).await?;
        assert_eq!(body(&dump(&rig.shards[0])?), body(&before));
        Ok(())
    })
    .await;
}
