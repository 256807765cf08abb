//! The settings of a dump: those for the whole session, and those that hold
//! only for what follows them.

use crate::classify::{called_function, Name};
use crate::Kind;
use pg_query::protobuf::{VariableSetKind, VariableSetStmt};
use pg_query::NodeEnum;

/// Follows the SET statements of a dump.
#[derive(Debug, Default)]
pub(crate) struct Session {
    preamble: Vec<String>,
    /// Name and text of what differs from the preamble at this point.
    overrides: Vec<(String, String)>,
    started: bool,
}

impl Session {
    /// Takes a statement if it is one of settings. Tells the splitter's mode
    /// if `standard_conforming_strings` changes.
    pub(crate) fn take(&mut self, node: &NodeEnum, sql: &str) -> Taken {
        match node {
            NodeEnum::VariableSetStmt(set) => self.set(set, sql),
            NodeEnum::SelectStmt(select) => match called_function(select) {
                Some(Name { name, .. }) if name == "set_config" => {
                    // Only the search path is set this way.
                    self.put("search_path", sql);
                    Taken::Yes
                }
                _ => Taken::No,
            },
            _ => Taken::No,
        }
    }

    /// Says that a statement has been planned: what is set from now on isn't
    /// part of the preamble.
    pub(crate) fn start(&mut self) {
        self.started = true;
    }

    /// The settings that a statement of this kind needs here.
    pub(crate) fn settings_for(&self, kind: Kind) -> Vec<String> {
        self.overrides
            .iter()
            .filter(|(name, _)| !is_storage(name) || has_storage(kind))
            .map(|(_, sql)| sql.clone())
            .collect()
    }

    /// The statements to begin a session with.
    pub(crate) fn into_preamble(self) -> Vec<String> {
        self.preamble
    }

    fn set(&mut self, set: &VariableSetStmt, sql: &str) -> Taken {
        match set.kind() {
            VariableSetKind::VarReset | VariableSetKind::VarSetDefault => {
                self.overrides.retain(|(name, _)| *name != set.name);
            }
            VariableSetKind::VarResetAll => self.overrides.clear(),
            _ => self.put(&set.name, sql),
        }
        match (set.name.as_str(), first_value(set)) {
            ("standard_conforming_strings", Some(value)) => Taken::Backslashes(value == "off"),
            _ => Taken::Yes,
        }
    }

    fn put(&mut self, name: &str, sql: &str) {
        self.overrides.retain(|(other, _)| other != name);
        if is_storage(name) && !is_default_storage(sql) {
            self.overrides.push((name.to_owned(), sql.to_owned()));
        } else if is_storage(name) {
            // Said wherever a relation needs it; part of the preamble, since
            // the shard's database or role may have other defaults.
            if !self.preamble.iter().any(|line| line == sql) {
                self.preamble.push(sql.to_owned());
            }
        } else if self.preamble.iter().any(|line| line == sql) {
            // Said again, as after \connect.
        } else if self.started || is_role(name) {
            self.overrides.push((name.to_owned(), sql.to_owned()));
        } else {
            self.preamble.push(sql.to_owned());
        }
    }
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It isn't about settings.
    No,
    /// It is, and is dealt with.
    Yes,
    /// It is, and says whether plain strings know backslash escapes.
    Backslashes(bool),
}

/// pg_dump sets these two before the first relation that they concern, and
/// each time they change.
fn is_storage(name: &str) -> bool {
    name == "default_tablespace" || name == "default_table_access_method"
}

/// Who executes a statement never holds for a whole session: a plan's runner
/// goes back to being itself.
fn is_role(name: &str) -> bool {
    name == "session_authorization" || name == "role"
}

/// What a fresh session has, so that nothing needs to be set.
fn is_default_storage(sql: &str) -> bool {
    let value = sql.split('=').nth(1).map(str::trim);
    matches!(value, Some("''" | "\"\"" | "heap" | "\"heap\""))
}

fn has_storage(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Table
            | Kind::MaterializedView
            | Kind::Index
            | Kind::PrimaryKey
            | Kind::Unique
            | Kind::Exclusion
    )
}

fn first_value(set: &VariableSetStmt) -> Option<&str> {
    match set.args.first()?.node.as_ref()? {
        NodeEnum::AConst(constant) => match constant.val.as_ref()? {
            pg_query::protobuf::a_const::Val::Sval(value) => Some(&value.sval),
            _ => None,
        },
        _ => None,
    }
}
