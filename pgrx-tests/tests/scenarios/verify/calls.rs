//! What `reshard_verify()` refuses, and whom.

use reshard_scenarios::wait::wait_until;
use reshard_scenarios::Migration;

use super::super::common::{application, with_extension, STEP};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_calls_are_refused_before_anything_is_read() {
    with_extension(2, |rig| async move {
        application(&rig, 20_000).await?;
        rig.source.execute("CREATE TABLE later (tenant_id bigint PRIMARY KEY)").await?;
        let session = rig.source.connect().await?;
        let refused = |sql: &'static str| {
            let session = &session;
            async move {
                let error = session.execute(sql).await.unwrap_err();
                (error.sqlstate().unwrap_or_default().to_owned(), error.to_string())
            }
        };
        assert_eq!(refused("SELECT reshard_verify(77)").await.0, "42704");
        assert_eq!(refused("SELECT reshard_verify()").await.0, "42704");
        let migration = Migration::start(&rig, false).await?;
        let early = session.execute(&format!("SELECT reshard_verify({})", migration.id)).await;
        if let Err(early) = early {
            assert_eq!(early.sqlstate(), Some("55000"), "{early}");
        }
        migration.watch(&["replicating"], STEP).await?;
        assert_eq!(refused("SELECT reshard_verify(sample_percent => 0)").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(sample_percent => 'NaN')").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(tables => '{}')").await.0, "22023");
        assert_eq!(refused("SELECT reshard_verify(tables => '{nowhere}')").await.0, "42P01");
        let (code, text) = refused("SELECT reshard_verify(tables => '{orders,pg_class}')").await;
        assert_eq!(code, "42704");
        assert!(text.contains("pg_class"), "{text}");
        let task =
            Migration::call(&rig, "SELECT reshard_verify(tables => '{orders,settings}')").await?;
        task.watch(&["succeeded"], STEP).await?;
        let tables = session
            .column(&format!(
                "SELECT table_name FROM reshard.verifications WHERE task_id = {} ORDER BY 1",
                task.id
            ))
            .await?;
        assert_eq!(tables, ["orders", "settings"]);
        session.execute("CREATE ROLE nobody LOGIN").await?;
        let stranger = rig.source.connect_as("nobody", "app").await?;
        let denied = stranger.execute("SELECT reshard_verify()").await.unwrap_err();
        assert_eq!(denied.sqlstate(), Some("42501"), "{denied}");
        let denied = stranger.execute("SELECT * FROM reshard.differences").await.unwrap_err();
        assert_eq!(denied.sqlstate(), Some("42501"), "{denied}");
        migration.verb("reshard_stop_task").await?;
        wait_until(STEP, "the task to be stopped", || async {
            Ok(migration.state().await?.status == "failed")
        })
        .await?;
        let refused =
            session.execute(&format!("SELECT reshard_verify({})", migration.id)).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        Ok(())
    })
    .await;
}
