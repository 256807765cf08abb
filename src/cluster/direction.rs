//! Which way changes go between the two clusters of a migration.
use serde::{Deserialize, Serialize};

/// Which way changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the source cluster to the destination cluster.
    Forward,
    /// From the destination cluster back to the source cluster.
    Reverse,
}

impl Direction {
    /// As it stands in state tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
        }
    }

    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }

    /// The cluster that changes come from.
    pub fn publisher(self) -> Side {
        match self {
            Self::Forward => Side::Source,
            Self::Reverse => Side::Destination,
        }
    }

    /// The cluster that changes go to.
    pub fn subscriber(self) -> Side {
        self.opposite().publisher()
    }
}

/// One of the two clusters of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The source cluster.
    Source,
    /// The destination cluster.
    Destination,
}
