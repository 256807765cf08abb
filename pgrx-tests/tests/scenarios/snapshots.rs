//! Snapshots of several source shards are taken one by one: what clients write in between.

use reshard_scenarios::oracle::compare_when_quiet;
use reshard_scenarios::wait::{wait_for, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig};

use super::common::{application_of_several, on_all, KEY, STEP};
use super::nodes::several;

/// Rows that refer to an omni table, in a plain table and in a partitioned one. The larger omni
/// table comes from the first node, so that the one that is referred to comes from the last.
const REFERRING: &str = "
CREATE TABLE large (id bigint PRIMARY KEY, filler text);
INSERT INTO large SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g;
CREATE TABLE parents (id bigint PRIMARY KEY, filler text);
INSERT INTO parents SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g;
CREATE TABLE children (tenant_id bigint, id bigint, parent bigint REFERENCES parents, PRIMARY KEY (tenant_id, id));
CREATE TABLE parted (LIKE children INCLUDING INDEXES, FOREIGN KEY (parent) REFERENCES parents)
    PARTITION BY RANGE (tenant_id);
CREATE TABLE parted_all PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
COMMENT ON CONSTRAINT parted_parent_fkey ON parted IS 'checked last';
";

/// Returns once the coordinator's snapshot is taken, while that of the other node waits.
async fn a_snapshot_on_the_coordinator_alone(rig: &Rig) -> Result<()> {
    wait_for(STEP, "a snapshot on one node alone", || async {
        let slots =
            "SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL";
        let here: i64 = rig.source.connect().await?.one(slots).await?;
        let there: i64 = rig.nodes[0].connect().await?.one(slots).await?;
        Ok(match here > 0 && there == 0 {
            true => Seen::Done(()),
            false => Seen::NotYet(format!("{here} slots here, {there} there")),
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_between_rows_of_several_snapshots_are_checked_when_changes_flow() {
    several(2, 3, |rig| async move {
        application_of_several(&rig, 200).await?;
        on_all(rig.sources(), REFERRING).await?;
        let (node, coordinator) = (rig.nodes[0].connect().await?, rig.source.connect().await?);
        let tenant: i64 = coordinator
            .one("SELECT min(g) FROM generate_series(1, 100) g WHERE reshard_shard_for('prod', g) = 0")
            .await?;
        // One node's snapshot waits for this; the other's is taken.
        node.execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let migration = Migration::start(&rig, false).await?;
        a_snapshot_on_the_coordinator_alone(&rig).await?;
        on_all(rig.sources(), "INSERT INTO parents VALUES (9999)").await?;
        for table in ["children", "parted"] {
            rig.nodes[0].execute(&format!("INSERT INTO {table} VALUES ({tenant}, 1, 9999)")).await?;
        }
        node.execute("COMMIT").await?;
        migration.watch(&["replicating"], STEP).await?;
        compare_when_quiet(&rig, KEY, STEP).await?;
        let unchecked = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated";
        let checked = "SELECT count(*) FROM pg_constraint
                        WHERE contype = 'f' AND confrelid = 'parents'::regclass";
        let comment = "SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint
                        WHERE conname = 'parted_parent_fkey' AND conparentid = 0";
        for shard in &rig.shards {
            assert_eq!(shard.text(unchecked).await?.as_deref(), Some("0"), "{}", shard.name());
            assert_eq!(shard.text(checked).await?.as_deref(), Some("3"), "{}", shard.name());
            assert_eq!(shard.text(comment).await?.as_deref(), Some("checked last"));
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_between_nodes_while_snapshots_are_taken_is_copied_once() {
    several(2, 3, |rig| async move {
        application_of_several(&rig, 200).await?;
        let visits = "CREATE TABLE visits (id bigint PRIMARY KEY, tenant_id bigint NOT NULL)";
        on_all(rig.sources(), visits).await?;
        let (node, coordinator) = (rig.nodes[0].connect().await?, rig.source.connect().await?);
        // Of different shards of the source, and of one of the destination.
        let tenant = |source: usize| {
            let homes =
                |t: i64| (rig.source_placement.shard_of(t, 2), rig.placement.shard_of(t, 3));
            (1..100).find(|t| homes(*t) == (source, 1)).ok_or(Error::Unexpected("no tenant".into()))
        };
        let (before, after) = (tenant(0)?, tenant(1)?);
        coordinator.execute(&format!("INSERT INTO visits VALUES (1, {before})")).await?;
        // The other node's snapshot waits for this.
        node.execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let migration = Migration::start(&rig, false).await?;
        a_snapshot_on_the_coordinator_alone(&rig).await?;
        coordinator.execute("DELETE FROM visits").await?;
        rig.nodes[0].execute(&format!("INSERT INTO visits VALUES (1, {after})")).await?;
        node.execute("COMMIT").await?;
        migration.watch(&["replicating"], STEP).await?;
        let anew = "SELECT message FROM reshard.events WHERE kind = 'copied_anew'";
        let said = coordinator.column(anew).await?;
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("\"public\".\"visits\""), "{said:?}");
        assert_eq!(
            rig.shards[1].text("SELECT tenant_id FROM visits").await?,
            Some(after.to_string())
        );
        migration.cutover(STEP).await?;
        migration.rollback(STEP).await?;
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}
