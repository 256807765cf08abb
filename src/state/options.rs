//! Choices of one run: the last argument of starting verbs.
use serde::{Deserialize, Serialize};

use crate::cluster::staying::Staying;
use crate::error::{Error, Result};

/// How a table gets a replica identity that holds its sharding key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// An existing unique index that holds the key, else FULL.
    #[default]
    Auto,
    /// An existing unique index that holds the key, else one that is built for the
    /// time of the run, else FULL.
    Index,
    /// FULL wherever the identity does not hold the key.
    Full,
}

/// What numbers the sequences of sharded tables hand out after a switch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequencePolicy {
    /// Shard d of M hands out every M-th value, beginning d values later.
    #[default]
    Interleave,
    /// Each shard has a range of its own.
    Blocks,
    /// They are left as they are.
    Untouched,
}

/// What becomes of foreign keys that don't hold on each shard by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForeignKeys {
    /// They refuse the run.
    #[default]
    Error,
    /// The shards get them NOT VALID.
    NotValid,
    /// The shards don't get them.
    Skip,
}

/// What of the source's schema comes to the shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaScope {
    /// All of the database.
    #[default]
    Database,
    /// The tables of the publication and what they depend on.
    Publication,
}

/// What becomes of DDL on tables of a running migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ddl {
    /// It fails.
    #[default]
    Block,
    /// Additive changes are brought to the shards in the stream of changes; all
    /// else fails.
    Replay,
    /// It is written down.
    Allow,
}

impl Ddl {
    /// As it stands in state tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Replay => "replay",
            Self::Allow => "allow",
        }
    }
}

/// How the copies of omni tables are compared that a source of several shards has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OmniCheck {
    /// All of their rows.
    #[default]
    Whole,
    /// Some of their rows.
    Sample,
}

/// A constraint of a table, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// Schema of its table.
    pub schema_name: String,
    /// Its table.
    pub table_name: String,
    /// Its name.
    pub name: String,
}

/// The options of a task. Those that a user may write are listed in [`KNOWN`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// See [`ReplicaIdentity`].
    #[serde(default)]
    pub replica_identity: ReplicaIdentity,
    /// See [`SequencePolicy`].
    #[serde(default)]
    pub sequences: SequencePolicy,
    /// Leave owners out of the schema on the shards.
    #[serde(default)]
    pub no_owner: bool,
    /// See [`ForeignKeys`].
    #[serde(default)]
    pub foreign_keys: ForeignKeys,
    /// See [`SchemaScope`].
    #[serde(default)]
    pub schema_scope: SchemaScope,
    /// Schemas that don't come to the shards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_schemas: Vec<String>,
    /// See [`Ddl`].
    #[serde(default)]
    pub ddl: Ddl,
    /// See [`OmniCheck`].
    #[serde(default)]
    pub omni_check: OmniCheck,
    /// Foreign keys that [`ForeignKeys`] is about, as preflight found them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfit_foreign_keys: Vec<Constraint>,
    /// Shards of the source may be shards of the destination as well: their rows stay.
    #[serde(default)]
    pub staying_shards: bool,
    /// Those that are, as preflight found them.
    #[serde(default, skip_serializing_if = "Staying::is_empty")]
    pub staying: Staying,
    /// Switch traffic as soon as every flow is close.
    #[serde(default)]
    pub auto_cutover: bool,
    /// Number of the source shard that is this database, as preflight found it.
    #[serde(default)]
    pub node: u32,
    /// Base name of an existing slot to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_name: Option<String>,
    /// Phase of a schema sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_phase: Option<String>,
    /// Plan the schema, run nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Chunks of large tables that a comparison looks at, in percent; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_percent: Option<f64>,
}

/// Keys that a user may write, with what they take.
const KNOWN: &[(&str, &str)] = &[
    ("replica_identity", "\"auto\", \"index\" or \"full\""),
    ("no_owner", "true or false"),
    ("sequences", "\"interleave\", \"blocks\" or \"untouched\""),
    ("foreign_keys", "\"error\", \"not_valid\" or \"skip\""),
    ("schema_scope", "\"database\" or \"publication\""),
    ("exclude_schemas", "an array of names"),
    ("ddl", "\"block\", \"replay\" or \"allow\""),
    ("omni_check", "\"whole\" or \"sample\""),
    ("staying_shards", "true or false"),
];

impl Options {
    /// Reads a verb's last argument.
    ///
    /// # Errors
    /// 22023 for an unknown key, with the known ones, or an unknown value.
    pub fn from_user(value: serde_json::Value) -> Result<Self> {
        let serde_json::Value::Object(map) = &value else {
            return Err(Error::argument("options must be a JSON object"));
        };
        for (key, value) in map {
            let Some((_, takes)) = KNOWN.iter().find(|(known, _)| known == key) else {
                let known: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
                return Err(Error::argument(format!("unknown option \"{key}\""))
                    .hint(format!("Options are {}.", known.join(", "))));
            };
            let alone = serde_json::json!({ (key.as_str()): value });
            if serde_json::from_value::<Self>(alone).is_err() {
                return Err(Error::argument(format!("invalid value of option \"{key}\": {value}"))
                    .hint(format!("It takes {takes}.")));
            }
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
        // What preflight writes is no choice of the user.
        assert!(Options::from_user(serde_json::json!({"unfit_foreign_keys": []})).is_err());
    }

    #[test]
    fn wrong_values_are_refused_with_the_right_ones() {
        let error = Options::from_user(serde_json::json!({"ddl": "ignore"})).unwrap_err();
        assert_eq!(error.message, "invalid value of option \"ddl\": \"ignore\"");
        assert!(error.hint.unwrap().contains("\"block\""));
        let options = Options::from_user(serde_json::json!({"replica_identity": "full"})).unwrap();
        assert_eq!(options.replica_identity, ReplicaIdentity::Full);
    }
}
