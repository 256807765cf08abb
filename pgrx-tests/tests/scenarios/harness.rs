//! The harness itself, on plain PostgreSQL: what the scenarios stand on.

use std::time::Duration;

use reshard_scenarios::placement::shard_of;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{scenario, RigOptions, Stop};

use super::common::plain;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_start_apart_and_keep_what_was_committed_over_every_kind_of_stop() {
    plain(1, |rig| async move {
        rig.source.execute("CREATE TABLE t (v text)").await?;
        for (value, how) in
            [("fast", Some(Stop::Fast)), ("immediate", Some(Stop::Immediate)), ("kill", None)]
        {
            rig.source.execute(&format!("INSERT INTO t VALUES ('{value}')")).await?;
            match how {
                Some(how) => rig.source.stop(how)?,
                None => rig.source.kill9()?,
            }
            assert!(rig.source.connect().await.unwrap_err().is_disconnect());
            rig.source.start()?;
        }
        let values = rig.source.connect().await?.column("SELECT v FROM t ORDER BY v").await?;
        assert_eq!(values, ["fast", "immediate", "kill"]);
        let other = rig.shards[0].text("SELECT to_regclass('t')::text").await?;
        assert_eq!(other, None);
        let ids: Vec<_> = futures::future::try_join_all(
            rig.servers()
                .map(|s| s.text("SELECT system_identifier::text FROM pg_control_system()")),
        )
        .await?;
        assert_ne!(ids[0], ids[1]);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_wants_the_password_and_errors_keep_their_fields() {
    plain(0, |rig| async move {
        let good = rig.source.connect_tcp("postgres", reshard_scenarios::cluster::PASSWORD).await?;
        assert_eq!(good.text("SELECT current_user").await?.as_deref(), Some("postgres"));
        let bad = rig.source.connect_tcp("postgres", "wrong").await;
        assert_eq!(bad.err().unwrap().sqlstate(), Some("28P01"));
        let error = good
            .execute("DO $$ BEGIN RAISE SQLSTATE '25006' USING MESSAGE = 'm', DETAIL = 'd', HINT = 'h'; END $$")
            .await
            .unwrap_err();
        let sql = error.sql().unwrap();
        assert_eq!(
            (sql.code.as_deref(), sql.message.as_str(), sql.detail.as_deref(), sql.hint.as_deref()),
            (Some("25006"), "m", Some("d"), Some("h"))
        );
        good.execute("DO $$ BEGIN RAISE NOTICE 'seen'; END $$").await?;
        assert_eq!(good.take_notices(), ["NOTICE: seen"]);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_counts_after_a_restart_and_a_wait_says_what_it_waited_for() {
    plain(0, |rig| async move {
        rig.source.set(&[("wal_level", "replica")])?;
        rig.source.restart(Stop::Fast)?;
        assert_eq!(rig.source.text("SHOW wal_level").await?.as_deref(), Some("replica"));
        let error = wait_until(Duration::from_millis(50), "the impossible", || async { Ok(false) })
            .await
            .unwrap_err();
        assert!(error.to_string().contains("waiting for the impossible"), "{error}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_places_keys_exactly_as_partition_by_hash_does() {
    plain(0, |rig| async move {
        let session = rig.source.connect().await?;
        session.execute("CREATE TABLE p (k bigint) PARTITION BY HASH (k)").await?;
        for shards in [2_u64, 3, 4, 7] {
            let rows = session
                .rows(&format!(
                    "SELECT k, d FROM (SELECT generate_series(-200, 200)::bigint AS k
                     UNION VALUES (9223372036854775807), (-9223372036854775808), (5000000000), (-5000000000)) AS keys,
                     generate_series(0, {shards} - 1) AS d
                     WHERE satisfies_hash_partition('p'::regclass, {shards}, d, k)"
                ))
                .await?;
            assert_eq!(rows.len(), 405);
            for row in rows {
                let key: i64 = row[0].as_ref().unwrap().parse().unwrap();
                let shard: usize = row[1].as_ref().unwrap().parse().unwrap();
                assert_eq!(shard_of(key, shards), shard, "key {key} over {shards} shards");
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_scenario_takes_its_servers_and_its_folder_with_it() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = scenario::run(RigOptions::plain(1), Duration::from_secs(60), |rig| async move {
        sender.send((rig.folder().to_owned(), rig.source.port())).unwrap();
        Err(reshard_scenarios::Error::Unexpected("on purpose".to_owned()))
    })
    .await;
    assert!(outcome.unwrap_err().to_string().contains("on purpose"));
    let (folder, port) = receiver.recv().unwrap();
    let kept = std::env::var("RESHARD_KEEP").is_ok_and(|value| value == "1");
    assert!(kept || !folder.exists());
    assert!(kept || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
