//! Publications with row filters and column lists of their own: the application's writes go
//! on as before, and what it wrote is where it has to be.

use reshard_scenarios::migration::{declare_shards, DESTINATION, SOURCE};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig, Session};

use super::common::{with_extension, KEY, STEP};

/// Each has a unique index with the sharding key that would be a replica identity, but for
/// the filter or the list of columns.
const TABLES: &str = "
CREATE TABLE docs (id bigint NOT NULL, tenant_id bigint NOT NULL, live boolean NOT NULL, body text,
                   PRIMARY KEY (id, live), UNIQUE (tenant_id, id));
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
CREATE TABLE parts (id bigint PRIMARY KEY, tenant_id bigint NOT NULL, code text NOT NULL DEFAULT 'x', v int,
                    UNIQUE (tenant_id, code), UNIQUE (id, tenant_id));
CREATE TABLE late (tenant_id bigint, id bigint, v int, PRIMARY KEY (tenant_id, id) DEFERRABLE);
INSERT INTO docs SELECT g, g, g % 2 = 0, repeat(g::text, 4000) FROM generate_series(1, 40) AS g;
INSERT INTO parts SELECT g, g, 'c' || g, 0 FROM generate_series(1, 40) AS g;
INSERT INTO late SELECT g, g, 0 FROM generate_series(1, 40) AS g;
CREATE PUBLICATION a_part FOR TABLE docs WHERE (live), parts (id, tenant_id, v), late";

/// Rows that go, come and change.
const WRITES: &str = "
UPDATE docs SET live = true WHERE id = 1;
UPDATE docs SET live = false WHERE id = 2;
UPDATE docs SET tenant_id = tenant_id + 1000 WHERE id = 4;
UPDATE parts SET v = 1, tenant_id = tenant_id + 1000 WHERE id < 20;
DELETE FROM parts WHERE id = 40;
UPDATE late SET v = 1 WHERE id < 20;
DELETE FROM late WHERE id = 40";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_publications_filter_and_columns_hold_and_break_no_write() {
    with_extension(2, |rig| async move {
        let session = rig.source.connect().await?;
        session.execute("CREATE EXTENSION reshard").await?;
        session.execute(TABLES).await?;
        declare_shards(&rig, &session).await?;
        for cluster in [SOURCE, DESTINATION] {
            session
                .execute(&format!("SELECT reshard_set_sharding_key('{cluster}', '{KEY}')"))
                .await?;
        }
        let start = format!("SELECT reshard_start('{SOURCE}', '{DESTINATION}', 'a_part', false)");
        let migration = Migration::call(&rig, &start).await?;
        migration.watch(&["replicating"], STEP).await?;
        session.execute(WRITES).await?;
        arrives(&rig, &session).await?;
        migration.cutover(STEP).await?;

        // A row that leaves the filter on the shards is one that the source has as well.
        let shard = rig.shards[0].connect().await?;
        let id: i64 = shard.one("SELECT min(id) FROM docs").await?;
        let tenant: i64 = shard.one("SELECT min(tenant_id) FROM docs").await?;
        shard.execute(&format!("UPDATE docs SET live = false WHERE id = {id}")).await?;
        shard.execute(&format!("INSERT INTO docs VALUES (999, {tenant}, false, 'new')")).await?;
        migration.rollback(STEP).await?;
        let kept = format!(
            "SELECT count(*) FROM docs WHERE id IN ({id}, 999) AND NOT live AND body <> ''"
        );
        assert_eq!(session.one::<i64>(&kept).await?, 2);
        session.execute("UPDATE docs SET body = 'x' WHERE live; UPDATE late SET v = 2").await?;
        migration.cancel(STEP).await
    })
    .await;
}

/// What the filter lets through is on the shards as it is on the source.
async fn arrives(rig: &Rig, session: &Session) -> Result<()> {
    for sum in [
        "SELECT count(*) || ' ' || sum(hashtext(id || body)::bigint) FROM docs WHERE live",
        "SELECT count(*) || ' ' || sum(hashtext(id || ' ' || tenant_id || ' ' || v)::bigint) FROM parts",
        "SELECT count(*) || ' ' || sum(hashtext(id || ' ' || v)::bigint) FROM late",
    ] {
        wait_until(STEP, format!("{sum} to be the same"), || async {
            let mut total = (0, 0);
            for shard in &rig.shards {
                let text: String = shard.connect().await?.one(sum).await?;
                let (rows, hashes) = text.split_once(' ').unwrap();
                total.0 += rows.parse::<i64>().unwrap();
                total.1 += hashes.parse::<i64>().unwrap();
            }
            Ok(session.one::<String>(sum).await? == format!("{} {}", total.0, total.1))
        })
        .await?;
    }
    Ok(())
}
