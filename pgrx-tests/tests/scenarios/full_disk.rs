//! Disks of shards that are full: the copy and the flows wait for room, say where it
//! is missing, and lose nothing.

use std::path::Path;
use std::process::Command;

use reshard_scenarios::cluster::SmallDisk;
use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::declare;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, Rig, RigOptions, Stop};

use super::common::{application, check_outcome, run, KEY, STEP};
use super::copy::{equal, fill, finished_parts, limit};

/// Moves all tables of a shard's database to a disk.
async fn move_tables(rig: &Rig, shard: usize, disk: &Path) -> Result<()> {
    let session = rig.shards[shard].connect_as("postgres", "template1").await?;
    let folder = disk.join("tables");
    std::fs::create_dir(&folder).map_err(Error::io("make a folder"))?;
    let owner = Command::new("chown").arg("--reference").arg(disk).arg(&folder).status();
    assert!(owner.is_ok_and(|status| status.success()));
    session.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", folder.display())).await?;
    let database = reshard_scenarios::cluster::DATABASE;
    session.execute(&format!("ALTER DATABASE {database} SET TABLESPACE small")).await
}

/// Moves the WAL of a shard to a disk.
fn move_wal(rig: &Rig, shard: usize, disk: &Path) -> Result<()> {
    let server = &rig.shards[shard];
    server.stop(Stop::Fast)?;
    let (from, to) = (server.data().join("pg_wal"), disk.join("pg_wal"));
    let moved = Command::new("cp").arg("--archive").arg(&from).arg(&to).status();
    assert!(moved.is_ok_and(|status| status.success()));
    std::fs::remove_dir_all(&from).map_err(Error::io("remove pg_wal"))?;
    std::os::unix::fs::symlink(&to, &from).map_err(Error::io("link pg_wal"))?;
    server.start()
}

/// Parts of 1 MB, each tried so many times.
fn small_parts(attempts: u32) -> RigOptions {
    RigOptions::new(2)
        .source("reshard.copy_part_size", "1MB")
        .source("reshard.copy_attempts", &attempts.to_string())
        .source("reshard.copy_retry_delay", "100ms")
}

/// Rows to copy, and a disk of shard 1 that has less room than it needs for them.
async fn too_little_room(rig: &Rig) -> Result<SmallDisk> {
    fill(rig, 1, 120_000).await?;
    let disk = SmallDisk::mount(rig, "small", 64)?;
    move_tables(rig, 1, disk.path()).await?;
    declare(rig, KEY).await?;
    disk.fill_up_to(6)?;
    Ok(disk)
}

/// Failures of parts so far for want of room.
async fn failures(rig: &Rig) -> Result<i64> {
    let session = rig.source.connect().await?;
    let count = "SELECT count(*) FROM reshard.events WHERE kind = 'copy_part_failed'";
    session.one(count).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a disk, for which it has to be root"]
async fn a_copy_goes_on_by_itself_when_there_is_room_again() {
    run(small_parts(100), |rig| async move {
        let disk = too_little_room(&rig).await?;
        let migration = Migration::start(&rig, false).await?;
        wait_until(STEP, "parts to fail", || async { Ok(failures(&rig).await? > 2) }).await?;
        let session = rig.source.connect().await?;
        let error: String = session
            .one("SELECT max(error) FROM reshard.copy_part WHERE sqlstate = '53100'")
            .await?;
        assert!(error.contains("shard 1") && error.contains("No space left"), "{error}");
        assert_eq!(migration.state().await?.status, "running");
        disk.free()?;
        migration.watch(&["replicating"], STEP).await?;
        equal(&rig).await?;
        migration.cancel(STEP).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a disk, for which it has to be root"]
async fn a_copy_without_room_fails_with_the_shard_named_and_goes_on_from_there() {
    run(small_parts(3), |rig| async move {
        let disk = too_little_room(&rig).await?;
        limit(&rig, 8_000).await?;
        let migration = Migration::start(&rig, false).await?;
        wait_until(STEP, "the task to fail", || async {
            Ok(migration.state().await?.status == "failed")
        })
        .await?;
        let error = migration.state().await?.error.unwrap_or_default();
        assert!(error.contains("shard 1") && error.contains("No space left"), "{error}");
        let session = rig.source.connect().await?;
        let hint: String = session.one("SELECT hint FROM reshard.tasks WHERE id = 1").await?;
        assert!(hint.contains("Free disk space") && hint.contains("reshard_resume(1)"), "{hint}");
        let before = finished_parts(&rig).await?;
        assert!(!before.is_empty());
        disk.free()?;
        migration.verb("reshard_resume").await?;
        migration.watch(&["replicating"], STEP).await?;
        let after = finished_parts(&rig).await?;
        assert!(before.is_subset(&after), "copied twice: {:?}", before.difference(&after));
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a disk, for which it has to be root"]
async fn a_shard_that_has_no_room_for_wal_holds_the_copy_up_until_it_is_back() {
    run(small_parts(100), |rig| async move {
        fill(&rig, 2, 60_000).await?;
        let disk = SmallDisk::mount(&rig, "small", 128)?;
        tokio::task::block_in_place(|| move_wal(&rig, 1, disk.path()))?;
        declare(&rig, KEY).await?;
        disk.fill_up_to(2)?;
        let migration = Migration::start(&rig, false).await?;
        wait_until(STEP, "parts to fail", || async { Ok(failures(&rig).await? > 0) }).await?;
        assert_eq!(migration.state().await?.status, "running");
        disk.free()?;
        // It has ended itself, or is about to.
        tokio::task::block_in_place(|| {
            drop(rig.shards[1].stop(Stop::Immediate));
            rig.shards[1].start()
        })?;
        migration.watch(&["replicating"], STEP).await?;
        equal(&rig).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a disk, for which it has to be root"]
async fn a_flow_to_a_full_shard_goes_on_when_there_is_room_again() {
    run(RigOptions::new(2), |rig| async move {
        application(&rig, 500).await?;
        let disk = SmallDisk::mount(&rig, "small", 64)?;
        move_tables(&rig, 1, disk.path()).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        disk.fill_up_to(0)?;
        let session = rig.source.connect().await?;
        session
            .execute(
                "INSERT INTO orders (id, tenant_id, owner, stamp) \
                 SELECT -g, g, 0, repeat('x', 500) FROM generate_series(1, 20000) AS g",
            )
            .await?;
        wait_until(STEP, "the flow to say what it lacks", || async {
            let error = migration.state().await?.error.unwrap_or_default();
            Ok(error.contains("in trouble"))
        })
        .await?;
        disk.free()?;
        wait_until(STEP, "the flow to go on", || async {
            Ok(migration.state().await?.error.is_none())
        })
        .await?;
        session.execute("DELETE FROM orders WHERE id < 0").await?;
        load.each_acknowledged(5, STEP).await?;
        migration.cutover(STEP).await?;
        load.each_acknowledged(5, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}
