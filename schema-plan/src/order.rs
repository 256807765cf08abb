//! Puts statements into steps.
//!
//! The order of pg_dump carries the dependencies: nothing leaves it except
//! into a step that is known to be independent of what it jumps over. Where
//! pg_dump itself had to put a function, view or materialized view after the
//! keys (because it needs a primary key: `GROUP BY` of it, say), whatever
//! stands on that object follows it into step `rest`. Where even a table
//! stands on such an object, pg_dump warns of its own order; then the object
//! and what it needs is made before the data as well.

use crate::classify::{Name, Place, Subject};
use crate::{Kind, Step};
use std::collections::{HashMap, HashSet};

/// Follows a dump in its order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The dump has come to what pg_dump calls post-data.
    post: bool,
    /// Views and materialized views made in step `rest`.
    late_relations: HashSet<Name>,
    /// How statements call the other objects made in step `rest`.
    late_spellings: Vec<String>,
    /// Indexes, also those of constraints: relation and step.
    indexes: HashMap<Name, (Option<Name>, Step)>,
    /// Constraints of relations: step.
    constraints: HashMap<(Name, String), Step>,
}

impl Order {
    /// True if the statement has to come before the data, but the dump has put
    /// it after keys and indexes.
    pub(crate) fn is_out_of_order(&self, subject: &Subject) -> bool {
        self.post && subject.place == Place::BeforeData
    }

    /// Says that all that [`is_movable`] so far has been moved before the data.
    pub(crate) fn restart(&mut self) {
        self.post = false;
        self.late_relations.clear();
        self.late_spellings.clear();
        self.indexes.values_mut().for_each(|(_, step)| *step = Step::Pre);
    }

    /// The step of the next statement of the dump. Fills in the relation of
    /// statements that name an index only.
    pub(crate) fn place(&mut self, subject: &mut Subject, sql: &str) -> Step {
        let step = match &subject.place {
            Place::AsDumped if self.post => Step::Rest,
            Place::AsDumped => Step::Pre,
            Place::BeforeData => Step::Pre,
            Place::MovedTo(step) => self.unless_late(*step, subject, sql),
            Place::After(step) => {
                self.post = true;
                self.unless_late(*step, subject, sql)
            }
            Place::WithIndex(index) => {
                if subject.table.is_none() {
                    subject.table = self.indexes.get(index).and_then(|(table, _)| table.clone());
                }
                // Attaching an index needs both, the parent and the child.
                let parent = subject.name.as_ref().filter(|_| subject.kind == Kind::IndexAttach);
                if self.is_late(index) || parent.is_some_and(|parent| self.is_late(parent)) {
                    Step::Rest
                } else {
                    Step::Attach
                }
            }
            Place::WithConstraint(table, name) => {
                match self.constraints.get(&(table.clone(), name.clone())) {
                    Some(Step::Keys) => Step::Attach,
                    Some(_) => Step::Rest,
                    // Made with its table.
                    None if self.post => Step::Rest,
                    None => Step::Pre,
                }
            }
        };
        if subject.creates {
            self.remember(subject, step);
        }
        step
    }

    fn is_late(&self, index: &Name) -> bool {
        matches!(self.indexes.get(index), Some((_, Step::Rest)))
    }

    fn unless_late(&self, step: Step, subject: &Subject, sql: &str) -> Step {
        let late_table =
            subject.table.as_ref().is_some_and(|table| self.late_relations.contains(table));
        // A name that only looks the same costs no more than a place in the
        // sequence, since nothing else can need an index with expressions.
        let calls_late = subject.has_expressions
            && self.late_spellings.iter().any(|name| sql.contains(name.as_str()));
        if late_table || calls_late {
            Step::Rest
        } else {
            step
        }
    }

    fn remember(&mut self, subject: &Subject, step: Step) {
        let Some(name) = &subject.name else {
            return;
        };
        match subject.kind {
            Kind::Index | Kind::PrimaryKey | Kind::Unique | Kind::Exclusion => {
                self.indexes.insert(name.clone(), (subject.table.clone(), step));
            }
            Kind::View | Kind::MaterializedView if step == Step::Rest => {
                self.late_relations.insert(name.clone());
            }
            Kind::Function
            | Kind::Procedure
            | Kind::Aggregate
            | Kind::Operator
            | Kind::OperatorClass
            | Kind::OperatorFamily
            | Kind::Type
            | Kind::Domain
            | Kind::Collation
            | Kind::Cast
                if step == Step::Rest =>
            {
                self.late_spellings.extend(spellings(name));
            }
            _ => {}
        }
        if let (Some(table), true) = (&subject.table, is_constraint(subject.kind)) {
            self.constraints.insert((table.clone(), name.name.clone()), step);
        }
    }
}

/// True if a statement may be moved before the data together with those before
/// it: it makes, alters or describes something that a table may stand on.
pub(crate) fn is_movable(subject: &Subject) -> bool {
    match &subject.place {
        Place::AsDumped | Place::BeforeData => true,
        Place::After(step) => matches!(step, Step::Keys | Step::Indexes),
        Place::WithIndex(_) | Place::WithConstraint(..) => true,
        Place::MovedTo(_) => false,
    }
}

fn is_constraint(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::PrimaryKey
            | Kind::Unique
            | Kind::Exclusion
            | Kind::ForeignKey
            | Kind::Check
            | Kind::NotNull
    )
}

/// `schema.name` with and without quotes, since which of the two a dump has
/// depends on the keywords of its server.
fn spellings(name: &Name) -> Vec<String> {
    let forms = |part: &str| [part.to_owned(), format!("\"{}\"", part.replace('"', "\"\""))];
    let names = forms(&name.name);
    match &name.schema {
        None => names.to_vec(),
        Some(schema) => forms(schema)
            .iter()
            .flat_map(|schema| names.iter().map(move |name| format!("{schema}.{name}")))
            .collect(),
    }
}
