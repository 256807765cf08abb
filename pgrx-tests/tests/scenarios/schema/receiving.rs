//! Clusters that rows come back to: sequences, and all that fires or holds there.

use std::sync::Arc;

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig};

use super::super::common::{with_extension, STEP};
use super::sync;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phase_cutover_sets_the_sequences_of_the_shards_and_says_so() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE t (id bigserial PRIMARY KEY, tenant bigint); CREATE SEQUENCE \"odd ;\" INCREMENT -2;
                 INSERT INTO t (tenant) SELECT generate_series(1, 100); SELECT nextval('\"odd ;\"')",
            )
            .await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'tenant'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        sync(&rig, "pre", "{}").await?;
        sync(&rig, "post", "{}").await?;
        // Again and again: no value is handed out twice.
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2 {
            let task = sync(&rig, "cutover", "{}").await?;
            let shown = session
                .column(&format!("SELECT shard || ' ' || status || ' ' || object_name FROM reshard.schema_sync WHERE task_id = {} AND kind = 'sequence_value' ORDER BY 1", task.id))
                .await?;
            assert_eq!(shown, ["0 succeeded odd ;", "0 succeeded t_id_seq", "1 succeeded odd ;", "1 succeeded t_id_seq"]);
            for server in rig.servers() {
                let next: i64 = server.connect().await?.one("SELECT nextval('t_id_seq')").await?;
                assert!(next > 100 && seen.insert((server.name().to_owned(), next)), "{next}: {seen:?}");
            }
        }
        let copied: i64 = session.one("SELECT count(*) FROM reshard.copy_table").await?;
        assert_eq!(copied, 0);
        sync(&rig, "post_cutover", "{}").await?;
        Ok(())
    })
    .await;
}

/// What refuses, changes or repeats a row that an ordinary client writes.
const ALL_THAT_FIRES: &str = "
CREATE TABLE accounts (tenant bigint PRIMARY KEY, name text);
CREATE TABLE things (
    tenant bigint NOT NULL CONSTRAINT things_account REFERENCES accounts ON DELETE CASCADE,
    id bigint GENERATED ALWAYS AS IDENTITY,
    place integer NOT NULL CONSTRAINT positive CHECK (place > 0),
    doubled bigint GENERATED ALWAYS AS (tenant * 2) STORED,
    touched integer NOT NULL DEFAULT 0,
    stamp text,
    PRIMARY KEY (tenant, id),
    CONSTRAINT one_place UNIQUE (tenant, place) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE log (tenant bigint, id bigint GENERATED ALWAYS AS IDENTITY, thing bigint, PRIMARY KEY (tenant, id));
CREATE TABLE fired (thing bigint);

CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN new.touched := new.touched + 1; RETURN new; END $$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION touch();
CREATE FUNCTION write_log() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.log (tenant, thing) VALUES (new.tenant, new.id); RETURN NULL; END $$;
CREATE TRIGGER write_log AFTER INSERT ON things FOR EACH ROW EXECUTE FUNCTION write_log();
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN new.stamp := 'stamped'; RETURN new; END $$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE things ENABLE ALWAYS TRIGGER stamp;
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.fired VALUES (new.id); RETURN new; END $$;
CREATE TRIGGER count_it BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION count_it();
ALTER TABLE things ENABLE REPLICA TRIGGER count_it;
CREATE RULE no_renames AS ON UPDATE TO accounts DO INSTEAD NOTHING;

ALTER TABLE things ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON things USING (false);

INSERT INTO accounts SELECT g, 'seed' FROM generate_series(1, 40) AS g;
INSERT INTO things (tenant, place) SELECT a, p FROM generate_series(1, 40) AS a, generate_series(1, 3) AS p;
";

/// Everything about the rows, wherever they are.
const FINGERPRINT: &str = "SELECT concat_ws(' ', count(*), sum(hashtext(t::text)::bigint)) FROM (
    SELECT 'account', a::text FROM accounts AS a UNION ALL SELECT 'thing', t::text FROM things AS t
    UNION ALL SELECT 'log', concat(l.tenant, ' ', l.thing) FROM log AS l) AS t";

/// Waits until the rows of the shards, together, are those of the source.
async fn rows_are_the_same(rig: &Rig) -> Result<()> {
    wait_until(STEP, "the same rows on both sides", || async {
        let numbers = |text: String| -> Vec<i64> {
            text.split(' ').map(|n| n.parse().unwrap_or_default()).collect()
        };
        let here = numbers(rig.source.connect().await?.one(FINGERPRINT).await?);
        let mut there = vec![0, 0];
        for shard in &rig.shards {
            let part = numbers(shard.connect().await?.one(FINGERPRINT).await?);
            for (sum, n) in there.iter_mut().zip(part) {
                *sum += n;
            }
        }
        Ok(here == there)
    })
    .await
}

/// What clients do to a cluster: new rows, two that exchange a key that is unique at the
/// end only, a row whose others go with it.
async fn write(servers: &[&reshard_scenarios::Server], names: &str) -> Result<()> {
    for server in servers {
        let session = server.connect().await?;
        session
            .execute(&format!(
                "INSERT INTO things (tenant, place) SELECT tenant, 10 + '{names}'::integer FROM accounts;
                 BEGIN; UPDATE things SET place = 3 - place WHERE place IN (1, 2); COMMIT;
                 DELETE FROM accounts WHERE tenant = (SELECT max(tenant) FROM accounts)"
            ))
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_back_to_the_old_cluster_as_they_are_whatever_fires_or_holds_there() {
    with_extension(2, |rig: Arc<Rig>| async move {
        let session = rig.source.connect().await?;
        session.execute(ALL_THAT_FIRES).await?;
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'tenant');
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE accounts, things, log"
            ))
            .await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["replicating"], STEP).await?;
        let source = [&rig.source];
        let shards: Vec<&reshard_scenarios::Server> = rig.shards.iter().collect();
        write(&source, "1").await?;
        rows_are_the_same(&rig).await?;
        for round in ["2", "4"] {
            run.cutover(STEP).await?;
            write(&shards, round).await?;
            rows_are_the_same(&rig).await?;
            run.rollback(STEP).await?;
            // Values that the shards gave out are not given out again.
            write(&source, &format!("1{round}")).await?;
            rows_are_the_same(&rig).await?;
        }
        // Nothing was written twice by a trigger, and nothing was refused.
        let twice: i64 = session
            .one("SELECT count(*) FROM (SELECT FROM log GROUP BY tenant, thing HAVING count(*) > 1) AS t")
            .await?;
        assert_eq!(twice, 0);
        let logged: i64 = session
            .one("SELECT count(*) FROM things AS t WHERE NOT EXISTS (SELECT FROM log AS l WHERE l.thing = t.id AND l.tenant = t.tenant)")
            .await?;
        assert_eq!(logged, 0);
        let odd: i64 = session
            .one("SELECT count(*) FROM things WHERE stamp <> 'stamped' OR doubled <> 2 * tenant OR touched < 1")
            .await?;
        assert_eq!(odd, 0);
        // For rows that came from elsewhere, and no others.
        let fired: i64 = session.one("SELECT count(*) FROM fired").await?;
        let came: i64 = session
            .one("SELECT count(*) FROM things WHERE place IN (12, 14)")
            .await?;
        assert!(came > 0 && fired >= came, "{fired} {came}");
        let own: i64 = session
            .one("SELECT count(*) FROM things JOIN fired ON thing = id WHERE place IN (1, 2, 3, 11)")
            .await?;
        assert_eq!(own, 0);
        run.cutover(STEP).await?;
        run.complete(STEP).await
    })
    .await;
}
