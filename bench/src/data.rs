//! What is copied: `data.sql`, four tables of different shapes.

use std::fmt;

use reshard_scenarios::{Result, Rig};

/// A table, and whether its rows are spread over the shards.
pub type Table = (&'static str, bool);

/// All tables.
pub const TABLES: &[Table] = &[("narrow", true), ("docs", true), ("mixed", true), ("omni", false)];
/// Those whose rows are spread.
pub const SHARDED: &[Table] = &[("narrow", true), ("docs", true), ("mixed", true)];
/// The column that rows are spread by.
pub const KEY: &str = "tenant_id";

/// What was loaded.
pub struct Loaded {
    /// Bytes of all tables on the source, out-of-line values included.
    pub bytes: i64,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} MB in {} tables", self.bytes as f64 / 1e6, TABLES.len())
    }
}

/// Makes and fills the tables on the source, `scale` times as many rows as usual.
pub async fn load(rig: &Rig, scale: f64) -> Result<Loaded> {
    let session = rig.source.connect().await?;
    session.execute(&format!("SET bench.scale = {scale}")).await?;
    session.execute(include_str!("../data.sql")).await?;
    // Hint bits and visibility, once for all: whoever comes first must not pay for them.
    session.execute("VACUUM (FREEZE, ANALYZE)").await?;
    session.execute("CHECKPOINT").await?;
    let bytes = session
        .one("SELECT sum(pg_table_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        .await?;
    Ok(Loaded { bytes })
}
