//! The bench of the cutover: many switches there and back under clients, the pause
//! as the clients see it, and where the time inside the fence went.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::{Rig, RigOptions, Share};
use crate::error::{Error, Result};
use crate::load::{schema, Load, LoadOptions};
use crate::migration::{declare, Migration};
use crate::oracle::check_record;
use crate::scenario::describe;
use crate::Server;

/// Longest wait for a switch.
const STEP: Duration = Duration::from_secs(120);
/// Switches, where RESHARD_SWITCHES says nothing else.
const SWITCHES: u32 = 50;
/// Shards of the source and of the destination, where RESHARD_SHAPE says nothing else.
const SHAPE: (usize, usize) = (1, 4);

/// Runs all of it and prints the result.
pub async fn bench() -> Result<()> {
    let (sources, shards) = shape()?;
    let mut options = RigOptions::several(sources, shards);
    for (name, value) in [("fsync", "on"), ("full_page_writes", "on")] {
        options = options.source(name, value).shard(name, value);
    }
    options.share = Share::Unasked;
    let rig = Arc::new(Rig::start(options).await?);
    let outcome = measure(&rig).await;
    if outcome.is_err() {
        describe(&rig).await;
    }
    outcome
}

/// As RESHARD_SHAPE says it: `2x4`.
fn shape() -> Result<(usize, usize)> {
    let Ok(text) = std::env::var("RESHARD_SHAPE") else { return Ok(SHAPE) };
    let read = text.split_once('x').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
    read.filter(|(n, m)| *n > 0 && *m > 0)
        .ok_or_else(|| Error::Unexpected(format!("RESHARD_SHAPE is \"{text}\", not like 2x4")))
}

async fn measure(rig: &Arc<Rig>) -> Result<()> {
    let switches = std::env::var("RESHARD_SWITCHES").ok().and_then(|v| v.parse().ok());
    let switches = switches.unwrap_or(SWITCHES);
    let (sources, shards) = (rig.sources().len(), rig.shards.len());
    let session = rig.source.connect().await?;
    if sources > 1 {
        schema::spread(rig, "tenant_id", 20_000).await?;
    } else {
        schema::create(&session).await?;
        schema::seed(&session, 20_000).await?;
    }
    declare(rig, "tenant_id").await?;
    let began = Instant::now();
    let migration = Migration::start(rig, false).await?;
    let called = began.elapsed();
    migration.watch(&["replicating"], STEP).await?;
    println!(
        "{sources} -> {shards}: {:.1} s for the call with its preflight, {:.1} s until phase replicating",
        called.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    let load = Load::start(rig, &LoadOptions { reads: true, ..LoadOptions::default() });
    load.each_acknowledged(100, STEP).await?;
    println!("{switches} switches, 8 clients, reads and writes, flag read every 10 ms");
    for number in 0..switches {
        match number % 2 {
            0 => migration.cutover(STEP).await?,
            _ => migration.rollback(STEP).await?,
        }
        load.each_acknowledged_by_followers(60, STEP).await?;
    }
    let outcome = load.finish().await?;
    let servers: Vec<&Server> = match switches % 2 {
        0 => rig.sources(),
        _ => rig.shards.iter().collect(),
    };
    let rows = check_record(&servers, &outcome).await?.into_result()?;

    let pauses = outcome.pauses();
    let of_any = pauses.iter().filter_map(|p| p.across.iter().max().copied()).collect();
    let of_each = pauses.iter().flat_map(|p| p.across.clone()).collect();
    let around = pauses.iter().map(|p| p.longest).collect();
    println!("between two acknowledged writes of a client, in ms:");
    println!("  across a switch, each client:        {}", spread(of_each));
    println!("  across a switch, slowest client:     {}", spread(of_any));
    println!("  within 2 s of it, slowest client:    {}", spread(around));
    println!("  far from a switch, worst per client: {}", spread(outcome.gaps_elsewhere()));
    let counts = outcome.counts();
    println!(
        "failed statements: {}; transactions: {}; run again after 25006: {}; rows as acknowledged: {rows}",
        outcome.failed().len(),
        counts.acknowledged,
        counts.redirected
    );
    println!("inside, from reshard.cutovers, in ms:");
    println!("  {:<12} {:>8} {:>8} {:>8}", "step", "p50", "p95", "max");
    let steps = "
        WITH step AS (
            SELECT step, step_no, duration_ms AS ms FROM reshard.cutovers WHERE status = 'succeeded'
            UNION ALL
            SELECT DISTINCT ON (cutover_id) 'pause_ms', 99, pause_ms FROM reshard.cutovers WHERE status = 'succeeded')
        SELECT step, round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 1),
               round(percentile_cont(0.95) WITHIN GROUP (ORDER BY ms)::numeric, 1), round(max(ms)::numeric, 1)
          FROM step GROUP BY step, step_no ORDER BY step_no";
    for row in rig.source.connect().await?.rows(steps).await? {
        let field = |n: usize| row.get(n).cloned().flatten().unwrap_or_default();
        println!("  {:<12} {:>8} {:>8} {:>8}", field(0), field(1), field(2), field(3));
    }
    match outcome.failed().first() {
        None => Ok(()),
        Some(first) => Err(Error::Unexpected(format!("a statement failed: {first}"))),
    }
}

/// p50, p95, p99 and the largest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| {
        let last = times.len().saturating_sub(1);
        let place = (share * last as f64).round() as usize;
        times.get(place.min(last)).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    format!(
        "p50 {:.0}, p95 {:.0}, p99 {:.0}, max {:.0} ({} values)",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0),
        times.len()
    )
}
