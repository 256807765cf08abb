//! Calls of the SQL functions that must do no harm: with NULL, twice at once, in a
//! transaction that is taken back, and by roles that may not.

use std::sync::Arc;

use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::session::literal;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, Rig, Session};

use super::common::{application, with_extension, KEY, STEP};

/// A call of each function with one argument NULL and something of the right type for the
/// others; which arguments may be NULL says their default, or the reference.
const CALLS: &str = "
SELECT format('%I(%s)', p.proname, (
           SELECT string_agg(CASE WHEN b.nr = a.nr THEN 'NULL::' || t.name
                                  WHEN t.name = 'jsonb' THEN '''{}''::jsonb'
                                  WHEN t.name = 'boolean' THEN 'false'
                                  WHEN t.name = 'regclass' THEN '''orders''::regclass'
                                  WHEN t.name IN ('regclass[]', 'text[]') THEN '''{orders}''::' || t.name
                                  WHEN t.name = 'interval' THEN '''1s''::interval'
                                  WHEN t.name = 'anyelement' THEN '1::bigint'
                                  WHEN t.name = 'text' THEN '''none'''
                                  ELSE '0::' || t.name END, ', ' ORDER BY b.nr)
             FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS b (type, nr)
            CROSS JOIN LATERAL (SELECT replace(format_type(b.type, NULL), 'anyelement',
                                               CASE WHEN b.nr = a.nr THEN 'bigint' ELSE 'anyelement' END)
                               ) AS t (name)))
  FROM pg_proc AS p
 CROSS JOIN LATERAL generate_series(1, p.pronargs) AS a (nr)
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ '^reshard_'
   AND EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS x ON x.oid = d.refobjid
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND x.extname = 'reshard')
   AND NOT (p.proname, (p.proargnames)[a.nr]) IN (
           ('reshard_cutover', 'task_id'), ('reshard_rollback', 'task_id'),
           ('reshard_copy_data', 'slot_name'), ('reshard_replicate', 'slot_name'),
           ('reshard_map_range', 'lower'), ('reshard_map_range', 'upper'),
           ('reshard_unmap_range', 'lower'), ('reshard_unmap_range', 'upper'),
           ('reshard_set_sharding_key', 'relation'), ('reshard_drop_sharding_key', 'relation'),
           ('reshard_drop_sharding_key', 'relation_name'),
           ('reshard_shard_for', 'key'), ('reshard_shard_for', 'column_name'),
           ('reshard_shard_for', 'relation'), ('reshard_verify', 'task_id'),
           ('reshard_verify', 'tables'), ('reshard_wait', 'timeout'))
   -- Called by our own sessions and functions alone.
   AND p.proname NOT IN ('reshard_copy_part', 'reshard_apply_error', 'reshard_join_table',
                         'reshard_added_columns', 'reshard_concurrently_changed',
                         'reshard_commits_early')
 ORDER BY 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_argument_that_is_null_is_refused_by_name() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        session.execute("CREATE EXTENSION reshard; CREATE TABLE orders (id bigint)").await?;
        let calls = session.column(CALLS).await?;
        assert!(calls.len() > 40, "{calls:?}");
        for call in calls {
            let refused = session.execute(&format!("SELECT {call}")).await;
            let code = refused.as_ref().err().and_then(Error::sqlstate);
            assert_eq!(code, Some("22004"), "{call}: {refused:?}");
        }
        Ok(())
    })
    .await;
}

/// A domain whose check would make its owner a superuser, if it ran with other rights.
const PLANT: &str = "
CREATE FUNCTION pg_temp.take(text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> session_user THEN ALTER ROLE intern SUPERUSER; END IF;
    RETURN true;
END $$;
CREATE DOMAIN pg_temp.word AS text CHECK (pg_temp.take(VALUE))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_of_the_caller_gets_him_no_rights() {
    with_extension(2, |rig| async move {
        rig.source
            .execute("CREATE EXTENSION reshard; CREATE ROLE intern LOGIN; CREATE TABLE words (word text)")
            .await?;
        for (key, method) in [("word", "list"), ("part", "range"), (KEY, "hash")] {
            rig.source
                .execute(&format!("SELECT reshard_set_sharding_key('new', '{key}', '{method}')"))
                .await?;
        }
        for (number, shard) in rig.shards.iter().enumerate() {
            let conninfo = literal(&shard.conninfo());
            rig.source.execute(&format!("SELECT reshard_add_shard('new', {number}, {conninfo})")).await?;
        }
        rig.source
            .execute(
                "SELECT reshard_map_values('new', 'word', '{x}', 1), reshard_map_range('new', 'part', 'a', NULL, 0)",
            )
            .await?;
        let intern = rig.source.connect_as("intern", reshard_scenarios::cluster::DATABASE).await?;
        intern.execute(PLANT).await?;
        for key in ["word", "part", KEY] {
            // Whether it is placed or refused: its checks don't run.
            let asked = format!("SELECT reshard_shard_for('new', 'x'::pg_temp.word, '{key}')");
            if let Err(error) = intern.execute(&asked).await {
                assert!(matches!(error.sqlstate(), Some("0A000" | "42704" | "22023")), "{error}");
            }
            let shard: String =
                intern.one(&format!("SELECT reshard_shard_for('new', 'x'::text, '{key}')")).await?;
            assert!(["0", "1"].contains(&shard.as_str()), "{shard}");
        }
        let found = rig.source.text("SELECT rolsuper FROM pg_roles WHERE rolname = 'intern'").await?;
        assert_eq!(found.as_deref(), Some("f"));
        Ok(())
    })
    .await;
}

fn start() -> String {
    format!("SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}', false)")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_open_is_seen_by_nobody_else() {
    with_extension(1, |rig| async move {
        application(&rig, 200).await?;
        let (first, second) = (rig.source.connect().await?, rig.source.connect().await?);
        waiting_in_vain(&first).await?;
        second_start(&rig, &first, second).await?;
        let migration = Migration::call(&rig, &start()).await?;
        migration.watch(&["replicating"], STEP).await?;
        migration.cutover(STEP).await?;
        migration.complete(STEP).await?;
        // What is taken back leaves the old cluster shut.
        first.execute(&format!("BEGIN; SELECT reshard_unfence('{SOURCE}'); ROLLBACK")).await?;
        let refused =
            first.execute("INSERT INTO settings VALUES (7777, 0, 'x')").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("25006"));
        first.execute(&format!("SELECT reshard_unfence('{SOURCE}')")).await?;
        first.execute("INSERT INTO settings VALUES (7777, 0, 'x')").await
    })
    .await;
}

/// Nothing happens before the commit, so waiting for it is an error.
async fn waiting_in_vain(session: &Session) -> Result<()> {
    for begin in ["BEGIN", "BEGIN; SAVEPOINT s"] {
        session.execute(begin).await?;
        let id: i64 = session.one(&start()).await?;
        let refused = session.execute(&format!("SELECT reshard_wait({id})")).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        session.execute("ROLLBACK").await?;
    }
    Ok(())
}

/// Of two that begin at the same time one is refused, once the other has committed.
async fn second_start(rig: &Arc<Rig>, first: &Session, second: Session) -> Result<()> {
    first.execute(&format!("BEGIN; {}", start())).await?;
    let waits = tokio::spawn(async move {
        let refused = second.execute(&start().replace(", false)", ", true)")).await;
        (refused, second)
    });
    wait_until(STEP, "the second one to wait for the first", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%, true)' \
                       AND wait_event = 'transactionid'";
        Ok(rig.source.connect().await?.one::<i64>(waiting).await? == 1)
    })
    .await?;
    first.execute("COMMIT").await?;
    let (seen, _) = waits.await.unwrap();
    seen?;
    let live = "SELECT count(*) FROM reshard.tasks WHERE type = 'reshard'";
    assert_eq!(rig.source.connect().await?.one::<i64>(live).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_that_are_asked_for_one_after_the_other_are_done_in_that_order() {
    with_extension(1, |rig| async move {
        application(&rig, 200).await?;
        let session = rig.source.connect().await?;
        let migration = Migration::call(&rig, &start()).await?;
        migration.watch(&["replicating"], STEP).await?;
        let ask = |verb: &str| format!("SELECT reshard_{verb}({});", migration.id);
        // Each is judged by what the ones before it will have made.
        session.execute(&["cutover", "rollback", "cutover"].map(ask).concat()).await?;
        let wait = |until: &str| format!("SELECT reshard_wait({}, '{until}', '90s')", migration.id);
        assert_eq!(session.one::<String>(&wait("switched")).await?, "switched");
        let switches =
            "SELECT count(DISTINCT cutover_id) FROM reshard.cutovers WHERE status = 'succeeded'";
        assert_eq!(session.one::<i64>(switches).await?, 3);
        // In one statement as well.
        session
            .execute(&format!("SELECT reshard_rollback({0}), reshard_cutover({0})", migration.id))
            .await?;
        assert_eq!(session.one::<String>(&wait("switched")).await?, "switched");
        assert_eq!(session.one::<i64>(switches).await?, 5);

        session.execute("BEGIN").await?;
        session.execute(&ask("rollback")).await?;
        let refused = session.execute(&ask("complete")).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        assert!(refused.to_string().contains("rolled_back"), "{refused}");
        session.execute("ROLLBACK; BEGIN").await?;
        session.execute(&["stop_task", "complete"].map(ask).concat()).await?;
        let refused = session.execute(&ask("resume")).await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        session.execute("ROLLBACK").await?;

        session.execute(&["stop_task", "resume", "complete"].map(ask).concat()).await?;
        assert_eq!(session.one::<String>(&wait("done")).await?, "complete");
        Ok(())
    })
    .await;
}
