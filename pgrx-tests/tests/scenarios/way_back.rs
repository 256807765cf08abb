//! The way back is watched while nobody needs it, so that it is there when somebody does.

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::wait::{wait_for, wait_until, Seen};
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Stop};

use super::common::{application, check_outcome, restart, run, with_extension, STEP};

async fn error_and_hint(rig: &Rig, migration: &Migration) -> Result<String> {
    let sql = format!(
        "SELECT coalesce(error, '') || ' HINT: ' || coalesce(hint, '') FROM reshard.tasks WHERE id = {}",
        migration.id
    );
    Ok(rig.source.text(&sql).await?.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_on_the_way_back_is_shown_with_its_row_and_can_be_mended() {
    let options = RigOptions::new(2)
        .source("reshard.slot_wal_warning", "2MB")
        .source("wal_retrieve_retry_interval", "500ms");
    run(options, |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;

        let repair = "SET application_name = 'reshard repair'";
        rig.source.execute(&format!("{repair}; INSERT INTO settings VALUES (5555, 0, 'stray')")).await?;
        rig.shards[0].execute("INSERT INTO settings VALUES (5555, 0, 'new')").await?;
        rig.shards[1].execute("INSERT INTO settings VALUES (5555, 0, 'new')").await?;
        wait_for(STEP, "the conflict to be shown", || async {
            let text = error_and_hint(&rig, &migration).await?;
            let all = ["settings_pkey", "(id)=(5555)", "public.settings", "reshard repair", "SKIP (lsn = '"];
            Ok(match all.iter().all(|part| text.contains(part)) {
                true => Seen::Done(()),
                false => Seen::NotYet(text),
            })
        })
        .await?;
        rig.shards[0]
            .execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 4)")
            .await?;
        wait_until(STEP, "a warning of the WAL that is kept", || async {
            let warned = "SELECT count(*) FROM reshard.events WHERE kind = 'slot_wal' AND severity = 'warning'";
            Ok(rig.source.connect().await?.one::<i64>(warned).await? > 0)
        })
        .await?;

        rig.source.execute(&format!("{repair}; DELETE FROM settings WHERE id = 5555")).await?;
        wait_until(STEP, "the flow to go on", || async {
            let stamp = rig.source.text("SELECT stamp FROM settings WHERE id = 5555").await?;
            let error = error_and_hint(&rig, &migration).await?;
            Ok(stamp.as_deref() == Some("new") && !error.contains("settings_pkey"))
        })
        .await?;
        migration.rollback(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_times_there_and_back_with_workers_ended_and_a_shard_restarted_lose_nothing() {
    with_extension(2, |rig| async move {
        application(&rig, 500).await?;
        let load =
            Load::start(&rig, &LoadOptions { followers: 4, direct: 1, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for round in 0..5 {
            migration.cutover(STEP).await?;
            load.each_acknowledged_by_followers(10, STEP).await?;
            if round == 1 {
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ '^reshard '";
                rig.source.execute(all).await?;
            }
            if round == 2 {
                restart(&rig.shards[1], Stop::Immediate)?;
                load.each_acknowledged_by_followers(10, STEP).await?;
            }
            migration.rollback(STEP).await?;
            load.each_acknowledged_by_followers(10, STEP).await?;
        }
        migration.cutover(STEP).await?;
        load.each_acknowledged_by_followers(10, STEP).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.switches.len(), 11);
        check_outcome(&rig, &outcome).await
    })
    .await;
}
