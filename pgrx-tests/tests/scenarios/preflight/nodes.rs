//! Checks of a source of several shards.

use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::oracle::Footprint;
use reshard_scenarios::session::literal;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, RigOptions, Session};

use super::super::common::{application_of_several, on_all, run, KEY, STEP};
use super::{expect, preflight, WHOLE};

/// Names of the checks that would refuse a run.
async fn errors(session: &Session) -> Result<Vec<String>> {
    let found = preflight(session, WHOLE, "{}").await?;
    let mut names: Vec<String> =
        found.into_iter().filter(|f| f.severity == "error").map(|f| f.check).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_differ_are_found_before_anything_is_touched() {
    run(RigOptions::several(2, 3), |rig| async move {
        application_of_several(&rig, 500).await?;
        let session = rig.source.connect().await?;
        assert_eq!(errors(&session).await?, Vec::<String>::new());
        rows_of_another_node(&rig, &session).await?;
        keys_that_repeat(&rig, &session).await?;
        let found = preflight(&session, WHOLE, "{\"ddl\": \"replay\"}").await?;
        expect(&found, "node_support", "error", SOURCE);
        let sampled = "{\"omni_check\": \"sample\"}";
        let found = preflight(&session, WHOLE, sampled).await?;
        assert!(found.iter().all(|f| f.check != "node_omni_tables"), "{found:?}");
        no_key(&session).await?;
        rig.nodes[0]
            .execute(
                "ALTER TABLE orders ADD extra int; ALTER SEQUENCE tickets_id_seq INCREMENT BY 7;
                 UPDATE settings SET stamp = 'other' WHERE id = 5;
                 CREATE TABLE more (tenant_id bigint PRIMARY KEY)",
            )
            .await?;
        // Copies of a table count as different only after some looks.
        wait_until(STEP, "all differences to be found", || async {
            Ok(errors(&session).await?
                == ["node_omni_tables", "node_publication", "node_schema", "node_sequences"])
        })
        .await?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "node_omni_tables", "error", "settings");
        let found = preflight(&session, WHOLE, sampled).await?;
        expect(&found, "node_omni_tables", "error", "settings");
        expect(&found, "node_publication", "error", "more");
        expect(&found, "node_schema", "error", "extra");
        expect(&found, "node_sequences", "error", "tickets_id_seq");
        copies_of_what_is_published(&rig, &session).await?;
        rig.nodes[0].execute("DROP EXTENSION reshard").await?;
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "node_extension", "error", "shard 0");
        Ok(())
    })
    .await;
}

/// Rows of another node are looked into as well: keys that are null, references that cross.
async fn rows_of_another_node(rig: &Rig, session: &Session) -> Result<()> {
    on_all(
        rig.sources(),
        "CREATE TABLE heads (id bigint PRIMARY KEY, tenant_id bigint);
         CREATE TABLE limbs (id bigint PRIMARY KEY, tenant_id bigint, head_id bigint REFERENCES heads)",
    )
    .await?;
    let found = preflight(session, WHOLE, "{}").await?;
    assert!(found.iter().all(|f| f.check != "sharding_key_null"), "{found:?}");
    rig.nodes[0]
        .execute(
            "INSERT INTO heads SELECT 1, min(tenant_id) FROM accounts;
             INSERT INTO limbs SELECT 1, max(tenant_id), 1 FROM accounts;
             INSERT INTO limbs VALUES (2, NULL, NULL)",
        )
        .await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "sharding_key_null", "warning", "limbs");
    expect(&found, "foreign_keys", "error", "limbs_head_id_fkey");
    on_all(rig.sources(), "DROP TABLE limbs, heads").await
}

/// Keys that each node made by itself, of rows that meet on the destination.
async fn keys_that_repeat(rig: &Rig, session: &Session) -> Result<()> {
    on_all(
        rig.sources(),
        "CREATE TABLE serials (id bigserial PRIMARY KEY, tenant_id bigint NOT NULL);
         INSERT INTO serials (tenant_id) SELECT tenant_id FROM accounts",
    )
    .await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "node_unique", "error", "serials_pkey");
    rig.nodes[0].execute("TRUNCATE serials").await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "node_unique", "warning", "serials_id_seq");
    assert!(found.iter().all(|f| f.check != "node_unique" || f.severity != "error"), "{found:?}");
    for (number, node) in rig.sources().into_iter().enumerate() {
        let restart = 1_000 + number;
        node.execute(&format!(
            "ALTER SEQUENCE serials_id_seq INCREMENT BY 2 RESTART WITH {restart}"
        ))
        .await?;
    }
    let found = preflight(session, WHOLE, "{}").await?;
    assert!(found.iter().all(|f| f.check != "node_unique"), "{found:?}");
    on_all(rig.sources(), "DROP TABLE serials").await
}

/// Copies of a table may differ in what doesn't move.
async fn copies_of_what_is_published(rig: &Rig, session: &Session) -> Result<()> {
    rig.nodes[0].execute("UPDATE settings SET owner = owner + 1 WHERE id = 7").await?;
    on_all(
        rig.sources(),
        "CREATE PUBLICATION partly FOR TABLE accounts, settings (id, owner) WHERE (id <> 7)",
    )
    .await?;
    for options in ["{}", "{\"omni_check\": \"sample\"}"] {
        let found = preflight(session, (SOURCE, DESTINATION, "partly"), options).await?;
        assert!(found.iter().all(|f| f.check != "node_omni_tables"), "{found:?}");
    }
    on_all(rig.sources(), "DROP PUBLICATION partly").await
}

/// A source of several shards without any sharding key.
async fn no_key(session: &Session) -> Result<()> {
    session.execute(&format!("SELECT reshard_drop_sharding_key('{SOURCE}', '{KEY}')")).await?;
    let found = preflight(session, WHOLE, "{}").await?;
    expect(&found, "sharding_key_missing", "error", SOURCE);
    session.execute(&format!("SELECT reshard_set_sharding_key('{SOURCE}', '{KEY}')")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_part_in_a_migration_starts_no_other() {
    run(RigOptions::several(2, 2), |rig| async move {
        application_of_several(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let node = rig.nodes[0].connect().await?;
        declare_on(&rig, &node).await?;
        let before = Footprint::of_rig(&rig).await?;
        let found = preflight(&node, WHOLE, "{}").await?;
        expect(&found, "node_joined", "error", &format!("task {}", migration.id));
        let refused = node
            .execute(&format!("SELECT reshard_start('{SOURCE}', '{DESTINATION}', '{PUBLICATION}')"))
            .await
            .unwrap_err();
        let text = refused.sql().unwrap().full_text();
        assert_eq!(refused.sqlstate(), Some("55000"), "{text}");
        assert!(text.contains(&format!("SELECT reshard_cancel({})", migration.id)), "{text}");
        assert_eq!(Footprint::of_rig(&rig).await?, before);
        migration.cutover(STEP).await?;
        migration.complete(STEP).await
    })
    .await;
}

/// Both clusters, as another node sees them.
async fn declare_on(rig: &Rig, node: &Session) -> Result<()> {
    for (number, source) in rig.sources().into_iter().enumerate() {
        let conninfo = literal(&source.conninfo());
        node.execute(&format!("SELECT reshard_add_shard('{SOURCE}', {number}, {conninfo})"))
            .await?;
    }
    for (number, shard) in rig.shards.iter().enumerate() {
        let conninfo = literal(&shard.conninfo());
        node.execute(&format!("SELECT reshard_add_shard('{DESTINATION}', {number}, {conninfo})"))
            .await?;
    }
    for cluster in [SOURCE, DESTINATION] {
        node.execute(&format!("SELECT reshard_set_sharding_key('{cluster}', '{KEY}')")).await?;
    }
    Ok(())
}
