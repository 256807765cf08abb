//! Checks of the servers, of how clusters are declared, and of what goes on now.

use std::time::Duration;

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::session::literal;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Result, Rig, RigOptions, Session, Stop};

use super::super::common::{application, restart, run, run_within, KEY, STEP};
use super::{expect, pasted, preflight, WHOLE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_of_the_servers_fires() {
    run(RigOptions::new(2), |rig| async move {
        application(&rig, 10).await?;
        let session = rig.source.connect().await?;
        clusters(&rig, &session).await?;

        rig.source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'").await?;
        rig.source.execute("SELECT pg_reload_conf()").await?;
        wait_until(STEP, "the limit of slots to be told", || async {
            let found = preflight(&session, WHOLE, "{}").await?;
            Ok(found.iter().any(|f| f.check == "slot_limits" && f.severity == "warning"))
        })
        .await?;
        rig.source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size").await?;
        rig.source.execute("SELECT pg_reload_conf()").await?;

        // All that can be short on a shard.
        rig.shards[0].set(&[
            ("max_replication_slots", "0"),
            ("max_wal_senders", "0"),
            ("max_worker_processes", "0"),
            ("max_logical_replication_workers", "0"),
            ("max_connections", "8"),
            ("superuser_reserved_connections", "3"),
            ("wal_level", "replica"),
            ("synchronous_standby_names", "FIRST 2 (gone, away)"),
        ])?;
        restart(&rig.shards[0], Stop::Fast)?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "wal_level", "error", "shard 0");
        expect(&found, "synchronous_standby", "error", "needed: 2, connected: 0");
        for check in
            ["replication_slots", "wal_senders", "worker_processes", "apply_workers", "connections"]
        {
            expect(&found, check, "error", "shard 0");
        }
        if rig.source.installation().major() < 18 {
            expect(&found, "replication_origins", "error", "shard 0");
        }

        // A standby that follows nobody.
        let signal = rig.shards[1].data().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        restart(&rig.shards[1], Stop::Fast)?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "standby", "error", "shard 1");

        tokio::task::block_in_place(|| rig.shards[1].stop(Stop::Fast))?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "connection", "error", "shard 1");

        preload_again(&rig).await
    })
    .await;
}

/// The hint for a library that isn't preloaded keeps those that are.
async fn preload_again(rig: &Rig) -> Result<()> {
    rig.source.set(&[("shared_preload_libraries", "plpgsql")])?;
    restart(&rig.source, Stop::Fast)?;
    let session = rig.source.connect().await?;
    let found = preflight(&session, WHOLE, "{}").await?;
    expect(&found, "library_preloaded", "error", "shared_preload_libraries");
    session.execute(pasted(&found, "library_preloaded", "ALTER SYSTEM")).await?;
    restart(&rig.source, Stop::Fast)?;
    let session = rig.source.connect().await?;
    let loaded: String = session.one("SHOW shared_preload_libraries").await?;
    assert_eq!(loaded, "plpgsql, reshard");
    let found = preflight(&session, WHOLE, "{}").await?;
    assert!(found.iter().all(|f| f.check != "library_preloaded"), "{found:?}");
    Ok(())
}

/// Clusters that are declared wrongly.
async fn clusters(rig: &Rig, session: &Session) -> Result<()> {
    let declare = |cluster: &str, shard: usize, conninfo: &str| {
        format!("SELECT reshard_add_shard('{cluster}', {shard}, {})", literal(conninfo))
    };
    let (first, second) = (rig.shards[0].conninfo(), rig.shards[1].conninfo());
    let key = |cluster: &str| format!("SELECT reshard_set_sharding_key('{cluster}', '{KEY}')");

    // A node that isn't this one.
    session.execute(&declare("other", 0, &second)).await?;
    let found = preflight(session, ("other", DESTINATION, PUBLICATION), "{}").await?;
    expect(&found, "local_source", "error", "other");
    expect(&found, "distinct_databases", "error", "same database");

    // Keys: none at all, of a table that isn't published, of a column that is gone.
    session.execute(&declare("keyless", 0, &first)).await?;
    session.execute(&declare("keyless", 1, &second)).await?;
    let found = preflight(session, (SOURCE, "keyless", PUBLICATION), "{}").await?;
    expect(&found, "sharding_key_missing", "error", "keyless");
    session.execute("CREATE TABLE lonely (k bigint, x bigint)").await?;
    session
        .execute("SELECT reshard_set_sharding_key('keyless', 'k', relation => 'lonely')")
        .await?;
    session.execute("CREATE PUBLICATION orders_alone FOR TABLE orders").await?;
    let found = preflight(session, (SOURCE, "keyless", "orders_alone"), "{}").await?;
    expect(&found, "sharding_key_table", "error", "lonely");
    session.execute("ALTER TABLE lonely DROP COLUMN k").await?;
    let found = preflight(session, (SOURCE, "keyless", PUBLICATION), "{}").await?;
    expect(&found, "sharding_key_column", "error", "lonely");
    session
        .execute("SELECT reshard_drop_sharding_key('keyless', 'k', relation => 'lonely')")
        .await?;
    let found = preflight(session, (SOURCE, "keyless", PUBLICATION), "{}").await?;
    expect(&found, "sharding_key_missing", "error", "keyless");
    session.execute("DROP PUBLICATION orders_alone; DROP TABLE lonely").await?;

    mapped(session, (&first, &second)).await?;

    // Another encoding, another locale.
    rig.shards[1]
        .connect_as("postgres", "postgres")
        .await?
        .execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        .await?;
    session.execute(&declare("latin", 0, &first)).await?;
    session.execute(&declare("latin", 1, &second.replace("dbname=app", "dbname=latin"))).await?;
    session.execute(&key("latin")).await?;
    let found = preflight(session, (SOURCE, "latin", PUBLICATION), "{}").await?;
    expect(&found, "encoding", "error", "LATIN1");
    expect(&found, "locale", "warning", "shard 1");

    let there = rig.shards[1].connect_as("postgres", "latin").await?;
    let error = there.execute("CREATE EXTENSION reshard").await.unwrap_err();
    let text = error.sql().unwrap().full_text();
    assert!(text.contains("encoding LATIN1 of database \"latin\" is not supported"), "{text}");

    no_superuser(rig, session).await?;
    silent(session).await?;

    // We get there, but libpq, which subscriptions use, doesn't.
    session.execute(&declare("deaf", 0, &format!("{first} gssencmode=require"))).await?;
    let found = preflight(session, (SOURCE, "deaf", PUBLICATION), "{}").await?;
    expect(&found, "reachable_from_source", "error", "deaf");
    session.execute(&format!("SELECT reshard_drop_shard('{SOURCE}', 0)")).await?;
    let node = format!("{} gssencmode=require", rig.source.conninfo());
    session.execute(&declare(SOURCE, 0, &node)).await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "reachable_from_shards", "error", "shard 1");
    for finding in &found {
        assert!(!finding.text.contains("4711"), "the password is shown: {finding:?}");
    }
    session.execute(&format!("SELECT reshard_drop_shard('{SOURCE}', 0)")).await?;
    declare_shards(rig, session).await
}

/// A role that is no superuser: on a server with the library, on one without, and on a
/// shard that was declared before.
async fn no_superuser(rig: &Rig, session: &Session) -> Result<()> {
    let declare = |conninfo: &str| {
        let (server, _) = conninfo.split_once(" user=").unwrap_or_default();
        let mover = literal(&format!("{server} user=mover password=weak-4712"));
        format!("SELECT reshard_add_shard('weak', 0, {mover})")
    };
    for server in [&rig.source, &rig.shards[1]] {
        server.execute("CREATE ROLE mover LOGIN PASSWORD 'weak-4712'").await?;
        let error = session.execute(&declare(&server.conninfo())).await.unwrap_err();
        let text = error.sql().unwrap().full_text();
        assert_eq!(error.sqlstate(), Some("42501"), "{text}");
        assert!(text.contains("ALTER ROLE \"mover\" SUPERUSER"), "{text}");
    }
    rig.shards[1].execute("ALTER ROLE mover SUPERUSER").await?;
    session.execute(&declare(&rig.shards[1].conninfo())).await?;
    rig.shards[1].execute("ALTER ROLE mover NOSUPERUSER").await?;
    let found = preflight(session, (SOURCE, "weak", PUBLICATION), "{}").await?;
    expect(&found, "privilege", "error", "mover");
    Ok(())
}

/// A server that takes connections, and says nothing.
async fn silent(session: &Session) -> Result<()> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let declare = format!(
        "SELECT reshard_add_shard('silent', 0, 'host=127.0.0.1 port={port} dbname=app user=postgres')"
    );
    let answer = tokio::time::timeout(STEP, session.execute(&declare)).await;
    let error = answer.expect("no end of the wait").unwrap_err();
    let text = error.sql().unwrap().full_text();
    assert_eq!(error.sqlstate(), Some("08001"), "{text}");
    assert!(text.contains("127.0.0.1") && text.contains(&port.to_string()), "{text}");
    assert!(error.sql().unwrap().hint.is_some(), "{text}");
    Ok(())
}

/// Keys that are mapped to shards: none at all, then some, and to one shard alone.
async fn mapped(session: &Session, (first, second): (&str, &str)) -> Result<()> {
    for (shard, conninfo) in [first, second].iter().enumerate() {
        session
            .execute(&format!("SELECT reshard_add_shard('mapped', {shard}, {})", literal(conninfo)))
            .await?;
    }
    session.execute(&format!("SELECT reshard_set_sharding_key('mapped', '{KEY}', 'list')")).await?;
    let found = preflight(session, (SOURCE, "mapped", PUBLICATION), "{}").await?;
    expect(&found, "sharding_key_mapping", "error", KEY);
    session.execute(&format!("SELECT reshard_map_values('mapped', '{KEY}', '{{-1}}', 0)")).await?;
    let found = preflight(session, (SOURCE, "mapped", PUBLICATION), "{}").await?;
    expect(&found, "sharding_key_rows", "error", "accounts");
    expect(&found, "sharding_key_shards", "warning", "shard 1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_has_been_open_for_long_is_named() {
    run_within(RigOptions::new(1), Duration::from_secs(200), |rig| async move {
        application(&rig, 10).await?;
        let sleeper = rig.source.connect().await?;
        sleeper.execute("BEGIN; INSERT INTO settings VALUES (-1, 0, 'x')").await?;
        let session = rig.source.connect().await?;
        let deadline = Duration::from_secs(90);
        wait_until(deadline, "the transaction to be named", || async {
            let found = preflight(&session, WHOLE, "{}").await?;
            Ok(found.iter().any(|f| f.check == "long_transactions" && f.severity == "warning"))
        })
        .await?;
        sleeper.execute("ROLLBACK").await
    })
    .await;
}
