//! Progress as the extension's own views show it.

use std::time::{Duration, Instant};

use crate::cluster::{Rig, Server};
use crate::error::{Error, Result};
use crate::migration::Migration;

/// How often a line is printed.
const INTERVAL: Duration = Duration::from_secs(1);

/// One line of all tables: percent, MB/s, time left, tables at work.
const COPIES: &str = "
SELECT coalesce(round(sum(percent * bytes_total) / nullif(sum(bytes_total), 0)), 0)::text,
       coalesce(round(sum(bytes_per_sec) FILTER (WHERE finished_at IS NULL) / 1e6), 0)::text,
       coalesce(max(eta)::text, '-'),
       coalesce(string_agg(table_name || ' ' || round(percent) || ' %', ', ' ORDER BY bytes_total DESC)
                FILTER (WHERE started_at IS NOT NULL AND finished_at IS NULL), '')
FROM reshard.table_copies";

/// Prints a line a second until the task has reached `phase`.
pub(super) async fn show(rig: &Rig, migration: &Migration, phase: &str) -> Result<()> {
    let session = rig.source.connect().await?;
    let begin = Instant::now();
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut last = String::new();
    loop {
        ticks.tick().await;
        let state = migration.state().await?;
        let line = match state.phase.as_str() {
            "copy" => {
                let row = session.rows(COPIES).await?.into_iter().next().unwrap_or_default();
                let field = |n: usize| row.get(n).cloned().flatten().unwrap_or_default();
                format!(
                    "copy          {:>3} %  {:>4} MB/s  left {}  {}",
                    field(0),
                    field(1),
                    field(2),
                    field(3)
                )
            }
            other => other.to_owned(),
        };
        if line != last {
            println!("{:>5.1} s  {line}", begin.elapsed().as_secs_f64());
            last = line;
        }
        if state.phase == phase {
            return Ok(());
        }
        if state.status != "running" && state.status != "pending" {
            return Err(Error::Unexpected(format!(
                "the task is {}: {}",
                state.status,
                state.error.unwrap_or_default()
            )));
        }
    }
}

/// From the start of the first table to the end of the last.
pub(super) async fn copy_time(source: &Server, task: i64) -> Result<Duration> {
    let seconds: f64 = source
        .connect()
        .await?
        .one(&format!(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM reshard.table_copies
             WHERE task_id = {task} OR task_id IN (SELECT id FROM reshard.tasks WHERE parent_id = {task})"
        ))
        .await?;
    Ok(Duration::from_secs_f64(seconds.max(0.0)))
}

/// Steps of the last switch with their durations, as the extension recorded them.
pub(super) async fn steps(source: &Server) -> Result<String> {
    let text = source
        .text(
            "SELECT string_agg(step || ' ' || coalesce(round(duration_ms)::text, '?'), ', ' ORDER BY step_no)
             FROM reshard.cutovers WHERE cutover_id = (SELECT max(cutover_id) FROM reshard.cutovers)",
        )
        .await?;
    Ok(text.unwrap_or_default())
}

/// What a comparison that succeeded has seen, and how fast.
pub(super) async fn verified(source: &Server, task: i64) -> Result<String> {
    let text = source
        .text(&format!(
            "SELECT format('%s rows in %s tables are equal: %s s, %s rows/s, %s MB/s', rows, tables, round(seconds, 1),
                           round(rows / seconds), round(bytes / seconds / 1e6))
               FROM (SELECT sum(v.rows) AS rows, count(*) AS tables, sum(v.bytes_total) AS bytes,
                            greatest(extract(epoch FROM t.finished_at - t.started_at), 0.001) AS seconds
                       FROM reshard.verifications AS v JOIN reshard.tasks AS t ON t.id = v.task_id
                      WHERE t.id = {task} GROUP BY t.id, t.started_at, t.finished_at) AS v"
        ))
        .await?;
    Ok(text.unwrap_or_default())
}
