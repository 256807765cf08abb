//! The coordinator's side of a copy: keeps workers running until a wave is
//! copied, and says why it can't be.
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::time::MissedTickBehavior;

use crate::cluster::ShardNo;
use crate::copy::crew::Crew;
use crate::copy::nodes::{self, Node};
use crate::error::{Error, Kind, Result};
use crate::gucs;
use crate::pg::db::{self, Arg};
use crate::pg::dynamic_worker::{self, DynamicWorker, WorkerStatus};
use crate::pg::{progress, xact};

/// How often shared memory is looked at.
const TICK: Duration = Duration::from_millis(10);
/// How often the state tables are looked at and the progress is written, at least.
const SURVEY: Duration = Duration::from_millis(500);
/// How often the state tables are looked at while workers end many parts, at most.
const SURVEY_AT_MOST: Duration = Duration::from_millis(100);
/// How long workers may take to see that no part is left.
const LEAVE: Duration = Duration::from_secs(2);
/// How long workers may take to go once they are told to.
const GO: Duration = Duration::from_secs(10);

/// disk_full
const DISK_FULL: &str = "53100";

/// How a wave ended without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// Every table of the wave is `copied`.
    Copied,
    /// The snapshot is gone: tables that are not `copied` need another wave.
    SnapshotLost,
    /// These tables (`table_id`) were truncated or rewritten and need another
    /// wave; all others are `copied`. Their status is `rewritten`.
    Rewritten(Vec<i32>),
}

/// Copies what is left of a wave, with up to `reshard.max_copy_workers` workers on
/// each source shard: background workers on this one (`node`), as many as it has
/// processors to spare for, and backends on the others. Gives up when a snapshot is
/// lost, which `is_lost` knows early.
///
/// Needs `copy_table` and `copy_part` as `plan` and `plan_parts` leave them, and
/// the name of the exported snapshot in `reshard.wave`. Tables become `copied`
/// one by one. Dropping the future ends all workers; what they had not committed
/// is taken back. Can be called again for the same wave.
///
/// # Errors
/// The error of the first part that is out of tries or can't pass by itself,
/// with table and shard named; 53400 where not a single worker can be started.
pub async fn run(
    task_id: i64,
    wave: i32,
    node: ShardNo,
    others: &[Node],
    is_lost: impl Fn() -> bool,
) -> Result<Finished> {
    let nodes = others.len() as u32 + 1;
    let mut pool = Pool {
        task_id,
        wave,
        node,
        most: usize::try_from(gucs::copy_workers(nodes)).unwrap_or(1),
        workers: Vec::new(),
        crew: Crew::new(),
        refused: false,
        barren: 0,
        open: -1,
        retry_start: None,
    };
    let most = pool.most;
    let finished = match others {
        [] => pool.run(is_lost).await,
        _ => {
            nodes::free_left(task_id, node)?;
            let (here, there) = (pool.run(is_lost), nodes::copy(task_id, wave, others, most));
            tokio::pin!(here, there);
            tokio::select! {
                finished = &mut here => finished,
                copied = &mut there => match copied {
                    Ok(()) => here.await,
                    Err(error) => Err(error),
                },
            }
        }
    };
    // Workers end by themselves when no part is left; after an error they are told.
    if finished.is_ok() {
        pool.await_end(LEAVE).await;
    }
    pool.stop().await?;
    finished
}

struct Pool {
    task_id: i64,
    wave: i32,
    /// The source shard that is this database.
    node: ShardNo,
    /// Workers at the same time.
    most: usize,
    workers: Vec<DynamicWorker>,
    crew: Crew,
    /// The server had no place for one more worker.
    refused: bool,
    /// Workers that ended, one after the other, without any part done.
    barren: i32,
    /// Parts that were not done when it was last looked.
    open: i64,
    retry_start: Option<Instant>,
}

#[derive(Debug, Deserialize)]
struct Survey {
    snapshot: bool,
    pending: i64,
    /// Of these, parts of this source shard.
    pending_here: i64,
    running: i64,
    pids: Vec<i32>,
    failed: Option<FailedPart>,
}

#[derive(Debug, Deserialize)]
struct FailedPart {
    table: String,
    part_no: i32,
    attempts: i32,
    sqlstate: Option<String>,
    error: Option<String>,
    hint: Option<String>,
}

impl Pool {
    async fn run(&mut self, is_lost: impl Fn() -> bool) -> Result<Finished> {
        self.await_leftover_workers().await?;
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut events = None;
        let mut surveyed: Option<Instant> = None;
        loop {
            ticker.tick().await;
            let stopped = self.reap();
            let settled = self.starting() == 0;
            let grows = self.crew.grow(self.workers.len(), settled, progress::sent());
            let now = progress::events();
            let waited = surveyed.map_or(SURVEY, |at| at.elapsed());
            let due = stopped
                || grows
                || waited >= SURVEY
                || (events != Some(now) && waited >= SURVEY_AT_MOST);
            if !due {
                continue;
            }
            events = Some(now);
            let survey = self.survey()?;
            surveyed = Some(Instant::now());
            if let Some(failed) = survey.failed {
                return Err(part_error(failed, self.task_id));
            }
            if !survey.snapshot || is_lost() {
                return Ok(Finished::SnapshotLost);
            }
            if survey.pending + survey.running == 0 {
                return self.finish();
            }
            self.note_progress(&survey, stopped)?;
            self.fill_up(survey.pending_here)?;
        }
    }

    /// Workers of an earlier run may still be ending; their parts are not free yet.
    async fn await_leftover_workers(&self) -> Result<()> {
        let deadline = Instant::now() + GO;
        let mut ticker = tokio::time::interval(TICK);
        loop {
            ticker.tick().await;
            let left = xact::transaction(|| {
                db::truth(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a \
                       JOIN reshard.copy_part AS p ON p.worker_pid = a.pid \
                      WHERE p.task_id = $1 AND p.status = 'running' AND p.source_shard = $2 \
                        AND a.backend_type = 'reshard copy worker')",
                    &[Arg::I64(self.task_id), Arg::I32(self.node.as_i32())],
                )
            })?;
            if !left {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::state("copy workers of an earlier run have not ended")
                    .hint("See pg_stat_activity for backend_type \"reshard copy worker\"."));
            }
        }
    }

    /// Forgets workers that have ended; true if there were any.
    fn reap(&mut self) -> bool {
        let before = self.workers.len();
        self.workers.retain(|w| w.status() != WorkerStatus::Stopped);
        self.workers.len() < before
    }

    /// Workers that have not begun yet.
    fn starting(&self) -> usize {
        self.workers.iter().filter(|w| w.status() == WorkerStatus::Starting).count()
    }

    /// Writes the progress, frees the parts of dead workers and looks how far it is.
    fn survey(&mut self) -> Result<Survey> {
        let (task_id, wave, node) = (self.task_id, self.wave, self.node);
        let survey: Survey = xact::transaction_async(|| {
            write_progress(task_id)?;
            survey(task_id, wave, node)
        })?;
        // A process that the table names has been running before it was read.
        let alive: Vec<i32> = self
            .workers
            .iter()
            .filter_map(|w| match w.status() {
                WorkerStatus::Running(pid) => Some(pid),
                _ => None,
            })
            .collect();
        if survey.pids.iter().all(|pid| alive.contains(pid)) {
            return Ok(survey);
        }
        xact::transaction_async(|| {
            db::execute(
                "UPDATE reshard.copy_part \
                    SET status = CASE WHEN attempts >= $3 THEN 'failed' ELSE 'pending' END, \
                        worker_pid = NULL, sqlstate = '57P02', error = 'the copy worker ended', \
                        hint = 'See the server log.' \
                  WHERE task_id = $1 AND status = 'running' AND source_shard = $4 \
                    AND NOT worker_pid::text = ANY ($2)",
                &[
                    Arg::I64(task_id),
                    Arg::Texts(alive.iter().map(ToString::to_string).collect()),
                    Arg::I32(gucs::COPY_ATTEMPTS.get()),
                    Arg::I32(node.as_i32()),
                ],
            )?;
            // Parts that began after the list of workers was made.
            crate::copy::pool::survey(task_id, wave, node)
        })
    }

    /// Notices workers that end again and again before they have done anything.
    fn note_progress(&mut self, survey: &Survey, stopped: bool) -> Result<()> {
        let open = survey.pending + survey.running;
        if open != self.open {
            self.open = open;
            self.barren = 0;
            return Ok(());
        }
        if stopped && self.workers.is_empty() {
            self.barren += 1;
            let delay = u64::try_from(gucs::COPY_RETRY_DELAY.get()).unwrap_or(1);
            self.retry_start = Some(Instant::now() + Duration::from_millis(delay));
            if self.barren > gucs::COPY_ATTEMPTS.get() {
                return Err(Error::new(
                    Kind::Server("57P02".to_owned()),
                    "copy workers end before they have copied anything",
                )
                .hint("See the server log for their errors."));
            }
        }
        Ok(())
    }

    /// Starts workers as long as there are parts for them.
    fn fill_up(&mut self, pending: i64) -> Result<()> {
        if self.retry_start.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.retry_start = None;
        let most = self.most.min(self.crew.size());
        let wanted = usize::try_from(pending).unwrap_or(0).saturating_sub(self.starting());
        for _ in 0..wanted.min(most.saturating_sub(self.workers.len())) {
            let worker = DynamicWorker::start(
                &format!("reshard copy worker for task {}", self.task_id),
                "reshard copy worker",
                "reshard_copy_worker_main",
                &format!("{} {} {}", dynamic_worker::current_database(), self.task_id, self.wave),
            );
            match worker {
                Some(worker) => self.workers.push(worker),
                None if self.workers.is_empty() => {
                    return Err(Error::new(Kind::Resources, "could not start a copy worker")
                        .detail("All places for background workers are taken.")
                        .hint("Raise max_worker_processes and restart the server."));
                }
                None => {
                    if !std::mem::replace(&mut self.refused, true) {
                        pgrx::log!(
                            "reshard: {} of {most} copy workers run, since all places for background workers are taken",
                            self.workers.len()
                        );
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<Finished> {
        let left: Vec<(i32, String)> = xact::transaction(|| {
            write_progress(self.task_id)?;
            db::rows(
                "SELECT pg_catalog.jsonb_build_array(t.table_id, t.status) \
                   FROM reshard.copy_table AS t \
                  WHERE t.task_id = $1 AND t.wave = $2 AND t.status NOT IN ('copied', 'ready') \
                  ORDER BY t.table_id",
                &[Arg::I64(self.task_id), Arg::I32(self.wave)],
            )
        })?;
        match left.iter().find(|(_, status)| status != "rewritten") {
            Some((table_id, status)) => Err(Error::internal(format!(
                "wave {} has no part left, but its table {table_id} is {status}",
                self.wave
            ))),
            None if left.is_empty() => Ok(Finished::Copied),
            None => {
                Ok(Finished::Rewritten(left.into_iter().map(|(table_id, _)| table_id).collect()))
            }
        }
    }

    /// Waits until all workers are gone, at most so long.
    async fn await_end(&mut self, longest: Duration) {
        let deadline = Instant::now() + longest;
        let mut ticker = tokio::time::interval(TICK);
        loop {
            self.reap();
            if self.workers.is_empty() || Instant::now() > deadline {
                return;
            }
            ticker.tick().await;
        }
    }

    /// Ends all workers and waits until they are gone.
    async fn stop(&mut self) -> Result<()> {
        for worker in &self.workers {
            worker.terminate();
        }
        self.await_end(GO).await;
        let task_id = self.task_id;
        xact::transaction_async(|| {
            db::execute(
                "UPDATE reshard.copy_part SET status = 'pending', worker_pid = NULL \
                  WHERE task_id = $1 AND status = 'running'",
                &[Arg::I64(task_id)],
            )
            .map(|_| ())
        })
    }
}

fn write_progress(task_id: i64) -> Result<()> {
    for reading in progress::readings(task_id) {
        db::execute(
            "UPDATE reshard.copy_part \
                SET rows = $4, bytes = $5, blocks_done = greatest(blocks_done, $6) \
              WHERE task_id = $1 AND table_id = $2 AND part_no = $3 AND status = 'running'",
            &[
                Arg::I64(task_id),
                Arg::I32(reading.table_id),
                Arg::I32(reading.part_no),
                Arg::I64(i64::try_from(reading.rows).unwrap_or(i64::MAX)),
                Arg::I64(i64::try_from(reading.bytes).unwrap_or(i64::MAX)),
                Arg::I64(i64::try_from(reading.blocks).unwrap_or(i64::MAX)),
            ],
        )?;
    }
    Ok(())
}

/// Parts of a table that was rewritten count as long as they run: nobody claims them
/// any more, and the next wave copies them.
fn survey(task_id: i64, wave: i32, node: ShardNo) -> Result<Survey> {
    db::row(
        "SELECT pg_catalog.jsonb_build_object( \
             'snapshot', (SELECT bool_and(w.snapshot IS NOT NULL) FROM reshard.wave AS w \
                           WHERE w.task_id = $1 AND w.wave = $2), \
             'pending', count(*) FILTER (WHERE p.status = 'pending'), \
             'pending_here', count(*) FILTER (WHERE p.status = 'pending' AND p.source_shard = $3), \
             'running', count(*) FILTER (WHERE p.status = 'running'), \
             'pids', coalesce(pg_catalog.jsonb_agg(DISTINCT p.worker_pid) \
                                  FILTER (WHERE p.status = 'running' AND p.source_shard = $3), '[]'), \
             'failed', (SELECT pg_catalog.jsonb_build_object( \
                            'table', pg_catalog.format('%I.%I', t.schema_name, t.table_name), \
                            'part_no', f.part_no, 'attempts', f.attempts, \
                            'sqlstate', f.sqlstate, 'error', f.error, 'hint', f.hint) \
                          FROM reshard.copy_part AS f \
                          JOIN reshard.copy_table AS t USING (task_id, table_id) \
                         WHERE f.task_id = $1 AND t.wave = $2 AND f.status = 'failed' \
                           AND t.status <> 'rewritten' \
                         ORDER BY f.finished_at LIMIT 1)) \
           FROM reshard.copy_part AS p \
           JOIN reshard.copy_table AS t USING (task_id, table_id) \
          WHERE p.task_id = $1 AND t.wave = $2 AND p.status <> 'done' \
            AND (t.status <> 'rewritten' OR p.status = 'running')",
        &[Arg::I64(task_id), Arg::I32(wave), Arg::I32(node.as_i32())],
    )?
    .ok_or_else(|| Error::internal("the survey of the copy returned no row"))
}

/// A part that is out of tries, or whose error does not pass, ends the copy.
fn part_error(part: FailedPart, task_id: i64) -> Error {
    let code = part.sqlstate.unwrap_or_else(|| "XX000".to_owned());
    let hint = match code.as_str() {
        DISK_FULL => {
            Some(format!("Free disk space on that server, then SELECT reshard_resume({task_id});"))
        }
        _ => part.hint,
    };
    Error {
        kind: Kind::OutOfTries(code),
        message: format!(
            "could not copy table {} (part {}, {} tries)",
            part.table, part.part_no, part.attempts
        ),
        detail: part.error,
        hint,
    }
}
