//! Sharding keys: which column spreads a table over the shards.
use serde::Deserialize;

/// A sharding key of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ShardingRule {
    /// Schema of the one table it holds for; `None` for every table with the column.
    pub schema_name: Option<String>,
    /// Name of the one table it holds for.
    pub table_name: Option<String>,
    /// The column.
    pub column_name: String,
}
