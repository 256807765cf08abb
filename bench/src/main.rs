//! `make bench`: one source, up to sixteen shards, four tables, and everyone who
//! can copy them, one after the other, several rounds; then the same from a source
//! of three shards, as PgDog's benchmark of its copy has it. Prints medians and ratios.
//!
//! `RESHARD_BENCH_ROUNDS` (3) sets how often each one runs, `RESHARD_BENCH_SCALE`
//! (1.0) the share of the data, `RESHARD_BENCH_ONLY` a part of it: `peers`, `growth`,
//! `nodes` (three source shards), or `copy`, this extension alone from one source, as
//! a profiler wants it.

mod contest;
mod contestants;
mod data;
mod meter;
mod report;
mod shell;

use std::process::ExitCode;
use std::sync::Arc;

use reshard_scenarios::{Result, Rig, RigOptions, Share};

use contest::Setup;

/// Most shards that anything here is copied to.
const MOST_SHARDS: usize = 16;
/// Shards that the peers are compared with.
const SHARDS: usize = 4;
/// Shards of the source where it has several.
const NODES: usize = 3;
/// Their rows together, as a share of those of a source of one shard.
const SHARE_OF_NODES: f64 = 0.5;
/// Copy workers where nothing else is said, as is the extension's default.
const WORKERS: usize = 4;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = run() => outcome,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted; cleaning up");
            return ExitCode::from(130);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nbench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let only = std::env::var("RESHARD_BENCH_ONLY").unwrap_or_default();
    let rounds = number("RESHARD_BENCH_ROUNDS").map_or(3, |n| n as usize).max(1);
    let scale = number("RESHARD_BENCH_SCALE").unwrap_or(1.0);
    if only != "nodes" {
        from_one(&only, rounds, scale).await?;
    }
    if !matches!(only.as_str(), "peers" | "growth" | "copy") {
        from_nodes(rounds, scale * SHARE_OF_NODES).await?;
    }
    Ok(())
}

/// From a source of one shard.
async fn from_one(only: &str, rounds: usize, scale: f64) -> Result<()> {
    let shards = if matches!(only, "peers" | "copy") { SHARDS } else { MOST_SHARDS };
    let rig = Arc::new(Rig::start(options(RigOptions::new(shards))).await?);
    let loaded = data::load(&rig, scale).await?;
    println!("{loaded}; {rounds} rounds; {} cores", cores());

    if only == "copy" {
        let setup = Setup::new(&rig, SHARDS, data::TABLES).await?;
        return contest::alone(&setup, rounds).await;
    }
    if only != "growth" {
        let setup = Setup::new(&rig, SHARDS, data::TABLES).await?;
        report::contest(1, &contest::peers(&setup, rounds).await?, &loaded);
    }
    if only != "peers" {
        report::growth(&contest::growth(&rig, rounds, &[1, 4, 8, 16], &[1, 2, 4]).await?);
    }
    Ok(())
}

/// From a source of several shards.
async fn from_nodes(rounds: usize, scale: f64) -> Result<()> {
    let rig = Arc::new(Rig::start(options(RigOptions::several(NODES, SHARDS))).await?);
    let loaded = data::load(&rig, scale).await?;
    println!("\n{loaded} on {NODES} source shards; {rounds} rounds; {} cores", cores());
    let setup = Setup::new(&rig, SHARDS, data::TABLES).await?;
    report::contest(NODES, &contest::peers(&setup, rounds).await?, &loaded);
    Ok(())
}

/// Durable servers that are not slowed by checkpoints in the middle of a run.
fn options(mut options: RigOptions) -> RigOptions {
    options.share = Share::Unasked;
    for (name, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("shared_buffers", "256MB"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "30min"),
        ("autovacuum", "off"),
    ] {
        options = options.source(name, value).shard(name, value);
    }
    options
}

fn number(variable: &str) -> Option<f64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
