//! A password is seen nowhere: not in views, errors, logs, nor in pg_stat_activity.

use reshard_scenarios::cluster::PASSWORD;
use reshard_scenarios::migration::{DESTINATION, SOURCE};
use reshard_scenarios::oracle::compare_when_quiet;
use reshard_scenarios::session::literal;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server};

use super::common::{application, run, KEY, STEP};

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
        seen_in_no_log(&rig);
        Ok(())
    })
    .await;
}

fn seen_in_no_log(rig: &Rig) {
    for server in rig.servers() {
        let line = server.log().lines().find(|line| line.contains(PASSWORD)).map(str::to_owned);
        assert_eq!(line, None, "log of {}", server.name());
    }
}

/// Gives the role that shards are declared with another password; the connection string
/// with it. It begins with the old one, and so is looked for wherever that is.
async fn change_password(server: &Server, ending: &str) -> Result<String> {
    let session = server.connect().await?;
    session.execute("SET log_statement = 'none'").await?;
    session.execute(&format!("ALTER ROLE postgres PASSWORD '{PASSWORD}{ending}'")).await?;
    Ok(format!("{}{ending}", server.conninfo()))
}

/// Declares a shard as it is to be reached now; what was said about it.
async fn declare_anew(rig: &Rig, cluster: &str, shard: u32, conninfo: &str) -> Result<String> {
    let session = rig.source.connect().await?;
    // The log of one that is refused would have the statement.
    session.execute("SET log_min_error_statement = 'panic'").await?;
    let call = format!("SELECT reshard_add_shard('{cluster}', {shard}, {})", literal(conninfo));
    session.execute(&call).await?;
    Ok(session.take_notices().join("; "))
}

/// Ends all sessions that were let in with an old password.
async fn end_sessions(server: &Server) -> Result<()> {
    server
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE backend_type IN ('client backend', 'walsender') AND application_name LIKE 'reshard%'",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_goes_on_with_passwords_that_were_changed() {
    let options = RigOptions::new(2).source("log_statement", "ddl").shard("log_statement", "ddl");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;

        // Of the source and one shard: what runs ends, nobody is let in again.
        let source = change_password(&rig.source, "-second").await?;
        let shard = change_password(&rig.shards[1], "-second").await?;
        for server in [&rig.source, &rig.shards[1]] {
            end_sessions(server).await?;
        }
        wait_until(STEP, "the task to say that logins are refused", || async {
            let error = migration.state().await?.error.unwrap_or_default();
            Ok(error.contains("password authentication failed"))
        })
        .await?;
        rig.source.execute("UPDATE orders SET stamp = stamp || ' again'").await?;

        // Another database is none of the migration's.
        let Err(Error::Sql(other)) =
            declare_anew(&rig, DESTINATION, 1, &rig.shards[0].conninfo()).await
        else {
            return Err(Error::Unexpected("another shard was taken for shard 1".to_owned()));
        };
        assert_eq!(other.code.as_deref(), Some("55000"), "{other}");
        assert!(other.full_text().contains("another database"), "{other}");

        for (cluster, number, conninfo) in [(SOURCE, 0, &source), (DESTINATION, 1, &shard)] {
            let said = declare_anew(&rig, cluster, number, conninfo).await?;
            assert!(said.contains("is replaced"), "{said}");
        }
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.cutover(STEP).await?;
        for shard in &rig.shards {
            shard.execute("UPDATE orders SET stamp = stamp || ' there'").await?;
        }
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.rollback(STEP).await?;
        rig.source.execute("UPDATE orders SET stamp = stamp || ' here'").await?;
        compare_when_quiet(&rig, KEY, STEP).await?;

        // While the task watches, its subscriptions follow at once, those that wait too.
        let shard = change_password(&rig.shards[0], "-third").await?;
        declare_anew(&rig, DESTINATION, 0, &shard).await?;
        wait_until(STEP, "the way back to use the new password", || async {
            let old: i64 = rig
                .source
                .connect()
                .await?
                .one(
                    "SELECT count(*) FROM pg_subscription
                      WHERE subname ~ '^reshard_.*_d0$' AND subconninfo NOT LIKE '%-third%'",
                )
                .await?;
            Ok(old == 0)
        })
        .await?;
        end_sessions(&rig.shards[0]).await?;
        migration.cutover(STEP).await?;
        rig.shards[0].execute("UPDATE orders SET stamp = stamp || ' there'").await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        migration.complete(STEP).await?;
        assert_eq!(seen_in_activity(&rig).await?, Vec::<String>::new());
        seen_in_no_log(&rig);
        Ok(())
    })
    .await;
}
