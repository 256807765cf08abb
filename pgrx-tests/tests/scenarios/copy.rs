//! The copy: waves, pauses, limits, memory, and what it survives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reshard_scenarios::cluster::process::{copy_workers, MemoryWatch};
use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::declare;
use reshard_scenarios::oracle::{compare, compare_when_quiet};
use reshard_scenarios::random::Random;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server, Session, Stop};

use super::common::{
    application, check_outcome, on_all, restart, run, run_within, with_extension, KEY, STEP,
};

/// The longest a copy of the long scenarios may take.
const LONG: Duration = Duration::from_secs(900);
/// Memory of its own that a copy worker may have, in bytes.
const WORKER_MEMORY: u64 = 64_000_000;

/// Sets the rate limit of the copy, in kB a second; 0 is none.
pub async fn limit(rig: &Rig, rate: u32) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute(&format!("ALTER SYSTEM SET reshard.copy_rate_limit = {rate}")).await?;
    session.execute("SELECT pg_reload_conf()").await
}

/// `tables` tables of the same size, spread by the application's key.
pub async fn fill(rig: &Rig, tables: usize, rows: usize) -> Result<()> {
    let session = rig.source.connect().await?;
    for table in 1..=tables {
        session
            .execute(&format!(
                "CREATE TABLE t{table} (id bigint PRIMARY KEY, {KEY} bigint NOT NULL, filler text);
                 INSERT INTO t{table} SELECT g, g % 997, repeat(md5(g::text), 3)
                   FROM generate_series(1, {rows}) AS g"
            ))
            .await?;
    }
    Ok(())
}

/// Bytes copied so far, or rows, or whatever `column` of the totals says.
async fn total(rig: &Rig, column: &str) -> Result<f64> {
    let sql = format!("SELECT coalesce(max({column}), 0)::float8 FROM reshard.copy_totals");
    rig.source.connect().await?.one(&sql).await
}

/// Waits until the copy has moved some rows, and has not ended.
async fn in_the_middle(rig: &Rig, percent: f64) -> Result<()> {
    wait_until(STEP, format!("{percent} % to be copied"), || async {
        Ok(total(rig, "percent").await? >= percent)
    })
    .await
}

/// Fails where any row is missing, doubled or on a wrong shard.
pub async fn equal(rig: &Rig) -> Result<()> {
    let differences = compare(rig, KEY).await?;
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::Unexpected(format!("{differences:?}"))),
    }
}

/// Waits until a task fails, and fails where its error says something else.
pub async fn fails_with(migration: &Migration, what: &str) -> Result<()> {
    wait_until(STEP, "the task to fail", || async {
        Ok(migration.state().await?.status == "failed")
    })
    .await?;
    let error = migration.state().await?.error.unwrap_or_default();
    match error.contains(what) {
        true => Ok(()),
        false => Err(Error::Unexpected(error)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waves_bound_the_snapshot_and_flow_before_the_last_one_is_copied() {
    let options = RigOptions::new(2).source("reshard.wave_size", "4MB");
    run(options, |rig| async move {
        application(&rig, 20_000).await?;
        fill(&rig, 3, 25_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        load.each_acknowledged(5, STEP).await?;
        limit(&rig, 3_000).await?;
        let migration = Migration::start(&rig, false).await?;
        let session = rig.source.connect().await?;
        // A wave flows while another one is still copied.
        wait_until(STEP, "a finished wave to flow during the copy", || async {
            let seen: i64 = session
                .one(
                    "SELECT count(*) FROM reshard.replication_slots AS s JOIN reshard.tasks AS t ON t.id = s.task_id
                      WHERE s.live AND s.active AND t.phase = 'copy'",
                )
                .await?;
            Ok(seen > 0)
        })
        .await?;
        limit(&rig, 0).await?;
        migration.watch(&["replicating"], STEP).await?;
        let waves: i64 = session.one("SELECT count(DISTINCT wave) FROM reshard.table_copies").await?;
        assert!(waves >= 3, "{waves} waves");
        let abandoned: i64 = session.one("SELECT count(*) FROM reshard.wave WHERE abandoned").await?;
        assert_eq!(abandoned, 0);
        load.each_acknowledged(10, STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        migration.rollback(STEP).await?;
        load.each_acknowledged(10, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_copy_goes_on_with_its_snapshot_and_copies_nothing_twice() {
    let options = RigOptions::new(2)
        .source("reshard.copy_part_size", "1MB")
        .source("default_transaction_isolation", "serializable")
        .shard("default_transaction_isolation", "serializable");
    run(options, |rig| async move {
        fill(&rig, 2, 60_000).await?;
        declare(&rig, KEY).await?;
        limit(&rig, 4_000).await?;
        let session = rig.source.connect().await?;
        // An error between the snapshot and the parts; later one wherever a worker
        // would not see what others have just written.
        judge_parts(&session, "RAISE 'no parts today'").await?;
        session
            .execute(
                "CREATE TRIGGER judge BEFORE INSERT OR UPDATE ON reshard.copy_part
                     FOR EACH ROW EXECUTE FUNCTION reshard.judge()",
            )
            .await?;
        let migration = Migration::start(&rig, false).await?;
        fails_with(&migration, "no parts today").await?;
        judge_parts(
            &session,
            "IF current_setting('transaction_isolation') <> 'read committed' THEN
                 RAISE 'the isolation is %', current_setting('transaction_isolation');
             END IF; RETURN NEW",
        )
        .await?;
        migration.verb("reshard_resume").await?;
        in_the_middle(&rig, 50.0).await?;
        migration.verb("reshard_stop_task").await?;
        fails_with(&migration, "stopped").await?;
        wait_until(STEP, "the workers to end", || async { Ok(copy_workers(&rig.source)?.is_empty()) }).await?;
        let before = finished_parts(&rig).await?;
        assert!(!before.is_empty());
        let stopped = total(&rig, "percent").await?;
        // Written while the copy stands still: it comes with the flow, not with the copy.
        session.execute("UPDATE t1 SET filler = 'late' WHERE id % 100 = 0; DELETE FROM t2 WHERE id % 100 = 0").await?;
        limit(&rig, 0).await?;
        migration.verb("reshard_resume").await?;
        migration.watch(&["replicating"], STEP).await?;
        assert!(stopped < 100.0, "the copy had ended before it was stopped");
        let after = finished_parts(&rig).await?;
        assert!(before.is_subset(&after), "copied twice: {:?}", before.difference(&after));
        assert_eq!(session.one::<i64>("SELECT max(wave) FROM reshard.table_copies").await?, 1);
        migration.cutover(STEP).await?;
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}

/// Has a trigger of the table of parts do that.
async fn judge_parts(session: &Session, what: &str) -> Result<()> {
    session
        .execute(&format!(
            "SET reshard.ddl_guard = off;
             CREATE OR REPLACE FUNCTION reshard.judge() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN {what}; END $$"
        ))
        .await
}

/// Servers whose sessions end after four seconds without work, or of one transaction
/// where they know that limit.
const IMPATIENT: &str = "
    ALTER DATABASE app SET idle_session_timeout = '4s';
    DO $$ BEGIN
        IF current_setting('transaction_timeout', true) IS NOT NULL THEN
            ALTER DATABASE app SET transaction_timeout = '4s';
        END IF;
    END $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_limit_holds_and_changes_while_the_copy_runs_and_progress_never_goes_back() {
    with_extension(2, |rig| async move {
        fill(&rig, 3, 60_000).await?;
        declare(&rig, KEY).await?;
        // A row filter takes another way through the table.
        rig.source
            .execute(
                "DROP PUBLICATION all_tables;
                 CREATE PUBLICATION all_tables FOR TABLE t1 WHERE (id > 0), t2, t3",
            )
            .await?;
        on_all(rig.servers(), IMPATIENT).await?;
        limit(&rig, 2_000).await?;
        let migration = Migration::start(&rig, false).await?;
        in_the_middle(&rig, 1.0).await?;
        let (begin, before) = (Instant::now(), total(&rig, "bytes").await?);
        let mut last = 0.0;
        let mut changed = Instant::now();
        let mut longest = Duration::ZERO;
        while begin.elapsed() < Duration::from_secs(5) {
            let percent = total(&rig, "percent").await?;
            assert!(percent >= last, "{percent} after {last}");
            if percent > last {
                longest = longest.max(changed.elapsed());
                changed = Instant::now();
            }
            last = percent;
            let ahead = "SELECT count(*) FROM reshard.table_copies
                          WHERE status = 'running' AND rows < 30000 AND percent > 90";
            assert_eq!(rig.source.connect().await?.one::<i64>(ahead).await?, 0);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let rate = (total(&rig, "bytes").await? - before) / begin.elapsed().as_secs_f64();
        let shown = total(&rig, "bytes_per_sec").await?;
        println!(
            "{:.0} kB/s, shown {:.0} kB/s, longest time without news {longest:.0?}",
            rate / 1e3,
            shown / 1e3
        );
        assert!((1.2e6..2.9e6).contains(&rate), "{rate} bytes a second");
        assert!((1.0e6..4.5e6).contains(&shown), "shown are {shown} bytes a second");
        assert!(longest < Duration::from_secs(2), "{longest:?} without news");
        let eta: i64 =
            rig.source.connect().await?.one("SELECT count(eta) FROM reshard.copy_totals").await?;
        assert_eq!(eta, 1);
        limit(&rig, 0).await?;
        let begin = Instant::now();
        migration.watch(&["replicating"], STEP).await?;
        assert!(begin.elapsed() < Duration::from_secs(20), "the limit stayed");
        assert_eq!(total(&rig, "percent").await?, 100.0);
        let waves: i64 =
            rig.source.connect().await?.one("SELECT max(wave) FROM reshard.table_copies").await?;
        assert_eq!(waves, 1);
        on_all(rig.servers(), "ALTER DATABASE app RESET ALL").await?;
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_lost_its_wal_during_the_copy_or_the_building_of_keys_is_a_loud_error() {
    let options = RigOptions::new(2)
        .source("max_slot_wal_keep_size", "1MB")
        .source("min_wal_size", "32MB")
        .source("max_wal_size", "32MB")
        .source("wal_keep_size", "0");
    run(options, |rig| async move {
        fill(&rig, 1, 60_000).await?;
        declare(&rig, KEY).await?;
        limit(&rig, 300).await?;
        let migration = Migration::start(&rig, false).await?;
        in_the_middle(&rig, 1.0).await?;
        slots_are_lost(&rig, &migration).await?;

        // An index that takes minutes on the shards, where the extension is not.
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE FUNCTION slow(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$
                 BEGIN
                     IF NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'reshard') THEN
                         PERFORM pg_catalog.pg_sleep(0.01);
                     END IF;
                     RETURN $1;
                 END $$;
                 CREATE INDEX slowly ON t1 (slow(id))",
            )
            .await?;
        limit(&rig, 0).await?;
        let migration = Migration::start(&rig, false).await?;
        wait_until(STEP, "the index to be built, with all rows copied", || async {
            let built: i64 = session
                .one(&format!(
                    "SELECT count(*) FROM reshard.schema_sync WHERE task_id = {} AND object_name = 'slowly' AND status = 'running'",
                    migration.id
                ))
                .await?;
            Ok(built > 0 && copy_workers(&rig.source)?.is_empty())
        })
        .await?;
        slots_are_lost(&rig, &migration).await
    })
    .await;
}

/// Has the source remove the WAL that the slots of a migration need: it fails.
async fn slots_are_lost(rig: &Rig, migration: &Migration) -> Result<()> {
    let session = rig.source.connect().await?;
    for _ in 0..8 {
        session
            .execute("SELECT pg_switch_wal(); INSERT INTO t1 VALUES (-(random() * 1e9)::int, 1, 'x'); CHECKPOINT")
            .await?;
    }
    fails_with(migration, "can't be used any more").await?;
    let lost: i64 = session
        .one("SELECT count(*) FROM reshard.replication_slots WHERE wal_status = 'lost'")
        .await?;
    assert!(lost > 0);
    migration.cancel(STEP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_64_mb_pass_in_bounded_memory() {
    run_within(RigOptions::new(2), LONG, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(&format!(
                "CREATE TABLE huge (id int PRIMARY KEY, {KEY} bigint NOT NULL, plain bytea, pglz text, lz4 text, as_text text, r regclass);
                 ALTER TABLE huge ALTER plain SET STORAGE EXTERNAL, ALTER pglz SET COMPRESSION pglz"
            ))
            .await?;
        // Not every server is built with LZ4.
        let lz4 = session.execute("ALTER TABLE huge ALTER lz4 SET COMPRESSION lz4").await.is_ok();
        println!("LZ4: {lz4}");
        // Half of it compresses well, half of it hardly.
        session
            .execute(
                "CREATE FUNCTION body(seed int, megabytes int) RETURNS text LANGUAGE sql AS $$
                     SELECT string_agg(CASE WHEN g % 2 = 0 THEN repeat(md5((seed + g)::text), 32)
                                            ELSE (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32)) END, '')
                       FROM generate_series(1, megabytes * 1024) AS g $$;
                 INSERT INTO huge SELECT 1, 1, convert_to(body(1, 64), 'UTF8'), body(2, 64), body(3, 64), NULL, 'pg_class';
                 INSERT INTO huge SELECT 2, 2, convert_to(body(4, 8), 'UTF8'), repeat('a', 67108864), repeat('xyz', 22369621), body(5, 3) || E'\\\\ \\t \\n', 'pg_type'",
            )
            .await?;
        // By the text form of COPY as well, since regclass has no portable binary form.
        session.execute(&format!("CREATE TABLE huge_binary (id int PRIMARY KEY, {KEY} bigint NOT NULL, plain bytea, pglz text, lz4 text)")).await?;
        session.execute("INSERT INTO huge_binary SELECT id, tenant_id, plain, pglz, lz4 FROM huge; ALTER TABLE huge DROP plain").await?;
        declare(&rig, KEY).await?;
        let memory = MemoryWatch::start(&rig.source)?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], LONG).await?;
        println!("a worker's memory: {} MB", memory.peak() / 1_000_000);
        assert!(memory.peak() > 1_000_000 && memory.peak() < WORKER_MEMORY, "{} bytes", memory.peak());
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_copy_survives_fifty_killed_workers_and_restarts_of_every_server() {
    let options = RigOptions::new(4)
        .source("reshard.copy_part_size", "1MB")
        .source("reshard.copy_attempts", "100")
        .source("reshard.copy_retry_delay", "50ms");
    run_within(options, LONG, |rig| async move {
        fill(&rig, 4, 1_250_000).await?;
        declare(&rig, KEY).await?;
        limit(&rig, 12_000).await?;
        let migration = Migration::start(&rig, false).await?;
        in_the_middle(&rig, 1.0).await?;
        let mut random = Random::new(7);
        let mut done = BTreeSet::new();
        for kill in 0..50 {
            wait_until(STEP, "a copy worker", || async {
                Ok(!copy_workers(&rig.source)?.is_empty())
            })
            .await?;
            match kill % 2 {
                0 => end_worker(&rig, &mut random)?,
                _ => end_session(&rig.shards[random.below(4) as usize]).await?,
            }
            match kill {
                5 | 25 => restart(&rig.shards[kill / 10], Stop::Immediate)?,
                15 | 45 => restart(&rig.shards[kill / 15], Stop::Fast)?,
                29 => {
                    done = finished_parts(&rig).await?;
                    assert!(!done.is_empty());
                }
                35 => {
                    // What was finished is finished: same time, same rows.
                    let now = finished_parts(&rig).await?;
                    assert!(
                        done.is_subset(&now),
                        "copied twice: {:?}",
                        done.difference(&now).collect::<Vec<_>>()
                    );
                    restart(&rig.source, Stop::Immediate)?;
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        }
        limit(&rig, 0).await?;
        migration.watch(&["replicating"], LONG).await?;
        let failures: i64 = rig
            .source
            .connect()
            .await?
            .one("SELECT count(*) FROM reshard.events WHERE kind = 'copy_part_failed'")
            .await?;
        println!("{failures} failed tries in the events");
        equal(&rig).await
    })
    .await;
}

/// Ends one copy worker as an administrator would: kill -9 would restart the whole
/// server.
fn end_worker(rig: &Rig, random: &mut Random) -> Result<()> {
    let workers = copy_workers(&rig.source)?;
    let Some(victim) = random.pick(&workers) else { return Ok(()) };
    // It may have ended by itself a moment ago; then kill has nothing to do.
    let kill = std::process::Command::new("kill").args(["-TERM", &victim.to_string()]).output();
    kill.map(drop).map_err(Error::io("run kill"))
}

/// Ends one of the sessions that rows come through.
async fn end_session(shard: &Server) -> Result<()> {
    shard
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE application_name = 'reshard copy' ORDER BY random() LIMIT 1",
        )
        .await
}

pub async fn finished_parts(rig: &Rig) -> Result<BTreeSet<String>> {
    let parts = rig
        .source
        .connect()
        .await?
        .column(
            "SELECT format('%s.%s %s %s', table_id, part_no, rows, finished_at)
               FROM reshard.copy_part WHERE status = 'done'",
        )
        .await?;
    Ok(parts.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn ten_thousand_small_tables_cost_little_each_and_little_memory() {
    let options = RigOptions::new(2)
        .alone()
        .source("max_locks_per_transaction", "1000")
        .shard("max_locks_per_transaction", "1000");
    run_within(options, LONG, |rig| async move {
        let tables = 10_000;
        let session = rig.source.connect().await?;
        for chunk in 0..100 {
            session
                .execute(&format!(
                    "DO $$ BEGIN FOR i IN {}..{} LOOP
                         EXECUTE format('CREATE TABLE s%s (id int PRIMARY KEY, {KEY} bigint); INSERT INTO s%s SELECT g, g FROM generate_series(1, 20) g', i, i);
                     END LOOP; END $$",
                    chunk * 100 + 1,
                    chunk * 100 + 100
                ))
                .await?;
        }
        declare(&rig, KEY).await?;
        let memory = MemoryWatch::start(&rig.source)?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], LONG).await?;
        let seconds: f64 = session
            .one("SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM reshard.table_copies")
            .await?;
        let each = seconds * 1e3 / f64::from(tables);
        println!("{each:.1} ms for each table, a worker's memory {} MB", memory.peak() / 1_000_000);
        let phases = session
            .rows("SELECT message, at::time(0)::text FROM reshard.events WHERE kind = 'phase' ORDER BY id")
            .await?;
        println!("{phases:?}");
        assert!(each < 20.0, "{each} ms for each table");
        assert!(memory.peak() < WORKER_MEMORY, "{} bytes", memory.peak());
        equal(&rig).await
    })
    .await;
}
