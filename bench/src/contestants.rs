//! Everyone who can copy the tables. Each finds empty tables without keys.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reshard_scenarios::migration::{Migration, PUBLICATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Result, Server};
use tokio::task::JoinSet;

use crate::contest::Setup;
use crate::data::{tables_of, KEY};
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

/// A pipe of two psql from each shard of the source to each shard, all at once, one table
/// after the other.
pub async fn psql_pipes(setup: &Setup) -> Result<()> {
    let rig = setup.rig();
    let psql = rig.source.installation().program("psql");
    let psql = psql.display();
    let mut pipes = JoinSet::new();
    for node in rig.sources() {
        let from = shell::address(node);
        for (number, shard) in setup.shards().iter().enumerate() {
            let to = shell::address(shard);
            let line: Vec<String> = tables_of(rig, node, setup.tables())
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

/// Native subscriptions that copy, one of each shard to each shard of the source, with
/// the placement as row filter.
pub async fn subscriptions(setup: &Setup) -> Result<()> {
    publish(setup).await?;
    let nodes = setup.rig().sources();
    let copies: usize =
        nodes.iter().map(|node| tables_of(setup.rig(), node, setup.tables()).count()).sum();
    let mut subscribers = JoinSet::new();
    for (number, shard) in setup.shards().iter().enumerate() {
        let session = shard.connect().await?;
        let addresses: Vec<String> = nodes.iter().map(|node| shell::address(node)).collect();
        subscribers.spawn(async move {
            let mut enable = String::new();
            for (node, address) in addresses.iter().enumerate() {
                let name = subscription(node, number);
                session
                    .execute(&format!(
                        "CREATE SUBSCRIPTION {name} CONNECTION '{address}' PUBLICATION bench_{number} WITH (enabled = false)"
                    ))
                    .await?;
                enable += &format!("ALTER SUBSCRIPTION {name} ENABLE;");
            }
            // In one transaction: once it has started workers, the launcher of version 15
            // starts no others for wal_retrieve_retry_interval.
            session.execute(&enable).await?;
            wait_until(DEADLINE, "a shard's subscriptions to have copied their tables", || async {
                let copied: i64 = session
                    .one("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate IN ('s', 'r')")
                    .await?;
                Ok(copied == copies as i64)
            })
            .await
        });
    }
    all(subscribers).await
}

/// A publication for each shard, on every shard of the source.
async fn publish(setup: &Setup) -> Result<()> {
    for node in setup.rig().sources() {
        let session = node.connect().await?;
        for number in 0..setup.shards().len() {
            let tables: Vec<String> = tables_of(setup.rig(), node, setup.tables())
                .map(|(table, sharded)| {
                    let filter = filter(setup, *sharded, number).replace(" WHERE ", "");
                    let filter =
                        if filter.is_empty() { filter } else { format!(" WHERE ({filter})") };
                    format!("TABLE {table}{filter}")
                })
                .collect();
            session
                .execute(&format!(
                    "CREATE PUBLICATION bench_{number} FOR {} WITH (publish = 'insert')",
                    tables.join(", ")
                ))
                .await?;
        }
    }
    Ok(())
}

/// Name of a shard's subscription to a shard of the source, and of its slot there.
fn subscription(node: usize, shard: usize) -> String {
    format!("bench_{node}_{shard}")
}

/// Ends what [`subscriptions`] left.
pub async fn end_subscriptions(setup: &Setup) -> Result<()> {
    let nodes = setup.rig().sources();
    for (number, shard) in setup.shards().iter().enumerate() {
        for node in 0..nodes.len() {
            shard.execute(&format!("DROP SUBSCRIPTION {}", subscription(node, number))).await?;
        }
    }
    for node in nodes {
        for number in 0..setup.shards().len() {
            node.execute(&format!("DROP PUBLICATION bench_{number}")).await?;
        }
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
    let rig = setup.rig();
    for (table, sharded) in setup.tables() {
        let found = rows(table, shards).await?;
        let expected = match sharded {
            true => rows(table, rig.sources()).await?,
            false => rows(table, [&rig.source]).await? * shards.len() as i64,
        };
        if found != expected {
            return Err(Error::Unexpected(format!("{table}: {found} rows instead of {expected}")));
        }
    }
    Ok(())
}

async fn rows<'s>(table: &str, servers: impl IntoIterator<Item = &'s Server>) -> Result<i64> {
    let mut rows = 0;
    for server in servers {
        let session = server.connect().await?;
        rows += session.one::<i64>(&format!("SELECT count(*) FROM {table}")).await?;
    }
    Ok(rows)
}
