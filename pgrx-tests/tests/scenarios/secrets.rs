//! A password is seen nowhere: not in views, errors, logs, nor in pg_stat_activity.

use reshard_scenarios::cluster::PASSWORD;
use reshard_scenarios::{Migration, Result, Rig, RigOptions};

use super::common::{application, run, STEP};

/// Every view and table of the extension, but for the one that keeps secrets for
/// workers and that only superusers read.
const RELATIONS: &str =
    "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'reshard'::regnamespace
    AND relkind IN ('r', 'v', 'm') AND relname <> 'declared_shard'";

async fn seen_in_activity(rig: &Rig) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for server in rig.servers() {
        let query = format!(
            "SELECT backend_type || ' ' || coalesce(application_name, '') || ': ' || query FROM pg_stat_activity
             WHERE coalesce(application_name, '') <> 'harness' AND (query || coalesce(application_name, '')) LIKE '%{PASSWORD}%'"
        );
        let found = server.connect().await?.column(&query).await?;
        seen.extend(found.into_iter().map(|text| format!("{}: {text}", server.name())));
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_seen_nowhere_in_a_whole_run_with_an_error_in_it() {
    let options = RigOptions::new(2).source("log_statement", "ddl").shard("log_statement", "ddl");
    run(options, |rig| async move {
        application(&rig, 2_000).await?;
        let stop = tokio::sync::watch::channel(false);
        let watcher = {
            let (rig, stopped) = (rig.clone(), stop.1);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !*stopped.borrow() {
                    seen.extend(seen_in_activity(&rig).await?);
                }
                Result::Ok(seen)
            })
        };
        // An error of a shard in the middle: its session's end.
        let migration = Migration::start(&rig, false).await?;
        rig.shards[0]
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reshard%'")
            .await?;
        if migration.watch(&["replicating", "failed"], STEP).await.is_err() {
            migration.verb("reshard_resume").await?;
        }
        if migration.state().await?.status == "failed" {
            migration.verb("reshard_resume").await?;
        }
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        migration.rollback(STEP).await?;
        stop.0.send_replace(true);
        assert_eq!(watcher.await.unwrap()?, Vec::<String>::new());

        let session = rig.source.connect().await?;
        for relation in session.column(RELATIONS).await? {
            let shown = session.column(&format!("SELECT t::text FROM {relation} t")).await?;
            assert!(!shown.iter().any(|row| row.contains(PASSWORD)), "{relation} shows the password");
        }
        let options: i64 = session
            .one(&format!("SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%{PASSWORD}%'"))
            .await?;
        assert_eq!(options, 0, "pg_foreign_server can be read by all");
        for server in rig.servers() {
            let line = server.log().lines().find(|line| line.contains(PASSWORD)).map(str::to_owned);
            assert_eq!(line, None, "log of {}", server.name());
        }
        Ok(())
    })
    .await;
}
