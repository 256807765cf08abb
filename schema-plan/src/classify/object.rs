//! The object that a COMMENT, SECURITY LABEL, OWNER TO, GRANT or DEPENDS ON
//! is about.

use super::create::{cast_name, routine_name, transform_name};
use super::names::{list, qualified, relation, text, type_name, Name};
use super::{part, unknown, Place, Refused, Subject};
use crate::{Kind, Step};
use pg_query::protobuf::{GrantStmt, ObjectType, RangeVar, TypeName};
use pg_query::{Node, NodeEnum};

/// The object named by a node, as the grammar puts it for its type.
pub(super) fn of_node(objtype: ObjectType, node: Option<&Node>) -> Result<Subject, Refused> {
    let node = part(node, "object")?;
    let kind = kind_of(objtype)?;
    match objtype {
        ObjectType::ObjectColumn => {
            let (table, column) = part(within(node), "column name")?;
            Ok(Subject::new(kind, Some(table.sibling(&column))).on(table))
        }
        ObjectType::ObjectTabconstraint => {
            let (table, name) = part(within(node), "constraint name")?;
            Ok(Subject::new(kind, Some(table.sibling(&name)))
                .on(table.clone())
                .at(Place::WithConstraint(table, name)))
        }
        ObjectType::ObjectRule | ObjectType::ObjectTrigger | ObjectType::ObjectPolicy => {
            let (table, name) = part(within(node), "name")?;
            Ok(Subject::new(kind, Some(table.sibling(&name)))
                .on(table)
                .at(Place::MovedTo(Step::Rest)))
        }
        ObjectType::ObjectIndex => {
            let name = part(any_name(node), "index name")?;
            Ok(Subject::new(kind, Some(name.clone())).at(Place::WithIndex(name)))
        }
        ObjectType::ObjectStatisticExt
        | ObjectType::ObjectEventTrigger
        | ObjectType::ObjectPublication
        | ObjectType::ObjectSubscription => {
            let name = part(any_name(node), "name")?;
            Ok(Subject::new(kind, Some(name)).at(Place::MovedTo(Step::Rest)))
        }
        ObjectType::ObjectDomconstraint => match list(node) {
            Some([domain, name]) => {
                let domain = part(any_name(domain), "domain name")?;
                let name = part(text(name), "constraint name")?;
                Ok(Subject::new(kind, Some(domain.sibling(name))).on(domain))
            }
            _ => unknown("domain constraint"),
        },
        ObjectType::ObjectCast => match list(node) {
            Some([source, target]) => {
                let name = cast_name(as_type(source), as_type(target))?;
                Ok(Subject::new(kind, Some(name)))
            }
            _ => unknown("cast"),
        },
        ObjectType::ObjectTransform => match list(node) {
            Some([of, language]) => {
                let language = part(text(language), "language")?;
                let name = transform_name(as_type(of), language)?;
                Ok(Subject::new(kind, Some(name)))
            }
            _ => unknown("transform"),
        },
        // The access method comes before the name.
        ObjectType::ObjectOpclass | ObjectType::ObjectOpfamily => {
            let name = list(node).and_then(|items| qualified(items.get(1..)?));
            Ok(Subject::new(kind, Some(part(name, "name")?)))
        }
        _ => {
            let name = part(any_name(node), "object name")?;
            let subject = Subject::new(kind, Some(name.clone()));
            Ok(match kind {
                Kind::Table | Kind::View | Kind::MaterializedView | Kind::ForeignTable => {
                    subject.on(name)
                }
                _ => subject,
            })
        }
    }
}

/// The object of a statement that names relations apart from other objects.
pub(super) fn of_relation_or_node(
    objtype: ObjectType,
    range: Option<&RangeVar>,
    node: Option<&Node>,
) -> Result<Subject, Refused> {
    let Some(range) = range else {
        return of_node(objtype, node);
    };
    let table = relation(range);
    let kind = kind_of(objtype)?;
    match (objtype, node) {
        (ObjectType::ObjectIndex, _) => {
            Ok(Subject::new(kind, Some(table.clone())).at(Place::WithIndex(table)))
        }
        (ObjectType::ObjectTrigger, Some(name)) => {
            let name = part(any_name(name), "trigger name")?;
            Ok(Subject::new(kind, Some(table.sibling(&name.name)))
                .on(table)
                .at(Place::MovedTo(Step::Rest)))
        }
        _ => Ok(Subject::new(kind, Some(table.clone())).on(table)),
    }
}

/// The object of a GRANT or REVOKE.
pub(super) fn of_grant(grant: &GrantStmt) -> Result<Subject, Refused> {
    let [object] = grant.objects.as_slice() else {
        return unknown("grant on several objects");
    };
    let kind = kind_of(grant.objtype())?;
    let subject = match object.node.as_ref() {
        Some(NodeEnum::RangeVar(range)) => {
            let name = relation(range);
            let subject = Subject::new(kind, Some(name.clone()));
            match kind {
                Kind::Sequence => subject,
                _ => subject.on(name),
            }
        }
        Some(NodeEnum::Integer(_) | NodeEnum::Float(_)) => Subject::new(kind, large_object(object)),
        _ => Subject::new(kind, Some(part(any_name(object), "object name")?)),
    };
    // pg_dump puts all privileges last, after the whole of the schema.
    Ok(subject.doing(Kind::Grant).at(Place::MovedTo(Step::Rest)))
}

/// A name in any of the shapes that the grammar has for it.
fn any_name(node: &Node) -> Option<Name> {
    match node.node.as_ref()? {
        NodeEnum::String(string) => Some(Name::bare(&string.sval)),
        NodeEnum::List(list) => qualified(&list.items),
        NodeEnum::TypeName(name) => type_name(name),
        NodeEnum::RangeVar(range) => Some(relation(range)),
        NodeEnum::ObjectWithArgs(_) => routine_name(node),
        NodeEnum::Integer(_) | NodeEnum::Float(_) => large_object(node),
        _ => None,
    }
}

/// `[schema.]relation.part`.
fn within(node: &Node) -> Option<(Name, String)> {
    let items = list(node)?;
    let (last, table) = items.split_last()?;
    Some((qualified(table)?, text(last)?.to_owned()))
}

fn as_type(node: &Node) -> Option<&TypeName> {
    match node.node.as_ref()? {
        NodeEnum::TypeName(name) => Some(name),
        _ => None,
    }
}

/// Large objects have numbers; those above 2^31 come as text.
fn large_object(node: &Node) -> Option<Name> {
    match node.node.as_ref()? {
        NodeEnum::Integer(number) => Some(Name::bare(&number.ival.to_string())),
        NodeEnum::Float(number) => Some(Name::bare(&number.fval)),
        _ => None,
    }
}

/// Our word for Postgres' object type.
pub(super) fn kind_of(objtype: ObjectType) -> Result<Kind, Refused> {
    Ok(match objtype {
        ObjectType::ObjectAccessMethod => Kind::AccessMethod,
        ObjectType::ObjectAggregate => Kind::Aggregate,
        ObjectType::ObjectCast => Kind::Cast,
        ObjectType::ObjectCollation => Kind::Collation,
        ObjectType::ObjectColumn => Kind::Column,
        ObjectType::ObjectConversion => Kind::Conversion,
        ObjectType::ObjectDatabase => Kind::Database,
        ObjectType::ObjectDomain => Kind::Domain,
        ObjectType::ObjectDomconstraint | ObjectType::ObjectTabconstraint => Kind::Constraint,
        ObjectType::ObjectEventTrigger => Kind::EventTrigger,
        ObjectType::ObjectExtension => Kind::Extension,
        ObjectType::ObjectFdw => Kind::ForeignDataWrapper,
        ObjectType::ObjectForeignServer => Kind::ForeignServer,
        ObjectType::ObjectForeignTable => Kind::ForeignTable,
        ObjectType::ObjectFunction | ObjectType::ObjectRoutine => Kind::Function,
        ObjectType::ObjectIndex => Kind::Index,
        ObjectType::ObjectLanguage => Kind::Language,
        ObjectType::ObjectLargeobject => Kind::LargeObject,
        ObjectType::ObjectMatview => Kind::MaterializedView,
        ObjectType::ObjectOpclass => Kind::OperatorClass,
        ObjectType::ObjectOperator => Kind::Operator,
        ObjectType::ObjectOpfamily => Kind::OperatorFamily,
        ObjectType::ObjectParameterAcl => Kind::Parameter,
        ObjectType::ObjectPolicy => Kind::Policy,
        ObjectType::ObjectProcedure => Kind::Procedure,
        ObjectType::ObjectPublication => Kind::Publication,
        ObjectType::ObjectRole => Kind::Role,
        ObjectType::ObjectRule => Kind::Rule,
        ObjectType::ObjectSchema => Kind::Schema,
        ObjectType::ObjectSequence => Kind::Sequence,
        ObjectType::ObjectStatisticExt => Kind::Statistics,
        ObjectType::ObjectSubscription => Kind::Subscription,
        ObjectType::ObjectTable => Kind::Table,
        ObjectType::ObjectTablespace => Kind::Tablespace,
        ObjectType::ObjectTransform => Kind::Transform,
        ObjectType::ObjectTrigger => Kind::Trigger,
        ObjectType::ObjectTsconfiguration => Kind::TextSearchConfiguration,
        ObjectType::ObjectTsdictionary => Kind::TextSearchDictionary,
        ObjectType::ObjectTsparser => Kind::TextSearchParser,
        ObjectType::ObjectTstemplate => Kind::TextSearchTemplate,
        ObjectType::ObjectType => Kind::Type,
        ObjectType::ObjectView => Kind::View,
        other => return unknown(format!("{other:?}")),
    })
}
