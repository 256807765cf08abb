//! Rows are compared with those of the shards that they belong on, and only what moves
//! is compared.

use reshard_scenarios::load::{Load, LoadOptions};
use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::placement::{shard_of, Placement};
use reshard_scenarios::{Migration, RigOptions};

use super::super::common::{
    application, application_of_several, check_outcome, run, with_extension, KEY, STEP,
};
use super::{corrupt, differences, ended, set};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_filters_and_column_lists_of_the_publication_are_honoured() {
    with_extension(2, |rig| async move {
        rig.source
            .execute(
                "CREATE EXTENSION reshard;
                 CREATE TABLE part (id int, tenant_id bigint, v text, secret text, PRIMARY KEY (id, tenant_id));
                 INSERT INTO part SELECT g, g, 'v' || g, 's' || g FROM generate_series(1, 500) g;
                 CREATE TABLE dup (tenant_id bigint, v text); ALTER TABLE dup REPLICA IDENTITY FULL;
                 INSERT INTO dup SELECT g % 50, 'x' FROM generate_series(1, 500) g",
            )
            .await?;
        let session = rig.source.connect().await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', '{KEY}');
                 CREATE PUBLICATION {PUBLICATION} FOR TABLE part (id, tenant_id, v) WHERE (id > 100), TABLE dup WHERE (tenant_id < 30)"
            ))
            .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        session.execute("UPDATE part SET v = 'w' WHERE id % 3 = 0; UPDATE part SET secret = 'more' WHERE id % 5 = 0").await?;
        let task = migration.verify(STEP).await?;
        let rows: Vec<String> = session
            .column(&format!("SELECT table_name || ' ' || rows FROM reshard.verifications WHERE task_id = {} ORDER BY 1", task.id))
            .await?;
        assert_eq!(rows, ["dup 300", "part 400"]);
        corrupt(&rig.shards[shard_of(5, 2)], "INSERT INTO part VALUES (5, 5, 'v5')").await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        let found = differences(&rig, &task).await?;
        assert_eq!(found, set(&[format!("part extra {DESTINATION}/{} {{\"id\": 5, \"tenant_id\": 5}}", shard_of(5, 2))]));
        corrupt(&rig.shards[shard_of(5, 2)], "DELETE FROM part WHERE id = 5").await?;
        migration.cutover(STEP).await?;
        migration.verify(STEP).await.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_source_shards_are_compared_both_ways_under_writers() {
    let options = RigOptions::several(2, 3).source("reshard.verify_chunk_size", "1MB");
    run(options, |rig| async move {
        application_of_several(&rig, 20_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 6, ..LoadOptions::default() });
        load.each_acknowledged(10, STEP).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verify(STEP).await?;
        migration.cutover(STEP).await?;
        let lost = shard_of(8, 2);
        corrupt(rig.sources()[lost], "DELETE FROM accounts WHERE tenant_id = 8").await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        assert_eq!(
            differences(&rig, &task).await?,
            set(&[format!("accounts missing {SOURCE}/{lost} {{\"tenant_id\": 8}}")])
        );
        corrupt(rig.sources()[lost], "INSERT INTO accounts VALUES (8, 0, 'seed8')").await?;
        task.verb("reshard_resume").await?;
        task.watch(&["succeeded"], STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_placed_by_range_are_compared_with_their_shards() {
    let placed = Placement::Range { bounds: vec![100] };
    run(RigOptions::new(2).placed(Placement::Hash, placed), |rig| async move {
        application(&rig, 2_000).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 3, ..LoadOptions::default() });
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.verify(STEP).await?;
        migration.cutover(STEP).await?;
        migration.verify(STEP).await?;
        migration.rollback(STEP).await?;
        // A guard refuses such rows.
        rig.shards[1].execute("ALTER TABLE tickets DISABLE TRIGGER reshard_placement").await?;
        corrupt(&rig.shards[1], "INSERT INTO tickets VALUES (999999999, 5, 0, 'astray')").await?;
        rig.shards[1]
            .execute("ALTER TABLE tickets ENABLE ALWAYS TRIGGER reshard_placement")
            .await?;
        let task = migration.begin_verify().await?;
        assert_eq!(ended(&task).await?.0, "failed");
        assert_eq!(
            differences(&rig, &task).await?,
            set(&[format!("tickets misplaced {DESTINATION}/1 {{\"id\": 999999999}}")])
        );
        corrupt(&rig.shards[1], "DELETE FROM tickets WHERE id = 999999999").await?;
        // In that order: it goes on.
        rig.source
            .execute(&format!("SELECT reshard_stop_task({0}); SELECT reshard_resume({0})", task.id))
            .await?;
        task.wait("done", STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}
