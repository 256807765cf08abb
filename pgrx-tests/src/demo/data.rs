//! The demo's bulk tables, and a fast way to fill them.

use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::Server;
use crate::error::Result;

/// Size loaded where nothing else is asked for, in MB of heap and TOAST.
pub(super) const MEGABYTES: u64 = 1_100;
/// The bulk tables.
pub(super) const TABLES: [&str; 4] = ["measurements", "messages", "attachments", "catalog"];
/// The one without the key.
pub(super) const OMNI: &str = "catalog";
/// Sessions that fill tables.
const SESSIONS: u64 = 4;

const DDL: &str = "
CREATE TABLE measurements (tenant_id bigint NOT NULL, id bigint NOT NULL, at timestamptz NOT NULL,
    value double precision, unit text);
CREATE TABLE messages (id bigint NOT NULL, tenant_id bigint NOT NULL, sent timestamptz NOT NULL, body text);
CREATE TABLE attachments (id bigint NOT NULL, tenant_id bigint NOT NULL, name text, body text);
ALTER TABLE attachments ALTER body SET STORAGE EXTERNAL;
CREATE TABLE catalog (id bigint NOT NULL, name text, price numeric(10, 2));";

const INDEXES: [&str; 5] = [
    "ALTER TABLE measurements ADD PRIMARY KEY (tenant_id, id)",
    "ALTER TABLE messages ADD PRIMARY KEY (id)",
    "CREATE INDEX messages_tenant ON messages (tenant_id, sent)",
    "ALTER TABLE attachments ADD PRIMARY KEY (id)",
    "ALTER TABLE catalog ADD PRIMARY KEY (id)",
];

/// What was loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    bytes: u64,
}

impl Loaded {
    pub(super) fn megabytes(self) -> f64 {
        self.bytes as f64 / 1e6
    }

    /// MB per second, had all of it taken that long.
    pub(super) fn rate(self, took: Duration) -> f64 {
        self.megabytes() / took.as_secs_f64().max(1e-3)
    }
}

/// Creates and fills the tables on the source.
pub(super) async fn load(source: &Server, megabytes: u64) -> Result<Loaded> {
    source.execute(DDL).await?;
    // Bytes of a row: 70, 470, 4,200 and 60.
    let (measurements, messages) = (megabytes * 5_500, megabytes * 950);
    let (attachments, catalog) = (megabytes * 38, megabytes * 20);
    try_join_all((0..SESSIONS).map(|part| async move {
        let session = source.connect().await?;
        let range = |rows: u64| {
            let each = rows / SESSIONS;
            format!("generate_series({}::bigint, {}) g", part * each + 1, (part + 1) * each)
        };
        session
            .execute(&format!(
                "SET synchronous_commit = off;
                 INSERT INTO measurements SELECT 1 + g % 5000, g, '2026-01-01'::timestamptz + g * interval '1 s', g / 7.0, 'km/h'
                     FROM {};
                 INSERT INTO messages SELECT g, 1 + g % 5000, '2026-01-01'::timestamptz + g * interval '1 s',
                     repeat(md5(g::text), 13) FROM {};
                 INSERT INTO attachments SELECT g, 1 + g % 5000, 'file ' || g,
                     (SELECT string_agg(md5(g::text || n), '') FROM generate_series(1, 125) n) FROM {};
                 INSERT INTO catalog SELECT g, 'article ' || g, g / 100.0 FROM {};",
                range(measurements),
                range(messages),
                range(attachments),
                range(catalog)
            ))
            .await
    }))
    .await?;
    try_join_all(INDEXES.iter().map(|sql| source.execute(sql))).await?;
    source.execute("VACUUM ANALYZE").await?;
    let sizes = TABLES.map(|table| format!("pg_table_size('{table}')")).join(" + ");
    let bytes = source.connect().await?.one(&format!("SELECT {sizes}")).await?;
    source.execute("CHECKPOINT").await?;
    Ok(Loaded { bytes })
}
