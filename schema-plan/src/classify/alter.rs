//! Statements that change objects, other than ALTER TABLE.

use super::names::{list, qualified, relation, text, Name};
use super::object::{of_grant, of_node, of_relation_or_node};
use super::{alter_table, part, unknown, Classified, Place, Refused, Subject};
use crate::{Kind, Step};
use pg_query::protobuf::{
    AlterDefaultPrivilegesStmt, AlterDomainStmt, AlterSeqStmt, DefElem, ObjectType, SelectStmt,
};
use pg_query::{Node, NodeEnum};

/// Classifies an `ALTER`, `COMMENT`, `GRANT` and the like; none if the
/// statement isn't one.
pub(super) fn classify(node: &NodeEnum) -> Result<Option<Subject>, Refused> {
    let bare = |kind, name: &str| Subject::new(kind, Some(Name::bare(name)));
    Ok(Some(match node {
        NodeEnum::AlterTableStmt(s) => alter_table::classify(s)?,
        NodeEnum::CommentStmt(s) => of_node(s.objtype(), s.object.as_deref())?.doing(Kind::Comment),
        NodeEnum::SecLabelStmt(s) => {
            of_node(s.objtype(), s.object.as_deref())?.doing(Kind::SecurityLabel)
        }
        NodeEnum::AlterOwnerStmt(s) => {
            of_relation_or_node(s.object_type(), s.relation.as_ref(), s.object.as_deref())?
                .doing(Kind::Owner)
        }
        NodeEnum::AlterObjectDependsStmt(s) => {
            let extension = part(s.extname.as_ref(), "extension")?;
            of_relation_or_node(s.object_type(), s.relation.as_ref(), s.object.as_deref())?
                .doing(Kind::ExtensionDependence)
                .hanging_on(&extension.sval)
        }
        NodeEnum::GrantStmt(s) => of_grant(s)?,
        NodeEnum::AlterDefaultPrivilegesStmt(s) => default_privileges(s)?,
        NodeEnum::AlterSeqStmt(s) => sequence(s)?,
        NodeEnum::AlterDomainStmt(s) => domain(s)?,
        NodeEnum::AlterStatsStmt(s) => {
            Subject::new(Kind::Statistics, qualified(&s.defnames)).at(Place::MovedTo(Step::Rest))
        }
        NodeEnum::AlterOpFamilyStmt(s) if !s.is_drop => {
            Subject::new(Kind::OperatorFamily, qualified(&s.opfamilyname))
        }
        NodeEnum::AlterTsconfigurationStmt(s) => {
            Subject::new(Kind::TextSearchConfiguration, qualified(&s.cfgname))
        }
        NodeEnum::AlterEventTrigStmt(s) => {
            bare(Kind::EventTrigger, &s.trigname).at(Place::MovedTo(Step::Rest))
        }
        NodeEnum::AlterPublicationStmt(s) => {
            bare(Kind::Publication, &s.pubname).at(Place::After(Step::Rest))
        }
        NodeEnum::AlterSubscriptionStmt(s) => {
            bare(Kind::Subscription, &s.subname).at(Place::After(Step::Rest))
        }
        NodeEnum::AlterDatabaseStmt(s) => bare(Kind::Database, &s.dbname),
        NodeEnum::AlterDatabaseSetStmt(s) => bare(Kind::Database, &s.dbname),
        NodeEnum::AlterRoleSetStmt(s) if !s.database.is_empty() => {
            bare(Kind::Database, &s.database)
        }
        NodeEnum::SelectStmt(s) => function_call(s)?,
        _ => return Ok(None),
    }))
}

fn default_privileges(statement: &AlterDefaultPrivilegesStmt) -> Classified {
    let action = part(statement.action.as_ref(), "action")?;
    let objects = match action.objtype() {
        ObjectType::ObjectTable => "TABLES",
        ObjectType::ObjectSequence => "SEQUENCES",
        ObjectType::ObjectFunction | ObjectType::ObjectRoutine => "FUNCTIONS",
        ObjectType::ObjectType => "TYPES",
        ObjectType::ObjectSchema => "SCHEMAS",
        ObjectType::ObjectLargeobject => "LARGE OBJECTS",
        other => return unknown(format!("default privileges of {other:?}")),
    };
    let schemas = option(&statement.options, "schemas").and_then(list).unwrap_or_default();
    let schema = match schemas {
        [] => None,
        [one] => text(one).map(str::to_owned),
        _ => return unknown("default privileges in several schemas"),
    };
    let name = Name { schema, name: objects.to_owned() };
    // They would also apply to whatever is made after them.
    Ok(Subject::new(Kind::DefaultPrivileges, Some(name)).at(Place::MovedTo(Step::Rest)))
}

fn sequence(statement: &AlterSeqStmt) -> Classified {
    let name = relation(part(statement.sequence.as_ref(), "sequence name")?);
    let subject = Subject::new(Kind::Sequence, Some(name));
    let owner = option(&statement.options, "owned_by").and_then(list);
    // schema.table.column, or NONE
    match owner.and_then(|column| column.split_last()).and_then(|(_, table)| qualified(table)) {
        Some(table) => Ok(subject.on(table)),
        None => Ok(subject),
    }
}

fn domain(statement: &AlterDomainStmt) -> Classified {
    // 'C' is ADD CONSTRAINT (parsenodes.h)
    let (subtype, def) = (statement.subtype.as_str(), statement.def.as_deref());
    let Some(("C", Some(NodeEnum::Constraint(constraint)))) =
        Some((subtype, def.and_then(|def| def.node.as_ref())))
    else {
        return unknown(format!("ALTER DOMAIN subtype \"{subtype}\""));
    };
    let domain = part(qualified(&statement.type_name), "domain name")?;
    Ok(Subject::create(Kind::Check, Some(domain.sibling(&constraint.conname)))
        .on(domain)
        .at(Place::After(Step::Rest)))
}

/// The few functions that pg_dump calls.
fn function_call(statement: &SelectStmt) -> Classified {
    let name = part(called_function(statement), "function call")?;
    match name.name.as_str() {
        "setval" => Err(Refused::Data),
        "lo_create" | "lo_open" | "lo_close" | "lowrite" | "lo_unlink" => {
            Ok(Subject::new(Kind::LargeObject, None))
        }
        "pg_restore_relation_stats"
        | "pg_restore_attribute_stats"
        | "pg_restore_extended_stats"
        | "pg_clear_relation_stats"
        | "pg_clear_attribute_stats" => Ok(Subject::new(Kind::StatisticsData, None)),
        _ => unknown(format!("function {}", name.name)),
    }
}

/// The one function that a `SELECT f(...)` or `SELECT * FROM f(...)` calls.
pub(crate) fn called_function(statement: &SelectStmt) -> Option<Name> {
    let call = match (statement.target_list.as_slice(), statement.from_clause.as_slice()) {
        ([target], []) => match target.node.as_ref()? {
            NodeEnum::ResTarget(target) => target.val.as_ref()?.node.as_ref()?,
            _ => return None,
        },
        ([_], [from]) => match from.node.as_ref()? {
            // A list of the function and its column definitions.
            NodeEnum::RangeFunction(range) => {
                list(range.functions.first()?)?.first()?.node.as_ref()?
            }
            _ => return None,
        },
        _ => return None,
    };
    match call {
        NodeEnum::FuncCall(call) => qualified(&call.funcname),
        _ => None,
    }
}

fn option<'a>(options: &'a [Node], name: &str) -> Option<&'a Node> {
    options.iter().find_map(|option| match option.node.as_ref()? {
        NodeEnum::DefElem(element) if element.defname == name => argument(element),
        _ => None,
    })
}

fn argument(element: &DefElem) -> Option<&Node> {
    element.arg.as_deref()
}
