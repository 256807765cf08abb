//! The clients and the oracle, on plain PostgreSQL: what they report is true.

use std::time::Duration;

use reshard_scenarios::load::{schema, Active, Load, LoadOptions, Outcome, Table};
use reshard_scenarios::oracle::{
    check_record, compare, fingerprint, helper_objects, Footprint, Verdict,
};
use reshard_scenarios::{Result, Rig, Stop};

use super::common::plain;

const SECONDS_30: Duration = Duration::from_secs(30);

async fn run_load(rig: &Rig, fixed: Active, transactions: u64) -> Result<Outcome> {
    let options = LoadOptions {
        followers: 4,
        fixed: Some(fixed),
        pace: Duration::from_millis(2),
        ..LoadOptions::default()
    };
    let load = Load::start(rig, &options);
    load.each_acknowledged(transactions, SECONDS_30).await?;
    load.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_clients_is_what_one_server_holds() {
    plain(0, |rig| async move {
        let session = rig.source.connect().await?;
        schema::create(&session).await?;
        schema::seed(&session, 500).await?;
        let outcome = run_load(&rig, Active::Source, 300).await?;
        assert_eq!(outcome.failed(), Vec::<&str>::new());
        let counts = outcome.counts();
        assert!(
            counts.acknowledged >= 1200 && counts.refused + counts.redirected == 0,
            "{counts:?}"
        );
        for table in Table::ALL {
            let rows: usize = outcome.clients.iter().map(|c| c.state.count(table)).sum();
            assert!(rows > 0, "clients wrote nothing to {}", table.name());
        }
        let rows = check_record(&[&rig.source], &outcome).await?.into_result()?;
        assert!(rows > 1000);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_fault_on_shards_is_found() {
    plain(3, |rig| async move {
        for (number, shard) in rig.shards.iter().enumerate() {
            schema::create(&shard.connect().await?).await?;
            let apart = 1 + 1_000_000 * number;
            shard.execute(&format!("ALTER SEQUENCE tickets_id_seq RESTART {apart}")).await?;
        }
        let outcome = run_load(&rig, Active::Shards, 150).await?;
        assert_eq!(outcome.failed(), Vec::<&str>::new());
        let shards: Vec<_> = rig.shards.iter().collect();
        check_record(&shards, &outcome).await?.into_result()?;
        let break_and_count = |kind, sql| {
            let (shards, outcome, rig) = (&shards, &outcome, &rig);
            async move {
                let session = rig.shards[1].connect().await?;
                assert!(session.affected(sql).await? > 0, "{sql}");
                Result::Ok(check_record(shards, outcome).await?.count(kind))
            }
        };
        let one = "ctid = (SELECT min(ctid) FROM orders WHERE owner <> 0)";
        let update = format!("UPDATE orders SET stamp = 'other' WHERE {one}");
        assert_eq!(break_and_count(Verdict::STALE, update.as_str()).await?, 1);
        let delete = "DELETE FROM orders WHERE stamp = 'other'";
        assert_eq!(break_and_count(Verdict::LOST, delete).await?, 1);
        let double = "INSERT INTO notes SELECT * FROM notes LIMIT 1";
        assert_eq!(break_and_count(Verdict::DOUBLED, double).await?, 1);
        let ghost = "INSERT INTO orders (tenant_id, id, owner, stamp) VALUES (1, 1, 1, 'x')";
        assert_eq!(break_and_count(Verdict::GHOST, ghost).await?, 1);
        let body = "UPDATE docs SET body = 'x' WHERE id = (SELECT min(id) FROM docs)";
        assert_eq!(break_and_count(Verdict::STALE, body).await?, 1);
        let row = rig.shards[1]
            .connect()
            .await?
            .rows("SELECT tenant_id, id, owner, stamp FROM events LIMIT 1")
            .await?;
        let values: Vec<String> =
            row[0].iter().map(|v| format!("'{}'", v.as_ref().unwrap())).collect();
        rig.shards[0]
            .execute(&format!(
                "INSERT INTO events (tenant_id, id, owner, stamp) VALUES ({})",
                values.join(",")
            ))
            .await?;
        let verdict = check_record(&shards, &outcome).await?;
        assert_eq!(verdict.count(Verdict::MISPLACED), 1, "{verdict}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_looked_up_after_a_crash() {
    plain(0, |rig| async move {
        schema::create(&rig.source.connect().await?).await?;
        let options = LoadOptions {
            followers: 6,
            pace: Duration::ZERO,
            fixed: Some(Active::Source),
            ..LoadOptions::default()
        };
        let load = Load::start(&rig, &options);
        for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
            load.each_acknowledged(40, SECONDS_30).await?;
            let server = rig.clone();
            tokio::task::spawn_blocking(move || server.source.restart(how)).await.unwrap()?;
        }
        load.each_acknowledged(40, SECONDS_30).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.failed(), Vec::<&str>::new());
        let counts = outcome.counts();
        assert!(counts.broken + counts.in_doubt > 0, "{counts:?}");
        check_record(&[&rig.source], &outcome).await?.into_result()?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_compared_row_by_row_with_their_placement() {
    plain(2, |rig| async move {
        let ddl = "CREATE TABLE t (tenant_id text, v int); CREATE TABLE omni (v int)";
        for server in rig.servers() {
            server.execute(ddl).await?;
            server.execute("INSERT INTO omni VALUES (1), (1), (2)").await?;
        }
        rig.source.execute("INSERT INTO t SELECT 'k' || g, g FROM generate_series(1, 100) g").await?;
        let rows = rig.source.connect().await?.rows("SELECT * FROM t").await?;
        let differences = compare(&rig, "tenant_id").await?;
        assert_eq!(differences.len(), 1, "{differences:?}");
        for (number, shard) in rig.shards.iter().enumerate() {
            let session = shard.connect().await?;
            session.execute("CREATE TEMP TABLE p (k text) PARTITION BY HASH (k)").await?;
            for row in &rows {
                let (key, value) = (row[0].as_ref().unwrap(), row[1].as_ref().unwrap());
                session
                    .execute(&format!("INSERT INTO t SELECT '{key}', {value} WHERE satisfies_hash_partition('p'::regclass, 2, {number}, '{key}'::text)"))
                    .await?;
            }
        }
        assert_eq!(compare(&rig, "tenant_id").await?, []);
        let shards: Vec<_> = rig.shards.iter().collect();
        assert_eq!(fingerprint(&[&rig.source], "t", "true").await?, fingerprint(&shards, "t", "true").await?);
        rig.shards[0].execute("WITH gone AS (DELETE FROM omni WHERE ctid = (SELECT min(ctid) FROM omni) RETURNING 1) SELECT").await?;
        let moved = rig.shards[0].text("DELETE FROM t WHERE v = (SELECT min(v) FROM t) RETURNING tenant_id").await?.unwrap();
        rig.shards[1].execute(&format!("INSERT INTO t VALUES ('{moved}', (substr('{moved}', 2))::int)")).await?;
        let differences = compare(&rig, "tenant_id").await?;
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert!(differences.iter().any(|d| d.what.contains("rows of other shards")), "{differences:?}");
        assert!(differences.iter().any(|d| d.what.contains("1 rows missing")), "{differences:?}");
        assert_ne!(fingerprint(&[&rig.source], "omni", "true").await?, fingerprint(&[&rig.shards[0]], "omni", "true").await?);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_footprint_tells_what_came_and_what_went() {
    plain(0, |rig| async move {
        schema::create(&rig.source.connect().await?).await?;
        let before = Footprint::of(&rig.source).await?;
        assert_eq!(Footprint::of(&rig.source).await?, before);
        rig.source
            .execute(
                "CREATE SCHEMA reshard; CREATE PUBLICATION reshard_p FOR TABLE events; ALTER TABLE events REPLICA IDENTITY FULL;
                 CREATE FUNCTION reshard.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                 CREATE TRIGGER t BEFORE INSERT ON events EXECUTE FUNCTION reshard.f(); DROP TABLE settings",
            )
            .await?;
        rig.source.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await?;
        rig.source.execute("SELECT pg_replication_origin_create('o')").await?;
        let since = Footprint::of(&rig.source).await?.since(&before);
        assert_eq!(
            since,
            [
                "+ origin o",
                "+ publication reshard_p",
                "+ published reshard_p public.events",
                "+ replica identity f of events",
                "+ schema reshard",
                "+ slot s",
                "+ trigger t on events",
                "- relation settings r",
                "- relation settings_pkey i",
                "- replica identity d of events",
                "- replica identity d of settings",
            ]
        );
        let left = helper_objects(&rig.source, false).await?;
        assert_eq!(left, ["origin o", "publication reshard_p", "schema reshard", "slot s", "trigger t on events"]);
        assert_eq!(helper_objects(&rig.source, true).await?.len(), 4);
        Ok(())
    })
    .await;
}
