//! What is there already, what fails, and how it goes on.

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::Migration;

use super::super::common::{with_extension, STEP};
use super::{declare_whole, resume, sync};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shard_has_already_is_used_where_it_is_the_same_and_shown_where_it_is_not() {
    with_extension(1, |rig| async move {
        let schema = "CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('ok');
             CREATE TABLE s.t (id bigint NOT NULL, mood s.mood);
             ALTER TABLE ONLY s.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);
             CREATE INDEX t_mood ON s.t USING btree (mood);
             COMMENT ON TABLE s.t IS 'a table';
             CREATE VIEW s.v AS SELECT id FROM s.t;
             CREATE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'";
        let session = rig.source.connect().await?;
        session.execute(schema).await?;
        session.execute("INSERT INTO s.t SELECT g, 'ok' FROM generate_series(1, 100) g").await?;
        let there = rig.shards[0].connect().await?;
        there.execute(schema).await?;
        there.execute("CREATE OR REPLACE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 2'").await?;
        declare_whole(&rig).await?;
        let run = Migration::start(&rig, false).await?;
        run.watch(&["failed"], STEP).await?;
        let shown: String = session
            .one(&format!("SELECT error || ' HINT ' || hint FROM reshard.tasks WHERE id = {}", run.id))
            .await?;
        println!("{shown}");
        for part in ["function \"s.f\" has another definition", "SELECT 1", "SELECT 2", "reshard_resume"] {
            assert!(shown.contains(part), "\"{part}\" is not in: {shown}");
        }
        there.execute("CREATE OR REPLACE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'").await?;
        resume(&run).await?;
        run.watch(&["replicating"], STEP).await?;
        let skipped = session
            .column(&format!("SELECT kind || ' ' || object_name FROM reshard.schema_sync WHERE task_id = {} AND status = 'skipped' ORDER BY ordinal", run.id))
            .await?;
        for object in ["table t", "primary_key t_pkey", "index t_mood", "view v", "function f"] {
            assert!(skipped.iter().any(|s| s == object), "{object}: {skipped:?}");
        }
        let rows: i64 = there.one("SELECT count(*) FROM s.t").await?;
        assert_eq!(rows, 100);
        // A table of the shard's own keeps its rows, whatever they refer to.
        there.execute("CREATE TABLE s.own (t bigint REFERENCES s.t); INSERT INTO s.own VALUES (1)").await?;
        run.verb("reshard_cancel").await?;
        wait_until(STEP, "the cancel to fail", || async {
            let failed: i64 = session
                .one("SELECT count(*) FROM reshard.events WHERE kind = 'failed' AND message LIKE 'could not empty the tables%'")
                .await?;
            Ok(failed == 1)
        })
        .await?;
        let rows: i64 = there.one("SELECT count(*) FROM s.own").await?;
        assert_eq!(rows, 1);
        there.execute("DELETE FROM s.own; ALTER TABLE s.own DROP CONSTRAINT own_t_fkey").await?;
        // What was there before stays, empty as it was.
        run.cancel(STEP).await?;
        let rows: i64 = there.one("SELECT count(*) FROM s.t").await?;
        assert_eq!(rows, 0);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_fails_is_shown_and_the_rest_goes_on_where_it_was() {
    with_extension(2, |rig| async move {
        for server in rig.servers() {
            server.execute("CREATE ROLE reader").await?;
        }
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE parent (id bigint PRIMARY KEY);
                 CREATE TABLE child (id bigint PRIMARY KEY, parent bigint);
                 CREATE INDEX child_parent ON child (parent);
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w OPTIONS (host 'h', password 'hush-1');
                 CREATE USER MAPPING FOR postgres SERVER far OPTIONS (\"user\" 'u', password 'hush-2');
                 ALTER TABLE child ADD CONSTRAINT to_parent FOREIGN KEY (parent) REFERENCES parent NOT VALID;
                 ALTER TABLE child ENABLE ROW LEVEL SECURITY; CREATE POLICY all_of_them ON child USING (true);
                 GRANT SELECT ON child TO PUBLIC;
                 CREATE EXTENSION reshard",
            )
            .await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'id'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;
        sync(&rig, "pre", "{\"foreign_keys\": \"not_valid\"}").await?;
        rig.shards[1].execute("INSERT INTO child VALUES (1, 1), (2, 1)").await?;
        rig.shards[1].execute("CREATE UNIQUE INDEX in_the_way ON child (parent) WHERE id > 1").await?;
        rig.shards[1].execute("ALTER TABLE child RENAME COLUMN parent TO elsewhere").await?;
        let post = Migration::call(
            &rig,
            &format!("SELECT reshard_schema_sync('post', '{SOURCE}', '{DESTINATION}', '{PUBLICATION}', options => '{{\"foreign_keys\": \"not_valid\"}}')"),
        )
        .await?;
        post.watch(&["failed"], STEP).await?;
        let failed = session
            .rows(&format!("SELECT shard, kind, object_name, error FROM reshard.schema_sync WHERE task_id = {} AND status = 'failed'", post.id))
            .await?;
        println!("{failed:?}");
        assert!(failed.iter().any(|row| row[0].as_deref() == Some("1") && row[2].as_deref() == Some("child_parent")), "{failed:?}");
        rig.shards[1].execute("ALTER TABLE child RENAME COLUMN elsewhere TO parent").await?;
        rig.shards[1].execute("DROP INDEX in_the_way").await?;
        resume(&post).await?;
        post.watch(&["succeeded"], STEP).await?;
        let shown = session.column("SELECT sql || coalesce(error, '') FROM reshard.schema_sync").await?;
        assert!(!shown.iter().any(|text| text.contains("hush-")), "a password is shown");
        let made: String = rig.shards[1].connect().await?.one("SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'far'").await?;
        assert!(made.contains("hush-2"));
        // What has gone since an earlier task, or has been changed without a trace, comes again.
        rig.shards[0]
            .execute(
                "ALTER TABLE child DROP CONSTRAINT to_parent; DROP POLICY all_of_them ON child;
                 ALTER TABLE child DISABLE ROW LEVEL SECURITY; REVOKE ALL ON child FROM PUBLIC",
            )
            .await?;
        sync(&rig, "post", "{\"foreign_keys\": \"not_valid\"}").await?;
        let again: String = rig.shards[0]
            .connect()
            .await?
            .one("SELECT concat_ws(' ', (SELECT conname FROM pg_constraint WHERE conname = 'to_parent'), (SELECT polname FROM pg_policy), relrowsecurity, has_table_privilege('reader', oid, 'SELECT')) FROM pg_class WHERE oid = 'child'::regclass")
            .await?;
        assert_eq!(again, "to_parent all_of_them t t");
        Ok(())
    })
    .await;
}
