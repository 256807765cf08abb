//! What of a dump doesn't come along, and why.

use crate::classify::{Name, Place, Subject};
use crate::Kind;
use std::collections::HashSet;

/// Name of the extension, of its schema and of its foreign data wrapper.
const EXTENSION: &str = "reshard";
/// How the objects that a migration makes are called.
const PREFIX: &str = "reshard_";
/// How the indexes are called that it builds for replica identities.
const IDENTITY_PREFIX: &str = "reshard_identity_";

/// Choices of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Plan the user's publications, which are left out otherwise.
    pub with_publications: bool,
    /// Leave out `OWNER TO`.
    pub no_owner: bool,
    /// Leave out `GRANT`, `REVOKE` and `ALTER DEFAULT PRIVILEGES`.
    pub no_privileges: bool,
}

/// Decides statement by statement; remembers what later ones hang on.
pub(crate) struct Rules {
    options: Options,
    /// Foreign servers that stand for shards.
    shards: HashSet<String>,
    /// Triggers, with their relations, and event triggers of migrations.
    triggers: HashSet<(Option<Name>, String)>,
    /// Views that read the extension's tables.
    views: HashSet<Name>,
}

impl Rules {
    pub(crate) fn new(options: Options) -> Self {
        Rules { options, shards: HashSet::new(), triggers: HashSet::new(), views: HashSet::new() }
    }

    /// Why the statement is left out; none if it isn't. `reads` are the
    /// relations that a view reads.
    pub(crate) fn reason(&mut self, subject: &Subject, reads: &[Name]) -> Option<&'static str> {
        self.by_object(subject)
            .or_else(|| self.by_relation(subject, reads))
            .or_else(|| self.by_option(subject.kind))
    }

    fn by_object(&mut self, subject: &Subject) -> Option<&'static str> {
        let name = subject.name.as_ref().map_or("", |name| &name.name);
        let schema = subject.name.as_ref().and_then(|name| name.schema.as_deref());
        let of = subject.of.as_deref();
        let in_ours = schema == Some(EXTENSION)
            || subject
                .table
                .as_ref()
                .is_some_and(|table| table.schema.as_deref() == Some(EXTENSION));
        let index = match &subject.place {
            Place::WithIndex(index) => index.name.as_str(),
            _ if subject.object == Kind::Index => name,
            _ => "",
        };
        match subject.object {
            _ if index.starts_with(IDENTITY_PREFIX) => Some("made by a migration"),
            Kind::Subscription => {
                Some("subscriptions belong to the source: on a shard it would receive the same changes again")
            }
            Kind::LargeObject => Some("large objects have no sharding key and can't be replicated"),
            Kind::Database => Some("the shard's database exists already"),
            Kind::StatisticsData => Some("the source's planner statistics don't hold for a shard's rows"),
            Kind::Extension if name == EXTENSION => Some("shards don't need the extension"),
            Kind::Schema if name == EXTENSION => Some("schema of the extension"),
            _ if in_ours => Some("in the schema of the extension"),
            _ if subject.kind == Kind::ExtensionDependence && of == Some(EXTENSION) => {
                Some("shards don't need the extension")
            }
            Kind::ForeignDataWrapper if name == EXTENSION => {
                Some("foreign data wrapper of the extension")
            }
            Kind::ForeignServer if of == Some(EXTENSION) => {
                self.shards.insert(name.to_owned());
                Some("declares a shard")
            }
            Kind::ForeignServer if self.shards.contains(name) => Some("declares a shard"),
            Kind::UserMapping | Kind::ForeignTable
                if of.is_some_and(|server| self.shards.contains(server)) =>
            {
                Some("belongs to a server that declares a shard")
            }
            Kind::Publication if name.starts_with(PREFIX) => Some("made by a migration"),
            // Some have names that make them fire last, so the name alone
            // doesn't tell; those that say more of a trigger say only its name.
            Kind::Trigger | Kind::EventTrigger => {
                let trigger = (subject.table.clone(), name.to_owned());
                if of == Some(EXTENSION) {
                    self.triggers.insert(trigger.clone());
                }
                let ours = name.starts_with(PREFIX) || self.triggers.contains(&trigger);
                ours.then_some("made by a migration")
            }
            // Its functions are members, so a dump has just their privileges.
            // What a user calls reshard_... elsewhere is the user's.
            Kind::Function | Kind::Procedure
                if schema == Some("pg_catalog") && name.starts_with(PREFIX) =>
            {
                Some("function of the extension")
            }
            Kind::Publication if !self.options.with_publications => {
                Some("publications belong to the source; option --with-publications takes them along")
            }
            _ => None,
        }
    }

    fn by_relation(&mut self, subject: &Subject, reads: &[Name]) -> Option<&'static str> {
        let table = subject.table.as_ref()?;
        let is_ours =
            |name: &Name| name.schema.as_deref() == Some(EXTENSION) || self.views.contains(name);
        if !is_ours(table) && !reads.iter().any(is_ours) {
            return None;
        }
        self.views.insert(table.clone());
        Some("reads what the extension has on the source only")
    }

    fn by_option(&self, kind: Kind) -> Option<&'static str> {
        match kind {
            Kind::Owner if self.options.no_owner => Some("option --no-owner"),
            Kind::Grant | Kind::DefaultPrivileges if self.options.no_privileges => {
                Some("option --no-privileges")
            }
            _ => None,
        }
    }
}
