//! A comparison that is killed, stopped or switched under goes on where it was, and one
//! that is given up leaves nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, Stop};

use super::super::common::{application, check_outcome, restart, run, STEP};
use super::{differences, ended, small_chunks};

async fn progress(rig: &Rig, task: &Migration) -> Result<i64> {
    rig.source
        .connect()
        .await?
        .one(&format!(
            "SELECT coalesce(sum(chunks_done), 0) FROM reshard.verifications WHERE task_id = {}",
            task.id
        ))
        .await
}

/// Begins a comparison that takes long, and returns when it has done some of its work.
async fn begin_slowly(rig: &Arc<Rig>, migration: &Migration) -> Result<Migration> {
    rig.source.set(&[("reshard.verify_rate_limit", "1500kB")])?;
    rig.source.execute("SELECT pg_reload_conf()").await?;
    let task = migration.begin_verify().await?;
    wait_until(STEP, "some chunks to be compared", || async {
        Ok(progress(rig, &task).await? >= 3)
    })
    .await?;
    Ok(task)
}

async fn speed_up(rig: &Rig) -> Result<()> {
    rig.source.set(&[("reshard.verify_rate_limit", "0")])?;
    rig.source.execute("SELECT pg_reload_conf()").await
}

async fn finished_chunks(rig: &Rig, task: &Migration) -> Result<BTreeSet<String>> {
    let rows = rig
        .source
        .connect()
        .await?
        .column(&format!(
            "SELECT concat(table_id, '/', chunk_no, ' ', finished_at) FROM reshard.verification_chunk
              WHERE task_id = {} AND status = 'equal'",
            task.id
        ))
        .await?;
    Ok(rows.into_iter().collect())
}

/// Breaks a comparison in the middle; what was compared before stays.
async fn goes_on_after<F, Fut>(how: F)
where
    F: FnOnce(Arc<Rig>) -> Fut + Send + 'static,
    Fut: std::future::Future<Output = Result<()>> + Send,
{
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 3, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        let before = finished_chunks(&rig, &task).await?;
        how(Arc::clone(&rig)).await?;
        wait_until(STEP, "the source to answer", || async { Ok(speed_up(&rig).await.is_ok()) })
            .await?;
        task.watch(&["succeeded"], STEP).await?;
        let after = finished_chunks(&rig, &task).await?;
        assert!(!before.is_empty() && before.is_subset(&after), "{before:?} {after:?}");
        drop(load.finish().await?);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_verify_worker_goes_on_where_it_was() {
    goes_on_after(|rig| async move {
        let pid: u32 = rig
            .source
            .connect()
            .await?
            .one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'reshard verify worker'")
            .await?;
        rig.source.kill9_process(pid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_survives_restarts_of_the_source_and_of_a_shard() {
    goes_on_after(|rig| async move {
        restart(&rig.shards[1], Stop::Immediate)?;
        restart(&rig.source, Stop::Fast)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_in_the_middle_of_a_comparison_raises_no_false_alarm() {
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let load = Load::start(&rig, &LoadOptions::default());
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        migration.cutover(STEP).await?;
        let done = progress(&rig, &task).await?;
        wait_until(STEP, "more chunks", || async { Ok(progress(&rig, &task).await? > done + 2) })
            .await?;
        migration.rollback(STEP).await?;
        speed_up(&rig).await?;
        let (status, error) = ended(&task).await?;
        assert_eq!(status, "succeeded", "{error} {:?}", differences(&rig, &task).await?);
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

/// No worker and no session of a comparison anywhere.
async fn nobody_compares(rig: &Rig) -> Result<()> {
    wait_until(STEP, "all sessions of the comparison to end", || async {
        let mut busy = 0;
        for server in rig.servers() {
            busy += server
                .connect()
                .await?
                .one::<i64>(
                    "SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type = 'reshard verify worker' OR application_name = 'reshard verify'",
                )
                .await?;
        }
        Ok(busy == 0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_is_stopped_resumed_and_cancelled_and_leaves_nothing() {
    run(small_chunks(2), |rig| async move {
        application(&rig, 30_000).await?;
        let before = Footprint::of_rig(&rig).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let task = begin_slowly(&rig, &migration).await?;
        let session = rig.source.connect().await?;
        let again: i64 = session.one(&format!("SELECT reshard_verify({})", migration.id)).await?;
        assert_eq!(again, task.id);
        assert!(session.take_notices().iter().any(|n| n.contains("already")));
        // Its number is no migration's.
        for verb in ["reshard_cutover", "reshard_rollback", "reshard_complete"] {
            let refused = task.verb(verb).await.unwrap_err();
            assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        }

        task.verb("reshard_stop_task").await?;
        wait_until(STEP, "the task to be stopped", || async {
            Ok(task.state().await?.error.is_some_and(|e| e.contains("stopped")))
        })
        .await?;
        nobody_compares(&rig).await?;
        assert_eq!(migration.state().await?.status, "running");
        let before_resume = finished_chunks(&rig, &task).await?;
        speed_up(&rig).await?;
        task.verb("reshard_resume").await?;
        task.watch(&["succeeded"], STEP).await?;
        assert!(before_resume.is_subset(&finished_chunks(&rig, &task).await?));

        let task = begin_slowly(&rig, &migration).await?;
        task.verb("reshard_cancel").await?;
        task.watch(&["cancelled"], STEP).await?;
        nobody_compares(&rig).await?;

        // The end of the migration is the end of its comparisons.
        speed_up(&rig).await?;
        let task = begin_slowly(&rig, &migration).await?;
        migration.cancel(STEP).await?;
        assert_eq!(task.state().await?.status, "cancelled");
        nobody_compares(&rig).await?;
        let after = Footprint::of_rig(&rig).await?;
        for ((server, before), after) in rig.servers().zip(&before).zip(&after) {
            assert_eq!(after.since(before), Vec::<String>::new(), "{}", server.name());
        }
        let markers: i64 = session.one("SELECT count(*) FROM reshard.marker").await?;
        assert_eq!(markers, 0);
        let succeeded: i64 = session
            .one(
                "SELECT count(*) FROM reshard.tasks WHERE type = 'verify' AND status = 'succeeded'",
            )
            .await?;
        assert_eq!(succeeded, 1);
        Ok(())
    })
    .await;
}
