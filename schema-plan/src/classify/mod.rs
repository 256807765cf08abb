//! Says what a statement does, what it does it to, and where in the order it
//! may stand, by its parse tree.
//!
//! One function per family of statements; nothing here knows of statements
//! other than the one at hand.

mod alter;
mod alter_table;
mod create;
mod names;
mod object;

use crate::{Kind, Step};
pub(crate) use alter::called_function;
pub(crate) use names::Name;
use pg_query::NodeEnum;

/// Where a statement may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the data if the dump has it before all keys and indexes, else in
    /// step `rest`.
    AsDumped,
    /// Has to come before the data.
    BeforeData,
    /// In this step of phase `post`, and the rest of the dump after it is
    /// `post` as well.
    After(Step),
    /// In this step, without saying anything about the rest of the dump.
    MovedTo(Step),
    /// After the index (also of a constraint) of this name.
    WithIndex(Name),
    /// After the constraint `.1` of the relation `.0`.
    WithConstraint(Name, String),
}

/// A statement, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// What the statement does.
    pub kind: Kind,
    /// Kind of the object that it does it to.
    pub object: Kind,
    pub name: Option<Name>,
    /// The relation that the object belongs to.
    pub table: Option<Name>,
    pub columns: Vec<String>,
    /// What a foreign key points to.
    pub referenced: Option<(Name, Vec<String>)>,
    pub place: Place,
    /// What it is made of or hangs on, where a reason to leave it out may lie:
    /// the wrapper of a server, the server of a user mapping or foreign table,
    /// the schema of a trigger's function.
    pub of: Option<String>,
    /// A `CREATE` whose object may be asked for later.
    pub creates: bool,
    /// An index or constraint that may call functions.
    pub has_expressions: bool,
    /// A materialized view without its rows.
    pub unfilled: bool,
    /// A foreign key that can be added first and validated afterwards.
    pub validated_apart: bool,
}

impl Subject {
    fn new(kind: Kind, name: Option<Name>) -> Self {
        Subject {
            kind,
            object: kind,
            name,
            table: None,
            columns: Vec::new(),
            referenced: None,
            place: Place::AsDumped,
            of: None,
            creates: false,
            has_expressions: false,
            unfilled: false,
            validated_apart: false,
        }
    }

    fn create(kind: Kind, name: Option<Name>) -> Self {
        Subject { creates: true, ..Subject::new(kind, name) }
    }

    /// Something done to a whole relation.
    pub(crate) fn of_relation(kind: Kind, object: Kind, relation: Name) -> Self {
        Subject { object, table: Some(relation.clone()), ..Subject::new(kind, Some(relation)) }
    }

    fn on(mut self, table: Name) -> Self {
        self.table = Some(table);
        self
    }

    fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    fn hanging_on(mut self, of: &str) -> Self {
        self.of = Some(of.to_owned());
        self
    }

    /// The same object, but another thing done to it.
    fn doing(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self.creates = false;
        self
    }
}

/// Why a statement can't be classified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not known; says which part of it.
    Unknown(String),
    /// It writes rows or sequence values.
    Data,
}

/// Shorthand for results of this module.
pub(crate) type Classified = Result<Subject, Refused>;

fn unknown<T>(what: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Unknown(what.into()))
}

/// An absent part that the grammar always gives.
fn part<T>(part: Option<T>, what: &str) -> Result<T, Refused> {
    part.ok_or_else(|| Refused::Unknown(format!("no {what}")))
}

/// Classifies one statement.
pub(crate) fn classify(node: &NodeEnum) -> Classified {
    if let Some(subject) = create::classify(node)? {
        return Ok(subject);
    }
    if let Some(subject) = alter::classify(node)? {
        return Ok(subject);
    }
    match node {
        NodeEnum::InsertStmt(_) | NodeEnum::CopyStmt(_) => Err(Refused::Data),
        other => {
            // The name of the node, without its content.
            let debug = format!("{other:?}");
            let name = debug.split(['(', ' ']).next().unwrap_or_default();
            unknown(name)
        }
    }
}
