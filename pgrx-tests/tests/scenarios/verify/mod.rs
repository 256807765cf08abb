//! The comparison of both clusters: equal is said only of what is equal, and whatever
//! differs is found and named, while everybody writes.

mod calls;
mod damage;
mod interrupted;
mod placed;
mod writers;

use std::collections::BTreeSet;

use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Server};

use super::common::STEP;

/// Many small chunks.
fn small_chunks(shards: usize) -> RigOptions {
    RigOptions::new(shards).source("reshard.verify_chunk_size", "1MB")
}

/// Changes a shard behind everybody's back.
async fn corrupt(server: &Server, sql: &str) -> Result<()> {
    let session = server.connect().await?;
    session.execute("SET application_name = 'reshard repair'").await?;
    match session.affected(sql).await? {
        0 => Err(Error::Unexpected(format!("nothing to corrupt: {sql}"))),
        _ => Ok(()),
    }
}

/// Differences of a task, as "table kind shard key columns".
async fn differences(rig: &Rig, task: &Migration) -> Result<BTreeSet<String>> {
    let rows = rig
        .source
        .connect()
        .await?
        .column(&format!(
            "SELECT concat_ws(' ', table_name, kind, cluster || '/' || shard, key::text, array_to_string(columns, ','))
               FROM reshard.differences WHERE task_id = {}",
            task.id
        ))
        .await?;
    Ok(rows.into_iter().collect())
}

fn set(texts: &[String]) -> BTreeSet<String> {
    texts.iter().cloned().collect()
}

async fn ended(task: &Migration) -> Result<(String, String)> {
    let state = task.watch(&["succeeded", "failed"], STEP).await?;
    Ok((state.status, state.error.unwrap_or_default()))
}
