//! The application's schema: one table for each way a key can lie in a table.

use crate::cluster::Rig;
use crate::error::Result;
use crate::session::Session;

/// All tables. `notes` has the replica identity that plain PostgreSQL asks for
/// as soon as a table without primary key is published.
const TABLES: &str = "
CREATE TABLE accounts (
    tenant_id bigint PRIMARY KEY, owner integer NOT NULL, stamp text NOT NULL);
CREATE TABLE orders (
    tenant_id bigint NOT NULL, id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL,
    amount numeric(12, 2), placed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant_id, id));
CREATE TABLE events (
    id bigint PRIMARY KEY, tenant_id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL);
CREATE INDEX events_tenant ON events (tenant_id);
CREATE TABLE notes (
    tenant_id bigint NOT NULL, id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL);
ALTER TABLE notes REPLICA IDENTITY FULL;
CREATE INDEX notes_id ON notes (id);
CREATE TABLE docs (
    id bigint PRIMARY KEY, tenant_id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL,
    body text NOT NULL);
ALTER TABLE docs ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE tickets (
    id bigserial PRIMARY KEY, tenant_id bigint NOT NULL, owner integer NOT NULL, stamp text NOT NULL);
CREATE TABLE settings (
    id bigint PRIMARY KEY, owner integer NOT NULL, stamp text NOT NULL);
CREATE TABLE journal (
    tenant_id bigint NOT NULL, owner integer NOT NULL, id bigint NOT NULL, stamp text NOT NULL,
    PRIMARY KEY (tenant_id, id));
";

/// SQL for the body of document `id`: some 6 kB that don't compress, in TOAST.
pub fn body_of(id: &str) -> String {
    format!("(SELECT string_agg(md5(({id})::text || g::text), '') FROM generate_series(1, 200) g)")
}

/// Creates the tables.
pub async fn create(session: &Session) -> Result<()> {
    session.execute(TABLES).await
}

/// Fills all tables with rows of owner 0, that no client touches; `size` is the
/// number of orders, the other tables get a part of it.
pub async fn seed(session: &Session, size: u64) -> Result<()> {
    let tenants = (size / 10).max(1);
    let few = (size / 5).max(1);
    let docs = (size / 50).max(1);
    session
        .execute(&format!(
            "INSERT INTO accounts SELECT g, 0, 'seed' || g FROM generate_series(1, {tenants}) g;
             INSERT INTO orders SELECT 1 + g % {tenants}, g, 0, 'seed' || g, g / 7.0,
                 '2026-01-01'::timestamptz + g * interval '1 minute'
                 FROM generate_series(1, {size}) g;
             INSERT INTO events SELECT g, 1 + g % {tenants}, 0, 'seed' || g
                 FROM generate_series(1, {size}) g;
             INSERT INTO notes SELECT 1 + g % {tenants}, g / 2, 0, 'seed' || g / 2
                 FROM generate_series(1, {few}) g;
             INSERT INTO docs SELECT g, 1 + g % {tenants}, 0, 'seed' || g, {body}
                 FROM generate_series(1, {docs}) g;
             INSERT INTO tickets (tenant_id, owner, stamp) SELECT 1 + g % {tenants}, 0, 'seed' || g
                 FROM generate_series(1, {few}) g;
             INSERT INTO settings SELECT g, 0, 'seed' || g FROM generate_series(1, 100) g;",
            body = body_of("g")
        ))
        .await?;
    session.execute("ANALYZE").await
}

/// Creates and fills the tables on a source of several shards, each with its part of the rows
/// and its own numbers of the sequence.
pub async fn spread(rig: &Rig, key: &str, size: u64) -> Result<()> {
    let sources = rig.sources();
    for (number, source) in sources.iter().enumerate() {
        let session = source.connect().await?;
        create(&session).await?;
        seed(&session, size).await?;
        let count = sources.len();
        let partitioned = rig.source_placement.partitioned(key, "bigint");
        if let Some((table, _)) = &partitioned {
            session.execute(table).await?;
        }
        for table in ["accounts", "orders", "events", "notes", "docs", "tickets", "journal"] {
            let own = match &partitioned {
                Some((_, columns)) => format!(
                    "satisfies_hash_partition('pg_temp.placement'::regclass, {count}, {number}, {columns})"
                ),
                None => rig.source_placement.condition(key, number).unwrap_or_default(),
            };
            session.execute(&format!("DELETE FROM {table} WHERE NOT ({own})")).await?;
        }
        session
            .execute(&format!(
                "DROP TABLE IF EXISTS pg_temp.placement;
                 ALTER SEQUENCE tickets_id_seq INCREMENT BY {count} RESTART {}",
                size as usize + number
            ))
            .await?;
    }
    Ok(())
}
