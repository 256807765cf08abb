//! What several scenarios need: short ways to run one.

use std::future::Future;
use std::sync::Arc;

use reshard_scenarios::{scenario, Result, Rig, RigOptions};

/// Runs a scenario on plain PostgreSQL servers.
pub async fn plain<F, Fut>(shards: usize, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    run(RigOptions::plain(shards), body).await;
}

/// Runs a scenario; its error fails the test.
pub async fn run<F, Fut>(options: RigOptions, body: F)
where
    F: FnOnce(Arc<Rig>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    if let Err(error) = scenario::run(options, scenario::DEADLINE, body).await {
        panic!("{error}");
    }
}
