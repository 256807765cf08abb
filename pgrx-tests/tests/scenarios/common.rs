//! What several scenarios need: short ways to run one, the application, checks
//! that belong to the end of each.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reshard_scenarios::load::{schema, Active, Load, Outcome};
use reshard_scenarios::migration::{declare, PUBLICATION};
use reshard_scenarios::oracle::{check_record, compare_when_quiet, helper_objects};
use reshard_scenarios::{scenario, Error, Migration, Result, Rig, RigOptions, Server, Stop};

/// Longest wait for one step of a migration.
pub const STEP: Duration = Duration::from_secs(90);
/// The sharding key of the application.
pub const KEY: &str = "tenant_id";

/// Runs a scenario on plain PostgreSQL servers.
pub async fn plain<F, Fut>(shards: usize, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    run(RigOptions::plain(shards), body).await;
}

/// Runs a scenario with the extension on the source.
pub async fn with_extension<F, Fut>(shards: usize, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    run(RigOptions::new(shards), body).await;
}

/// Runs a scenario; its error fails the test.
pub async fn run<F, Fut>(options: RigOptions, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    run_within(options, scenario::DEADLINE, body).await;
}

/// The same with a deadline of its own.
pub async fn run_within<F, Fut>(options: RigOptions, deadline: Duration, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    if let Err(error) = scenario::run(options, deadline, body).await {
        panic!("{error}");
    }
}

/// The application's tables with `size` orders on the source, and all declared.
pub async fn application(rig: &Rig, size: u64) -> Result<()> {
    let session = rig.source.connect().await?;
    schema::create(&session).await?;
    schema::seed(&session, size).await?;
    declare(rig, KEY).await
}

/// The publication publishes inserts alone, so that a table without a replica identity
/// takes UPDATE and DELETE before and after a migration.
pub async fn insert_only(rig: &Rig) -> Result<()> {
    rig.source
        .execute(&format!(
            "ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert');
             ALTER TABLE notes REPLICA IDENTITY DEFAULT"
        ))
        .await
}

/// The application on a source of several shards, each with its part of the rows and
/// its own numbers of the sequence, and all declared.
pub async fn application_of_several(rig: &Rig, size: u64) -> Result<()> {
    schema::spread(rig, KEY, size).await?;
    declare(rig, KEY).await
}

/// The same on all of these servers, as an application keeps the copies of omni tables equal.
pub async fn on_all(servers: impl IntoIterator<Item = &Server>, sql: &str) -> Result<()> {
    for server in servers {
        server.execute(sql).await?;
    }
    Ok(())
}

/// Restarts a server without holding up the runtime.
pub fn restart(server: &Server, how: Stop) -> Result<()> {
    tokio::task::block_in_place(|| server.restart(how))
}

/// The end of each run under load: no statement failed, the active side holds
/// exactly what was acknowledged, the other side comes to be equal.
pub async fn check_outcome(rig: &Rig, outcome: &Outcome) -> Result<()> {
    let failed = outcome.failed();
    if !failed.is_empty() {
        let shown: Vec<_> = failed.iter().take(5).collect();
        return Err(Error::Unexpected(format!("{} statements failed: {shown:#?}", failed.len())));
    }
    let servers: Vec<&Server> = match outcome.active {
        Active::Source => rig.sources(),
        Active::Shards => rig.shards.iter().collect(),
    };
    let rows = check_record(&servers, outcome).await?.into_result()?;
    println!("{rows} rows as acknowledged; {:?}", outcome.counts());
    if let Some((median, longest)) = outcome.pause_summary() {
        println!(
            "pause over {} switches: median {median:.0?}, longest {longest:.0?}",
            outcome.switches.len()
        );
    }
    compare_when_quiet(rig, KEY, STEP).await
}

/// There, back and there again, with some transactions of each client in between.
pub async fn switch_thrice(migration: &Migration, load: &Load) -> Result<()> {
    for number in 0..3 {
        match number % 2 {
            0 => migration.cutover(STEP).await?,
            _ => migration.rollback(STEP).await?,
        }
        load.each_acknowledged(25, STEP).await?;
    }
    Ok(())
}

/// Completes a migration; no helper object is left on any server.
pub async fn complete_without_trace(rig: &Rig, migration: &Migration) -> Result<()> {
    migration.complete(STEP).await?;
    for server in rig.servers() {
        let fenced = rig.sources().iter().any(|s| s.name() == server.name());
        let left = helper_objects(server, fenced).await?;
        assert_eq!(left, Vec::<String>::new(), "{}", server.name());
    }
    Ok(())
}
