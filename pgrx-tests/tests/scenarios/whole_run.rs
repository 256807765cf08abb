//! The whole road: one command, or one by one, under writers.

use reshard_scenarios::load::{schema, Active, Load, LoadOptions};
use reshard_scenarios::migration::{declare_at, traffic, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::{check_record, helper_objects};
use reshard_scenarios::{Migration, RigOptions, Server, Stop};

use super::common::{
    application, check_outcome, insert_only, restart, run, with_extension, KEY, STEP,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_moves_a_live_database_and_loses_nothing() {
    with_extension(4, |rig| async move {
        application(&rig, 5_000).await?;
        let load = Load::start(&rig, &LoadOptions::default());
        load.each_acknowledged(20, STEP).await?;
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["switched"], STEP).await?;
        load.each_acknowledged(50, STEP).await?;
        let outcome = load.finish().await?;
        assert_eq!(outcome.active, Active::Shards);
        assert!(outcome.counts().on_shards >= 400);
        check_outcome(&rig, &outcome).await?;

        migration.complete(STEP).await?;
        let shards: Vec<&Server> = rig.shards.iter().collect();
        check_record(&shards, &outcome).await?.into_result()?;
        for server in rig.servers() {
            assert_eq!(
                helper_objects(server, server.name() == "source").await?,
                Vec::<String>::new(),
                "{}",
                server.name()
            );
        }
        let flag = traffic(&rig.source.connect().await?).await?;
        assert_eq!((flag.active_cluster.as_str(), flag.state.as_str()), (DESTINATION, "open"));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_one_by_one_do_what_one_command_does() {
    with_extension(2, |rig| async move {
        application(&rig, 2_000).await?;
        insert_only(&rig).await?;
        let load = Load::start(&rig, &LoadOptions { followers: 4, ..LoadOptions::default() });
        load.each_acknowledged(10, STEP).await?;
        let what = format!("'{SOURCE}', '{DESTINATION}', '{PUBLICATION}'");
        let pre =
            Migration::call(&rig, &format!("SELECT reshard_schema_sync('pre', {what})")).await?;
        pre.watch(&["succeeded"], STEP).await?;
        let copy = Migration::call(&rig, &format!("SELECT reshard_copy_data({what})")).await?;
        copy.watch(&["schema_post", "catch_up", "replicating"], STEP).await?;
        let post =
            Migration::call(&rig, &format!("SELECT reshard_schema_sync('post', {what})")).await?;
        post.watch(&["succeeded"], STEP).await?;
        copy.watch(&["replicating"], STEP).await?;
        rig.source.execute("SELECT reshard_cutover()").await?;
        reshard_scenarios::wait::wait_until(STEP, "traffic on the shards", || async {
            Ok(load.flag().active == Active::Shards && !load.flag().paused)
        })
        .await?;
        load.each_acknowledged(20, STEP).await?;
        let outcome = load.finish().await?;
        check_outcome(&rig, &outcome).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_have_the_columns_that_scripts_rely_on_and_keep_them_after_the_end() {
    with_extension(2, |rig| async move {
        application(&rig, 2_000).await?;
        let migration = Migration::start(&rig, true).await?;
        migration.watch(&["switched"], STEP).await?;
        let session = rig.source.connect().await?;
        let slots = session
            .rows(
                "SELECT task_id, direction, source_shard, destination_shard, slot_name, subscription_name,
                 active, confirmed_lsn, lag_bytes, retained_bytes FROM reshard.replication_slots",
            )
            .await?;
        assert!(slots.len() >= 2, "{slots:?}");
        migration.complete(STEP).await?;
        let tasks = session
            .rows(
                "SELECT id, parent_id, type, status, phase, source, destination, publication, started_at,
                 updated_at, finished_at, error, hint FROM reshard.tasks WHERE parent_id IS NULL AND finished_at IS NOT NULL",
            )
            .await?;
        assert_eq!(tasks.len(), 1);
        let copies = session
            .rows(
                "SELECT task_id, schema_name, table_name, status, rows, bytes, bytes_total, percent, bytes_per_sec,
                 eta, started_at, finished_at FROM reshard.table_copies",
            )
            .await?;
        assert_eq!(copies.len(), 8, "{copies:?}");
        let copied = session.text("SELECT max(rows) FROM reshard.table_copies WHERE table_name = 'orders'").await?;
        assert_eq!(copied.as_deref(), Some("2000"));
        let full = session.text("SELECT count(*) FROM reshard.table_copies WHERE percent = 100").await?;
        assert_eq!(full.as_deref(), Some("8"));
        let statements = session
            .rows(
                "SELECT task_id, shard, phase, kind, schema_name, object_name, status, percent, started_at, finished_at,
                 sql, error FROM reshard.schema_sync WHERE kind IS NOT NULL",
            )
            .await?;
        assert!(statements.len() > 16, "{}", statements.len());
        let flag = session.rows("SELECT name, active_cluster, state, epoch, changed_at FROM reshard.traffic").await?;
        assert_eq!(flag.len(), 1);
        for view in ["cutovers", "events", "clusters", "shards"] {
            let count: i64 = session.one(&format!("SELECT count(*) FROM reshard.{view}")).await?;
            assert!(count > 0, "{view}");
        }
        session.execute("SELECT * FROM reshard.poolers").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_several_hosts_are_reached_where_they_take_writes() {
    run(RigOptions::new(3), |rig| async move {
        let session = rig.source.connect().await?;
        schema::create(&session).await?;
        schema::seed(&session, 2_000).await?;
        // The last one is a standby that follows nobody; at port 1 is no server at all.
        let (standby, shards) = rig.shards.split_last().unwrap();
        std::fs::write(standby.data().join("standby.signal"), "").unwrap();
        restart(standby, Stop::Fast)?;
        let hosts = |server: &Server, attrs: &str| {
            let place = format!("host=127.0.0.1 port={}", server.port());
            let places = format!(
                "host=127.0.0.1,127.0.0.1,127.0.0.1 port=1,{},{} target_session_attrs={attrs}",
                standby.port(),
                server.port()
            );
            server.conninfo().replace(&place, &places)
        };
        let reached: Vec<String> = shards.iter().map(|shard| hosts(shard, "primary")).collect();
        declare_at(&rig, KEY, &[hosts(&rig.source, "read-write")], &reached).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        for shard in shards {
            shard.execute("UPDATE accounts SET stamp = 'on a shard'").await?;
        }
        migration.rollback(STEP).await?;
        let come: i64 = session
            .one("SELECT count(*) FROM accounts WHERE stamp IS DISTINCT FROM 'on a shard'")
            .await?;
        assert_eq!(come, 0);
        migration.verify(STEP).await.map(drop)
    })
    .await;
}
