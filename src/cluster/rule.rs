//! Sharding keys: which columns spread a table over the shards, and how.
use serde::{Deserialize, Serialize};

use crate::remote::quote::ident;

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

/// The sharding key of a table on one side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardingKey<'a> {
    /// Its columns, in the order in which they are hashed; one alone where keys are mapped.
    pub columns: &'a [String],
    /// How its values are placed.
    pub method: Method,
}

impl<'a> ShardingKey<'a> {
    /// Of columns and a method that are kept apart; `None` where there are none.
    pub fn of(columns: Option<&'a [String]>, method: Option<Method>) -> Option<Self> {
        Some(Self { columns: columns.filter(|c| !c.is_empty())?, method: method? })
    }

    /// The column, where it has just one.
    pub fn single(self) -> Option<&'a str> {
        match self.columns {
            [column] => Some(column),
            _ => None,
        }
    }
}

/// Names of columns as messages show them: each quoted.
pub fn shown(columns: &[String]) -> String {
    listed(columns, "")
}

/// Each of these names, where it comes first.
pub fn once<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut out = Vec::new();
    for name in names {
        if !out.contains(name) {
            out.push(name.clone());
        }
    }
    out
}

/// Columns as SQL, each with what goes before it.
pub fn listed(columns: &[String], qualifier: &str) -> String {
    let all: Vec<String> = columns.iter().map(|c| format!("{qualifier}{}", ident(c))).collect();
    all.join(", ")
}

/// A sharding key of a cluster, as it was declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardingRule {
    /// Schema of the one table it holds for; `None` for every table with the columns.
    pub schema_name: Option<String>,
    /// Name of the one table it holds for.
    pub table_name: Option<String>,
    /// The columns.
    pub column_names: Vec<String>,
    /// How their values are placed.
    pub method: Method,
}

impl ShardingRule {
    /// Whether two rules are about the same columns of the same tables.
    pub fn is_alike(&self, other: &Self) -> bool {
        let about =
            |r: &Self| (r.schema_name.clone(), r.table_name.clone(), r.column_names.clone());
        about(self) == about(other)
    }

    /// The key that it gives to tables.
    pub fn key(&self) -> ShardingKey<'_> {
        ShardingKey { columns: &self.column_names, method: self.method }
    }
}
