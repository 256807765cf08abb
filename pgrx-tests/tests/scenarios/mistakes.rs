//! Mistakes a DBA makes: an error that tells what to do, before anything is touched.
//!
//! It doesn't matter here whether the function itself raises the error or the
//! task's preflight does: the DBA gets it from `reshard_start` or `reshard_wait`.

use std::sync::Arc;
use std::time::Duration;

use reshard_scenarios::load::schema;
use reshard_scenarios::migration::{declare, declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::{Error, Result, Rig, RigOptions, SqlError, Stop};

use super::common::{application, restart, run, with_extension, KEY, STEP};

/// The error of `statement`, or of the task that it started.
async fn error_of(rig: &Rig, statement: &str, role: &str) -> Result<SqlError> {
    let session = rig.source.connect_as(role, "app").await?;
    let outcome = async {
        let id: i64 = session.one(statement).await?;
        session.execute(&format!("SELECT reshard_wait({id}, 'replicating', interval '60 s')")).await
    };
    match tokio::time::timeout(Duration::from_secs(90), outcome).await {
        Ok(Err(Error::Sql(error))) => Ok(*error),
        Ok(Err(other)) => Err(other),
        Ok(Ok(())) => Err(Error::Unexpected(format!("no error from: {statement}"))),
        Err(_) => Err(Error::Unexpected(format!("no end of: {statement}"))),
    }
}

/// A mistake: what is typed, the SQLSTATEs that fit, what the error must name.
struct Mistake<'a> {
    statement: &'a str,
    codes: &'a [&'a str],
    names: &'a [&'a str],
}

const START: &str = "SELECT reshard_start('prod', 'prod_sharded', 'all_tables', false)";

/// Makes the mistake and checks the error, and that no server has changed.
async fn refused(rig: &Rig, mistake: &Mistake<'_>) -> Result<()> {
    refused_as(rig, mistake, "postgres").await
}

async fn refused_as(rig: &Rig, mistake: &Mistake<'_>, role: &str) -> Result<()> {
    let before = Footprint::of_rig(rig).await?;
    let error = error_of(rig, mistake.statement, role).await?;
    println!("{error}");
    let code = error.code.clone().unwrap_or_default();
    assert!(
        mistake.codes.contains(&code.as_str()),
        "SQLSTATE {code}, expected {:?}: {error}",
        mistake.codes
    );
    for name in mistake.names {
        assert!(error.full_text().contains(name), "\"{name}\" is not named: {error}");
    }
    assert!(error.hint.is_some(), "no hint: {error}");
    let after = Footprint::of_rig(rig).await?;
    for ((server, before), after) in rig.servers().zip(&before).zip(&after) {
        assert_eq!(after.since(before), Vec::<String>::new(), "{} was touched", server.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_that_is_not_logical_is_named() {
    run(RigOptions::new(1).source("wal_level", "replica"), |rig| async move {
        application(&rig, 10).await?;
        refused(
            &rig,
            &Mistake { statement: START, codes: &["55000"], names: &["wal_level", "logical"] },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_of_a_shard_is_named_with_its_shard() {
    run(RigOptions::new(2).shard("wal_level", "replica"), |rig| async move {
        application(&rig, 10).await?;
        refused(
            &rig,
            &Mistake {
                statement: START,
                codes: &["55000"],
                names: &["wal_level", "logical", "prod_sharded"],
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_is_not_preloaded_is_named() {
    with_extension(1, |rig| async move {
        application(&rig, 10).await?;
        rig.source.set(&[("shared_preload_libraries", "")])?;
        restart(&rig.source, Stop::Fast)?;
        refused(
            &rig,
            &Mistake {
                statement: START,
                codes: &["55000"],
                names: &["shared_preload_libraries", "reshard"],
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_and_gaps_are_named() {
    with_extension(3, |rig| async move {
        application(&rig, 10).await?;
        for (statement, name) in [
            ("SELECT reshard_start('prdo', 'prod_sharded', 'all_tables')", "prdo"),
            ("SELECT reshard_start('prod', 'elsewhere', 'all_tables')", "elsewhere"),
            ("SELECT reshard_start('prod', 'prod_sharded', 'al_tables')", "al_tables"),
        ] {
            refused(&rig, &Mistake { statement, codes: &["42704"], names: &[name] }).await?;
        }
        rig.source.execute(&format!("SELECT reshard_drop_shard('{DESTINATION}', 1)")).await?;
        refused(
            &rig,
            &Mistake {
                statement: START,
                codes: &["55000", "22023", "42704"],
                names: &["shard 1", DESTINATION],
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_is_not_empty_is_named_with_its_table() {
    with_extension(2, |rig| async move {
        application(&rig, 10).await?;
        rig.shards[1].execute("CREATE TABLE orders (id int)").await?;
        refused(
            &rig,
            &Mistake {
                statement: START,
                codes: &["55000", "42710"],
                names: &["orders", "shard 1"],
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_no_published_table_has_or_the_publication_leaves_out_is_named() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        schema::create(&session).await?;
        declare(&rig, KEY).await?;
        session
            .execute("CREATE PUBLICATION without_key FOR TABLE events (id, owner, stamp), settings")
            .await?;
        let statement = "SELECT reshard_start('prod', 'prod_sharded', 'without_key', false)";
        refused(
            &rig,
            &Mistake {
                statement,
                codes: &["55000", "42703", "22023"],
                names: &["events", KEY, "without_key"],
            },
        )
        .await?;
        session.execute("CREATE PUBLICATION omni_only FOR TABLE settings").await?;
        let statement = "SELECT reshard_start('prod', 'prod_sharded', 'omni_only', false)";
        refused(
            &rig,
            &Mistake { statement, codes: &["55000", "42703", "22023"], names: &[KEY, "omni_only"] },
        )
        .await
    })
    .await;
}

async fn too_few(options: RigOptions, name: &'static str, side: &'static str) {
    run(options, move |rig| async move {
        application(&rig, 10).await?;
        let mistake =
            Mistake { statement: START, codes: &["53400", "53000", "55000"], names: &[name, side] };
        refused(&rig, &mistake).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_slots_on_the_source_are_named() {
    too_few(
        RigOptions::new(3).source("max_replication_slots", "2"),
        "max_replication_slots",
        SOURCE,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_walsenders_on_the_source_are_named() {
    too_few(RigOptions::new(3).source("max_wal_senders", "2"), "max_wal_senders", SOURCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_workers_on_the_source_are_named() {
    too_few(
        RigOptions::new(3)
            .source("max_worker_processes", "3")
            .source("max_logical_replication_workers", "1"),
        "max_worker_processes",
        SOURCE,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_apply_workers_on_the_source_are_named_before_a_rollback_needs_them() {
    too_few(
        RigOptions::new(3).source("max_logical_replication_workers", "2"),
        "max_logical_replication_workers",
        SOURCE,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_slots_on_a_shard_are_named() {
    too_few(
        RigOptions::new(2).shard("max_replication_slots", "0"),
        "max_replication_slots",
        DESTINATION,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_walsenders_on_a_shard_are_named() {
    too_few(RigOptions::new(2).shard("max_wal_senders", "0"), "max_wal_senders", DESTINATION).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_apply_workers_on_a_shard_are_named() {
    too_few(
        RigOptions::new(2).shard("max_logical_replication_workers", "0"),
        "max_logical_replication_workers",
        DESTINATION,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_privileges_are_named_here_and_on_a_shard() {
    with_extension(2, |rig| async move {
        application(&rig, 10).await?;
        rig.source.execute("CREATE ROLE intern LOGIN").await?;
        refused_as(&rig, &Mistake { statement: START, codes: &["42501"], names: &[] }, "intern")
            .await?;
        let code = rig.source.connect_as("intern", "app").await?;
        for statement in [
            "SELECT reshard_add_shard('x', 0, 'host=127.0.0.1')",
            "SELECT * FROM reshard.declared_shard",
        ] {
            assert_eq!(
                code.execute(statement).await.unwrap_err().sqlstate(),
                Some("42501"),
                "{statement}"
            );
        }
        rig.shards[1].execute("CREATE ROLE mover LOGIN PASSWORD 'weak-4712'").await?;
        let session = rig.source.connect().await?;
        session.execute(&format!("SELECT reshard_drop_shard('{DESTINATION}', 1)")).await?;
        let conninfo = format!(
            "host=127.0.0.1 port={} dbname=app user=mover password=weak-4712",
            rig.shards[1].port()
        );
        let declared = session
            .execute(&format!("SELECT reshard_add_shard('{DESTINATION}', 1, '{conninfo}')"))
            .await;
        match declared {
            // Already found when the shard was declared: as good, or better.
            Err(error) => assert_eq!(error.sqlstate(), Some("42501"), "{error}"),
            Ok(()) => {
                refused(
                    &rig,
                    &Mistake { statement: START, codes: &["42501"], names: &["mover", "shard 1"] },
                )
                .await?
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_host_password_or_database_is_an_error_when_the_shard_is_declared() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        session.execute("CREATE EXTENSION reshard").await?;
        let port = rig.shards[0].port();
        for (conninfo, codes) in [
            (format!("host=127.0.0.1 port={port} dbname=app user=postgres password=not-this-one-4713"), &["28P01", "08001", "08006"][..]),
            (format!("host=127.0.0.1 port={port} dbname=missing user=postgres password={}", reshard_scenarios::cluster::PASSWORD), &["3D000", "08001", "08006"]),
            ("host=127.0.0.1 port=1 dbname=app user=postgres password=not-this-one-4713".to_owned(), &["08001", "08006"]),
            ("port=5 nonsense".to_owned(), &["22023", "08001"]),
        ] {
            let error = session.execute(&format!("SELECT reshard_add_shard('prod_sharded', 0, '{conninfo}')")).await.unwrap_err();
            println!("{error}");
            let code = error.sqlstate().unwrap_or_default();
            assert!(codes.contains(&code), "SQLSTATE {code}: {error}");
            let text = error.sql().unwrap().full_text();
            assert!(!text.contains("4713") && !text.contains("4711"), "the password is shown: {text}");
        }
        let declared: i64 = session.one("SELECT count(*) FROM reshard.shards").await?;
        assert_eq!(declared, 0);
        declare_shards(&rig, &session).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_finds_all_mistakes_at_once_and_touches_nothing() {
    let options =
        RigOptions::new(2).source("max_replication_slots", "1").shard("max_wal_senders", "0");
    run(options, |rig: Arc<Rig>| async move {
        application(&rig, 10).await?;
        rig.shards[0].execute("CREATE TABLE orders (id int)").await?;
        let before = Footprint::of_rig(&rig).await?;
        let session = rig.source.connect().await?;
        let rows = tokio::time::timeout(
            STEP,
            session.rows(&format!(
                "SELECT check_name, object, severity, detail, hint FROM reshard_preflight('{SOURCE}', '{DESTINATION}', '{PUBLICATION}') WHERE severity = 'error'"
            )),
        )
        .await
        .unwrap()?;
        let all = format!("{rows:?}");
        for name in ["max_replication_slots", "max_wal_senders", "orders"] {
            assert!(all.contains(name), "{name}: {all}");
        }
        let after = Footprint::of_rig(&rig).await?;
        assert_eq!(after, before);
        Ok(())
    })
    .await;
}
