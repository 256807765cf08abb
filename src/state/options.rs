//! Choices of one run: the last argument of starting verbs.
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a table gets a replica identity that holds its sharding key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// An existing unique index that holds the key, else FULL.
    #[default]
    Auto,
    /// FULL wherever the identity does not hold the key.
    Full,
}

/// The options of a task. Those that a user may write are listed in [`KNOWN`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// See [`ReplicaIdentity`].
    #[serde(default)]
    pub replica_identity: ReplicaIdentity,
    /// Leave owners out of the schema on the shards.
    #[serde(default)]
    pub no_owner: bool,
    /// Switch traffic as soon as every flow is close.
    #[serde(default)]
    pub auto_cutover: bool,
    /// Base name of an existing slot to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_name: Option<String>,
    /// Phase of a schema sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_phase: Option<String>,
    /// Plan the schema, run nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Keys that a user may write.
const KNOWN: &[&str] = &["replica_identity", "no_owner"];

impl Options {
    /// Reads a verb's last argument.
    ///
    /// # Errors
    /// 22023 for an unknown key, with the known ones, or an unknown value.
    pub fn from_user(value: serde_json::Value) -> Result<Self> {
        let serde_json::Value::Object(map) = &value else {
            return Err(Error::argument("options must be a JSON object"));
        };
        if let Some(unknown) = map.keys().find(|k| !KNOWN.contains(&k.as_str())) {
            return Err(Error::argument(format!("unknown option \"{unknown}\""))
                .hint(format!("Options are {}.", KNOWN.join(", "))));
        }
        serde_json::from_value(value)
            .map_err(|error| Error::argument("invalid option").detail(format!("{error}.")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn unknown_options_are_named_with_the_known_ones() {
        let error = Options::from_user(serde_json::json!({"nonsense": 1})).unwrap_err();
        assert_eq!(error.message, "unknown option \"nonsense\"");
        assert!(error.hint.unwrap().contains("replica_identity"));
    }

    #[test]
    fn wrong_values_are_refused() {
        assert!(Options::from_user(serde_json::json!({"replica_identity": "bad"})).is_err());
        let options = Options::from_user(serde_json::json!({"replica_identity": "full"})).unwrap();
        assert_eq!(options.replica_identity, ReplicaIdentity::Full);
    }
}
