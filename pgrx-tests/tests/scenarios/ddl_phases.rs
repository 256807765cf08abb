//! DDL in each phase of a migration, by each choice of option `ddl`, and on both clusters.

use std::sync::Arc;

use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, Rig, Session};

use super::common::{application, with_extension, STEP};

/// What becomes of a new column of a table that moves.
#[derive(Clone, Copy)]
enum Fate {
    /// An error that names the migration.
    Refused,
    /// The shards get it with the stream.
    Replayed,
    /// It is done, and written down; the shards get it from the DBA.
    Written,
}
use Fate::{Refused, Replayed, Written};

async fn start(rig: &Arc<Rig>, mode: &str) -> Result<Migration> {
    Migration::call(
        rig,
        &format!(
            "SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false, '{{\"ddl\": \"{mode}\"}}')"
        ),
    )
    .await
}

/// Adds a column that is named after the phase, on the source.
async fn add_column(
    rig: &Rig,
    session: &Session,
    run: &Migration,
    phase: &str,
    fate: Fate,
) -> Result<()> {
    assert_eq!(run.state().await?.phase, phase);
    let statement = format!("ALTER TABLE settings ADD COLUMN in_{phase} text");
    match fate {
        Refused => {
            let error = match session.execute(&statement).await {
                Err(error) => error,
                Ok(()) => return Err(Error::Unexpected(format!("not refused in phase {phase}"))),
            };
            let text = error.sql().unwrap().full_text();
            assert_eq!(error.sqlstate(), Some("55000"), "{text}");
            for part in ["public.settings", &format!("migration {}", run.id), "reshard_cancel"] {
                assert!(text.contains(part), "\"{part}\" is not in: {text}");
            }
        }
        Replayed => session.execute(&statement).await?,
        Written => {
            for shard in &rig.shards {
                shard.execute(&statement).await?;
            }
            session.execute(&statement).await?;
            let written: i64 = session
                .one(&format!(
                    "SELECT count(*) FROM reshard.events WHERE task_id = {} AND kind = 'ddl'
                        AND message = 'ALTER TABLE on public.settings'",
                    run.id
                ))
                .await?;
            assert!(written > 0, "not written down in phase {phase}");
        }
    }
    Ok(())
}

/// Stops a migration in each of its phases, in which a column is added; then the columns
/// are those of the source everywhere, and rows with all of them go there and back.
async fn in_each_phase(mode: &'static str, fates: [(&'static str, Fate); 5]) {
    with_extension(2, move |rig| async move {
        application(&rig, 200).await?;
        let session = rig.source.connect().await?;
        // A snapshot for the copy waits for transactions that have written.
        let writer = rig.source.connect().await?;
        writer.execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let run = start(&rig, mode).await?;
        run.watch(&["copy"], STEP).await?;
        let [copy, catch_up, replicating, switched, rolled_back] = fates;
        add_column(&rig, &session, &run, copy.0, copy.1).await?;
        // Changes have arrived once a row of this table has.
        let mut holders = Vec::new();
        for shard in &rig.shards {
            let holder = shard.connect().await?;
            holder.execute("BEGIN; LOCK TABLE reshard.marker IN EXCLUSIVE MODE").await?;
            holders.push(holder);
        }
        writer.execute("COMMIT").await?;
        run.watch(&["catch_up"], STEP).await?;
        // As long as its flows aren't there, nothing can be replayed.
        wait_until(STEP, "the flows", || async {
            let flows: i64 =
                session.one("SELECT count(*) FROM reshard.replication_slots WHERE active").await?;
            Ok(flows > 0)
        })
        .await?;
        add_column(&rig, &session, &run, catch_up.0, catch_up.1).await?;
        for holder in &holders {
            holder.execute("COMMIT").await?;
        }
        run.watch(&["replicating"], STEP).await?;
        add_column(&rig, &session, &run, replicating.0, replicating.1).await?;
        run.cutover(STEP).await?;
        add_column(&rig, &session, &run, switched.0, switched.1).await?;
        run.rollback(STEP).await?;
        add_column(&rig, &session, &run, rolled_back.0, rolled_back.1).await?;
        session.execute("INSERT INTO settings (id, owner, stamp) VALUES (-1, 0, 'last')").await?;
        same_columns(&rig, &session).await?;
        run.cutover(STEP).await?;
        run.complete(STEP).await
    })
    .await;
}

/// The columns of the table and its last row come to be the same everywhere.
async fn same_columns(rig: &Rig, session: &Session) -> Result<()> {
    let columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'settings'::regclass AND attnum > 0 ORDER BY 1";
    let here = session.column(columns).await?;
    for shard in &rig.shards {
        let there = shard.connect().await?;
        wait_until(STEP, "the row that was written last", || async {
            Ok(there.one::<i64>("SELECT count(*) FROM settings WHERE stamp = 'last'").await? == 1)
        })
        .await?;
        assert_eq!(there.column(columns).await?, here, "{}", shard.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_block_ddl_is_refused_in_each_phase() {
    in_each_phase(
        "block",
        [
            ("copy", Refused),
            ("catch_up", Refused),
            ("replicating", Refused),
            ("switched", Refused),
            ("rolled_back", Refused),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_replay_ddl_is_replayed_while_changes_flow_to_the_shards() {
    in_each_phase(
        "replay",
        [
            ("copy", Refused),
            ("catch_up", Replayed),
            ("replicating", Replayed),
            ("switched", Refused),
            ("rolled_back", Replayed),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_allow_ddl_is_written_down_in_each_phase() {
    in_each_phase(
        "allow",
        [
            ("copy", Written),
            ("catch_up", Written),
            ("replicating", Written),
            ("switched", Written),
            ("rolled_back", Written),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_on_the_new_cluster_stops_the_way_back_until_the_old_one_has_it_too() {
    with_extension(2, |rig| async move {
        application(&rig, 200).await?;
        let run = start(&rig, "block").await?;
        run.watch(&["replicating"], STEP).await?;
        run.cutover(STEP).await?;
        let statement = "ALTER TABLE settings ADD COLUMN colour text";
        for shard in &rig.shards {
            shard.execute(statement).await?;
        }
        run.verb("reshard_rollback").await?;
        let error = run.wait("rolled_back", STEP).await.unwrap_err();
        let text = error.sql().unwrap().full_text();
        println!("{text}");
        assert_eq!(error.sqlstate(), Some("55000"), "{text}");
        assert!(text.contains("colour"), "{text}");
        // The shards still take writes, also of the new column.
        for shard in &rig.shards {
            shard.execute("INSERT INTO settings VALUES (-7, 0, 'x', 'blue')").await?;
        }
        rig.source.execute(&format!("SET reshard.ddl_guard = off; {statement}")).await?;
        run.rollback(STEP).await?;
        let colour: String =
            rig.source.connect().await?.one("SELECT colour FROM settings WHERE id = -7").await?;
        assert_eq!(colour, "blue");
        Ok(())
    })
    .await;
}
