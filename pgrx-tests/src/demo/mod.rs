//! The demo: what a DBA would do and see, with times, and a proof at the end.

mod data;
mod peer;
mod progress;

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Rig, RigOptions, Server, Share};
use crate::error::{Error, Result};
use crate::load::{schema, Load, LoadOptions, Outcome};
use crate::migration::{declare, Migration};
use crate::oracle::{check_record, fingerprint, helper_objects};
use crate::scenario::describe;

/// Longest wait for a step that follows the copy.
const STEP: Duration = Duration::from_secs(180);
/// Shards of the destination.
const SHARDS: usize = 4;

/// Runs all of it; servers and folders are gone afterwards.
pub async fn run() -> Result<()> {
    title("Servers");
    let mut options = RigOptions::new(SHARDS)
        .source("fsync", "on")
        .source("full_page_writes", "on")
        .source("shared_buffers", "256MB")
        .shard("fsync", "on")
        .shard("full_page_writes", "on")
        .shard("shared_buffers", "256MB");
    options.share = Share::Unasked;
    let rig = Arc::new(Rig::start(options).await?);
    println!(
        "source on port {}, shards on ports {:?}, all in {}",
        rig.source.port(),
        rig.shards.iter().map(Server::port).collect::<Vec<_>>(),
        rig.folder().display()
    );
    let outcome = migrate(&rig).await;
    if outcome.is_err() {
        describe(&rig).await;
    }
    outcome
}

async fn migrate(rig: &Arc<Rig>) -> Result<()> {
    title("Data");
    let megabytes = std::env::var("RESHARD_DEMO_MB").ok().and_then(|v| v.parse().ok());
    let loaded = data::load(&rig.source, megabytes.unwrap_or(data::MEGABYTES)).await?;
    println!("{:.0} MB in {} tables", loaded.megabytes(), data::TABLES.len());
    let before = fingerprints(&[&rig.source]).await?;

    title("The same tables with pgcopydb, 4 jobs, to one server");
    let peer = peer::copy(rig).await?;
    match peer {
        Some(took) => println!("{:.1} s, {:.0} MB/s", took.as_secs_f64(), loaded.rate(took)),
        None => println!("pgcopydb is not installed: left out"),
    }

    title("Writers");
    schema::create(&rig.source.connect().await?).await?;
    schema::seed(&rig.source.connect().await?, 10_000).await?;
    let load = Load::start(rig, &LoadOptions { direct: 1, ..LoadOptions::default() });
    load.each_acknowledged(20, STEP).await?;
    println!("8 that follow reshard.traffic, 1 that only knows the source");

    title("SELECT reshard_start('prod', 'prod_sharded', 'all_tables', auto_cutover => false)");
    declare(rig, "tenant_id").await?;
    let migration = Migration::start(rig, false).await?;
    progress::show(rig, &migration, "replicating").await?;
    let copied = progress::copy_time(&rig.source, migration.id).await?;

    for (verb, there) in
        [("reshard_cutover", true), ("reshard_rollback", false), ("reshard_cutover", true)]
    {
        title(&format!("SELECT {verb}({})", migration.id));
        match there {
            true => migration.cutover(STEP).await?,
            false => migration.rollback(STEP).await?,
        }
        println!("steps in ms: {}", progress::steps(&rig.source).await?);
        load.each_acknowledged_by_followers(100, STEP).await?;
        println!(
            "writers go on on the {:?}; {} transactions acknowledged so far",
            load.flag().active,
            load.acknowledged()
        );
    }

    title(&format!("SELECT reshard_verify({}), writers still on", migration.id));
    let verified = migration.verify(STEP).await?;
    println!("{}", progress::verified(&rig.source, verified.id).await?);
    let outcome = load.finish().await?;

    title(&format!("SELECT reshard_complete({})", migration.id));
    migration.complete(STEP).await?;

    title("Proof");
    prove(rig, &outcome, &before).await?;

    title("Result");
    report(&outcome, &loaded, copied, peer)
}

/// Everything acknowledged is there once, in its place; nothing else is left.
async fn prove(rig: &Rig, outcome: &Outcome, before: &[(u64, String)]) -> Result<()> {
    let failed: Vec<&str> = outcome
        .clients
        .iter()
        .filter(|c| c.follows)
        .flat_map(|c| &c.failed)
        .map(String::as_str)
        .collect();
    if let Some(first) = failed.first() {
        return Err(Error::Unexpected(format!(
            "{} statements failed, first: {first}",
            failed.len()
        )));
    }
    let shards: Vec<&Server> = rig.shards.iter().collect();
    let rows = check_record(&shards, outcome).await?.into_result()?;
    let counts = outcome.counts();
    println!(
        "{} transactions acknowledged ({} on the shards), {rows} rows as they must be",
        counts.acknowledged, counts.on_shards
    );
    println!(
        "{} redirected by the fence, {} refused on the source with 25006, none failed",
        counts.redirected, counts.refused
    );
    let after = fingerprints(&shards).await?;
    for ((table, before), after) in data::TABLES.iter().zip(before).zip(&after) {
        if before != after {
            return Err(Error::Unexpected(format!(
                "{table}: {before:?} before, {after:?} on the shards"
            )));
        }
        println!("{table}: {} rows, fingerprint equal", before.0);
    }
    for server in rig.servers() {
        let left = helper_objects(server, server.name() == "source").await?;
        if !left.is_empty() {
            return Err(Error::Unexpected(format!("left on {}: {left:?}", server.name())));
        }
    }
    println!("no slot, publication, subscription, origin or helper object is left on any server");
    Ok(())
}

/// Of each bulk table over the servers; an omni table must be equal on each of them.
async fn fingerprints(servers: &[&Server]) -> Result<Vec<(u64, String)>> {
    let mut all = Vec::new();
    for table in data::TABLES {
        if table != data::OMNI {
            all.push(fingerprint(servers, table, "true").await?);
            continue;
        }
        let mut copies = Vec::new();
        for server in servers {
            copies.push(fingerprint(&[server], table, "true").await?);
        }
        copies.dedup();
        match <[_; 1]>::try_from(copies) {
            Ok([one]) => all.push(one),
            Err(copies) => {
                return Err(Error::Unexpected(format!(
                    "{table} differs between shards: {copies:?}"
                )))
            }
        }
    }
    Ok(all)
}

fn report(
    outcome: &Outcome,
    loaded: &data::Loaded,
    copied: Duration,
    peer: Option<Duration>,
) -> Result<()> {
    for pause in outcome.pauses() {
        println!(
            "pause, longest gap seen by any client, switch to the {:?}: {:.0} ms",
            pause.switch.to,
            pause.longest.as_secs_f64() * 1e3
        );
    }
    if let Some((median, longest)) = outcome.pause_summary() {
        println!(
            "pause: median {:.0} ms, longest {:.0} ms",
            median.as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3
        );
    }
    println!(
        "copy, reshard, 1 -> {SHARDS}, writers on: {:.1} s, {:.0} MB/s",
        copied.as_secs_f64(),
        loaded.rate(copied)
    );
    if let Some(peer) = peer {
        println!(
            "copy, pgcopydb, 1 -> 1, writers off: {:.1} s, {:.0} MB/s",
            peer.as_secs_f64(),
            loaded.rate(peer)
        );
        println!(
            "reshard took {:.0} % of pgcopydb's time",
            100.0 * copied.as_secs_f64() / peer.as_secs_f64()
        );
    }
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}
