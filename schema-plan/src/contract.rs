//! The plan: what the planner writes and the coordinator reads.
//!
//! These types are the JSON, field by field. Changing the meaning of a field
//! raises [`CONTRACT_VERSION`]; adding a field or a kind doesn't.

use crate::Kind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of the JSON, in its field `version`.
pub const CONTRACT_VERSION: u32 = 2;

/// A dump, sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`CONTRACT_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the server that was dumped, e.g. `15.18`, from the comment
    /// at the top of the dump; none if the dump doesn't say.
    pub server_version: Option<String>,
    /// Statements to run first on every session that executes any of the
    /// others.
    pub session: Vec<String>,
    /// All statements in the order of execution.
    pub statements: Vec<Statement>,
    /// What the dump has and the plan hasn't, with the reason.
    pub left_out: Vec<LeftOut>,
}

/// One statement of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// 1..n in the order of execution: by step, and by dump order within one.
    pub ordinal: usize,
    /// Before or after the copy of the data.
    pub phase: Phase,
    /// Finer than the phase; says what may run in parallel.
    pub step: Step,
    /// What the statement does.
    pub kind: Kind,
    /// Kind of the object that it does it to: of a comment on a table, the table.
    pub object_kind: Kind,
    /// Schema of the object it makes or alters; none for objects outside of
    /// schemas.
    pub schema_name: Option<String>,
    /// The object it makes or alters, unquoted. Functions come without their
    /// arguments, casts and transforms as pg_dump names them, user mappings as
    /// `<role> SERVER <server>`.
    pub object_name: Option<String>,
    /// Schema of the relation in `table_name`.
    pub table_schema: Option<String>,
    /// The relation that it belongs to (indexes, constraints, triggers,
    /// defaults, comments on columns...); for relations with rows of their
    /// own, and views, the relation itself. The domain, of a domain's constraint.
    pub table_name: Option<String>,
    /// Plain key columns in order, for primary keys, unique and exclusion
    /// constraints and indexes; the referencing columns of foreign keys.
    /// Expressions aren't among them.
    pub columns: Vec<String>,
    /// Foreign keys only: schema of the relation in `referenced_table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referenced_schema: Option<String>,
    /// Foreign keys only: the relation that they point to. Adding one locks
    /// both relations, so those of the same pair had better not run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referenced_table: Option<String>,
    /// Foreign keys only: the columns that they point to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referenced_columns: Vec<String>,
    /// To run before the statement, and to undo after it ([`crate::reset_of`],
    /// then what `session` says of the same setting).
    /// Most statements have none.
    pub settings: Vec<String>,
    /// Text of the dump, without the semicolon at the end. A foreign key that is
    /// validated by a statement of its own has `NOT VALID` after it.
    pub sql: String,
    /// The text for people, where `sql` may hold secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
}

/// Something of the dump that the plan hasn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What the statement does.
    pub kind: Kind,
    /// As in [`Statement`].
    pub schema_name: Option<String>,
    /// As in [`Statement`].
    pub object_name: Option<String>,
    /// Why, in words for people.
    pub reason: String,
    /// Text of the dump.
    pub sql: String,
}

/// Before or after the copy of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Whatever has to be there before the data.
    Pre,
    /// What is better made after the data.
    Post,
}

/// The steps, in the order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// All of phase `pre`, one after the other.
    Pre,
    /// Primary keys, unique and exclusion constraints; in any order.
    Keys,
    /// Indexes; in any order.
    Indexes,
    /// What depends on keys and indexes, one after the other.
    Attach,
    /// Foreign keys, not validated yet; in any order.
    ForeignKeys,
    /// Validation of foreign keys; in any order.
    Validate,
    /// Everything else, one after the other.
    Rest,
}

impl Step {
    /// All steps, in the order of execution.
    pub const ALL: [Step; 7] = [
        Step::Pre,
        Step::Keys,
        Step::Indexes,
        Step::Attach,
        Step::ForeignKeys,
        Step::Validate,
        Step::Rest,
    ];

    /// The phase that the step is a part of.
    pub fn phase(self) -> Phase {
        match self {
            Step::Pre => Phase::Pre,
            _ => Phase::Post,
        }
    }

    /// The word used in plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Pre => "pre",
            Step::Keys => "keys",
            Step::Indexes => "indexes",
            Step::Attach => "attach",
            Step::ForeignKeys => "foreign_keys",
            Step::Validate => "validate",
            Step::Rest => "rest",
        }
    }

    /// True if the statements of the step don't depend on each other.
    pub fn is_parallel(self) -> bool {
        matches!(self, Step::Keys | Step::Indexes | Step::ForeignKeys | Step::Validate)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
