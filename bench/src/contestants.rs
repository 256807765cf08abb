//! Everyone who can copy the tables. Each finds empty tables without keys.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reshard_scenarios::migration::{Migration, PUBLICATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Result, Server};
use tokio::task::JoinSet;

use crate::contest::Setup;
use crate::data::KEY;
use crate::shell;

/// The longest that any of them may take.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often the extension's copy is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The floor: one session a shard loads files that were split before, from local
/// disk, all shards at once. No copy can be faster.
pub async fn floor(setup: &Setup, folder: &Path) -> Result<()> {
    let mut sessions = JoinSet::new();
    for (number, shard) in setup.shards().iter().enumerate() {
        let mut psql = shell::psql(shard);
        for (table, _) in setup.tables() {
            let file = file(folder, table, number);
            psql.arg("-c").arg(format!("COPY {table} FROM '{}' (FORMAT binary)", file.display()));
        }
        sessions.spawn(shell::run(psql));
    }
    all(sessions).await
}

/// Writes the floor's files from what the shards hold.
pub async fn split(setup: &Setup, folder: &Path) -> Result<()> {
    for (number, shard) in setup.shards().iter().enumerate() {
        for (table, _) in setup.tables() {
            let file = file(folder, table, number);
            let copy = format!("COPY {table} TO '{}' (FORMAT binary)", file.display());
            shard.execute(&copy).await?;
        }
    }
    Ok(())
}

fn file(folder: &Path, table: &str, shard: usize) -> PathBuf {
    folder.join(format!("{table}.{shard}"))
}

/// This extension, from the call to the last row committed: checks, publications,
/// slots and snapshot are part of it. The server's own clock says when it ended, so
/// that looking need not be often.
pub async fn reshard(setup: &Setup) -> Result<(Migration, Duration)> {
    let session = setup.rig().source.connect().await?;
    let begun: f64 = session.one("SELECT extract(epoch FROM clock_timestamp())::float8").await?;
    let migration = Migration::call(
        setup.rig(),
        &format!("SELECT reshard_copy_data('{SOURCE}', '{}', '{PUBLICATION}')", setup.cluster()),
    )
    .await?;
    let ended = format!(
        "SELECT CASE WHEN t.status = 'failed' THEN -1
                     WHEN count(*) = count(c.finished_at) THEN extract(epoch FROM max(c.finished_at))
                     ELSE 0 END::float8
           FROM reshard.task AS t LEFT JOIN reshard.copy_table AS c ON c.task_id = t.id
          WHERE t.id = {} GROUP BY t.id",
        migration.id
    );
    let deadline = Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let ended: f64 = session.one(&ended).await?;
        if ended > 0.0 {
            return Ok((migration, Duration::from_secs_f64(ended - begun)));
        }
        if ended < 0.0 || Instant::now() > deadline {
            let state = migration.state().await?;
            return Err(Error::Unexpected(format!("the copy did not end: {state:?}")));
        }
    }
}

/// A pipe of two psql for each shard, all shards at once, one table after the other.
pub async fn psql_pipes(setup: &Setup) -> Result<()> {
    let psql = setup.rig().source.installation().program("psql");
    let psql = psql.display();
    let from = shell::address(&setup.rig().source);
    let mut pipes = JoinSet::new();
    for (number, shard) in setup.shards().iter().enumerate() {
        let to = shell::address(shard);
        let line: Vec<String> = setup
            .tables()
            .iter()
            .map(|(table, sharded)| {
                let filter = filter(setup, *sharded, number);
                format!(
                    "{psql} -Xq -v ON_ERROR_STOP=1 -d '{from}' -c \"COPY (SELECT * FROM {table}{filter}) TO STDOUT (FORMAT binary)\" \
                     | {psql} -Xq -v ON_ERROR_STOP=1 -d '{to}' -c \"COPY {table} FROM STDIN (FORMAT binary)\""
                )
            })
            .collect();
        let line = line.join(" && ");
        pipes.spawn(async move { shell::bash(&line).await });
    }
    all(pipes).await
}

/// pgcopydb with four jobs to one server, which gets all rows.
pub async fn pgcopydb(setup: &Setup, target: &Server, folder: &Path) -> Result<()> {
    let mut command = tokio::process::Command::new("pgcopydb");
    command
        .args(["copy", "table-data", "--table-jobs", "4", "--source"])
        .arg(shell::address(&setup.rig().source))
        .arg("--target")
        .arg(shell::address(target))
        .arg("--dir")
        .arg(folder)
        .kill_on_drop(true);
    let outcome = shell::run(command).await.map(drop);
    drop(std::fs::remove_dir_all(folder));
    outcome
}

/// Native subscriptions that copy, one a shard, with the placement as row filter.
pub async fn subscriptions(setup: &Setup) -> Result<()> {
    let source = setup.rig().source.connect().await?;
    for number in 0..setup.shards().len() {
        let tables: Vec<String> = setup
            .tables()
            .iter()
            .map(|(table, sharded)| {
                let filter = filter(setup, *sharded, number).replace(" WHERE ", "");
                let filter = if filter.is_empty() { filter } else { format!(" WHERE ({filter})") };
                format!("TABLE {table}{filter}")
            })
            .collect();
        source
            .execute(&format!(
                "CREATE PUBLICATION bench_{number} FOR {} WITH (publish = 'insert')",
                tables.join(", ")
            ))
            .await?;
    }
    let mut subscribers = JoinSet::new();
    for (number, shard) in setup.shards().iter().enumerate() {
        let session = shard.connect().await?;
        let connection = shell::address(&setup.rig().source);
        let tables = setup.tables().len();
        subscribers.spawn(async move {
            session
                .execute(&format!(
                    "CREATE SUBSCRIPTION bench_{number} CONNECTION '{connection}' PUBLICATION bench_{number}"
                ))
                .await?;
            wait_until(DEADLINE, "a subscription's tables to be copied", || async {
                let copied: i64 = session
                    .one("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate IN ('s', 'r')")
                    .await?;
                Ok(copied == tables as i64)
            })
            .await
        });
    }
    all(subscribers).await
}

/// Ends what [`subscriptions`] left.
pub async fn end_subscriptions(setup: &Setup) -> Result<()> {
    for (number, shard) in setup.shards().iter().enumerate() {
        shard.execute(&format!("DROP SUBSCRIPTION bench_{number}")).await?;
    }
    for number in 0..setup.shards().len() {
        setup.rig().source.execute(&format!("DROP PUBLICATION bench_{number}")).await?;
    }
    Ok(())
}

/// The rows of a shard: the same placement for everyone.
fn filter(setup: &Setup, sharded: bool, number: usize) -> String {
    match sharded {
        true => format!(
            " WHERE satisfies_hash_partition('{}'::regclass, {}, {number}, {KEY})",
            Setup::PLACEMENT,
            setup.shards().len()
        ),
        false => String::new(),
    }
}

async fn all<T: 'static>(mut running: JoinSet<Result<T>>) -> Result<()> {
    while let Some(ended) = running.join_next().await {
        ended.map_err(|e| Error::Unexpected(format!("a contestant broke: {e}")))??;
    }
    Ok(())
}

/// Rows of every table over the shards, to see that all have done the same work.
pub async fn counts(setup: &Setup, shards: &[Server]) -> Result<()> {
    for (table, sharded) in setup.tables() {
        let mut rows = 0;
        for shard in shards {
            rows +=
                shard.connect().await?.one::<i64>(&format!("SELECT count(*) FROM {table}")).await?;
        }
        let expected: i64 = setup
            .rig()
            .source
            .connect()
            .await?
            .one(&format!("SELECT count(*) FROM {table}"))
            .await?;
        let expected = if *sharded { expected } else { expected * shards.len() as i64 };
        if rows != expected {
            return Err(Error::Unexpected(format!("{table}: {rows} rows instead of {expected}")));
        }
    }
    Ok(())
}
