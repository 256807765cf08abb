//! Sharding keys: which column spreads a table over the shards, and how.
use serde::{Deserialize, Serialize};

/// How the values of a sharding key are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// As `PARTITION BY HASH` does.
    Hash,
    /// Each value as it is mapped.
    List,
    /// By ranges of values.
    Range,
}

impl Method {
    /// As it stands in state tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::List => "list",
            Self::Range => "range",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Hash, Self::List, Self::Range].into_iter().find(|m| m.as_str() == name)
    }

    /// Whether keys are mapped to shards one by one, or by range.
    pub fn is_mapped(self) -> bool {
        self != Self::Hash
    }
}

/// A sharding key of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ShardingRule {
    /// Schema of the one table it holds for; `None` for every table with the column.
    pub schema_name: Option<String>,
    /// Name of the one table it holds for.
    pub table_name: Option<String>,
    /// The column.
    pub column_name: String,
    /// How its values are placed.
    pub method: Method,
}

impl ShardingRule {
    /// Whether two rules are about the same column of the same tables.
    pub fn is_alike(&self, other: &Self) -> bool {
        let about = |r: &Self| (r.schema_name.clone(), r.table_name.clone(), r.column_name.clone());
        about(self) == about(other)
    }
}
