//! What is copied: `data.sql`, four tables of different shapes.

use std::fmt;

use futures::future::try_join_all;
use reshard_scenarios::{Result, Rig, Server};

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
    /// Bytes of all that is copied, as it lies on the source, out-of-line values included.
    pub bytes: i64,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} MB in {} tables", self.bytes as f64 / 1e6, TABLES.len())
    }
}

/// Those of `tables` whose rows come from a shard of the source: omni tables are copied
/// from one alone.
pub fn tables_of<'t>(
    rig: &Rig,
    node: &Server,
    tables: &'t [Table],
) -> impl Iterator<Item = &'t Table> {
    let all = node.name() == rig.source.name();
    tables.iter().filter(move |(_, sharded)| all || *sharded)
}

/// Makes and fills the tables on all shards of the source, `scale` times as many rows
/// as usual.
pub async fn load(rig: &Rig, scale: f64) -> Result<Loaded> {
    let nodes = rig.sources();
    let count = nodes.len();
    let fills = nodes.into_iter().enumerate().map(|(number, node)| async move {
        let session = node.connect().await?;
        session
            .execute(&format!(
                "SET bench.scale = {scale}; SET bench.nodes = {count}; SET bench.node = {number}"
            ))
            .await?;
        session.execute(include_str!("../data.sql")).await?;
        // Hint bits and visibility, once for all: whoever comes first must not pay for them.
        session.execute("VACUUM (FREEZE, ANALYZE)").await?;
        session.execute("CHECKPOINT").await?;
        let names: Vec<&str> = tables_of(rig, node, TABLES).map(|(name, _)| *name).collect();
        session
            .one::<i64>(&format!(
                "SELECT sum(pg_table_size(t))::bigint FROM unnest('{{{}}}'::regclass[]) AS t",
                names.join(",")
            ))
            .await
    });
    Ok(Loaded { bytes: try_join_all(fills).await?.into_iter().sum() })
}
