//! Statements that make objects.

use super::names::{qualified, relation, role, texts, type_name, with_args, Name};
use super::{part, unknown, Place, Refused, Subject};
use crate::{Kind, Step};
use pg_query::protobuf::{
    CreateStmt, CreateTableAsStmt, DefineStmt, IndexElem, IndexStmt, ObjectType, TypeName,
};
use pg_query::{Node, NodeEnum};

/// Classifies a `CREATE`; none if the statement isn't one.
pub(super) fn classify(node: &NodeEnum) -> Result<Option<Subject>, Refused> {
    let in_schema = |kind, name: &[Node]| Subject::create(kind, qualified(name));
    let bare = |kind, name: &str| Subject::create(kind, Some(Name::bare(name)));
    let after = |step| Place::After(step);
    Ok(Some(match node {
        NodeEnum::CreateSchemaStmt(s) => {
            if !s.schema_elts.is_empty() {
                return unknown("schema with elements");
            }
            bare(Kind::Schema, &s.schemaname)
        }
        NodeEnum::CreateExtensionStmt(s) => bare(Kind::Extension, &s.extname),
        NodeEnum::CompositeTypeStmt(s) => {
            let name = relation(part(s.typevar.as_ref(), "type name")?);
            Subject::create(Kind::Type, Some(name))
        }
        NodeEnum::CreateEnumStmt(s) => in_schema(Kind::Type, &s.type_name),
        NodeEnum::CreateRangeStmt(s) => in_schema(Kind::Type, &s.type_name),
        NodeEnum::CreateDomainStmt(s) => in_schema(Kind::Domain, &s.domainname),
        NodeEnum::CreateFunctionStmt(s) => {
            let kind = if s.is_procedure { Kind::Procedure } else { Kind::Function };
            in_schema(kind, &s.funcname)
        }
        NodeEnum::DefineStmt(s) => define(s)?,
        NodeEnum::CreateOpClassStmt(s) => in_schema(Kind::OperatorClass, &s.opclassname),
        NodeEnum::CreateOpFamilyStmt(s) => in_schema(Kind::OperatorFamily, &s.opfamilyname),
        NodeEnum::CreateCastStmt(s) => {
            let name = cast_name(s.sourcetype.as_ref(), s.targettype.as_ref())?;
            Subject::create(Kind::Cast, Some(name))
        }
        NodeEnum::CreateTransformStmt(s) => {
            let name = transform_name(s.type_name.as_ref(), &s.lang)?;
            Subject::create(Kind::Transform, Some(name))
        }
        NodeEnum::CreateConversionStmt(s) => in_schema(Kind::Conversion, &s.conversion_name),
        NodeEnum::CreateAmStmt(s) => bare(Kind::AccessMethod, &s.amname),
        NodeEnum::CreatePlangStmt(s) => bare(Kind::Language, &s.plname),
        NodeEnum::CreateStmt(s) => table(Kind::Table, s)?,
        NodeEnum::CreateForeignTableStmt(s) => {
            let base = part(s.base_stmt.as_ref(), "columns")?;
            table(Kind::ForeignTable, base)?.hanging_on(&s.servername)
        }
        NodeEnum::CreateSeqStmt(s) => {
            let name = relation(part(s.sequence.as_ref(), "sequence name")?);
            Subject::create(Kind::Sequence, Some(name)).at(Place::BeforeData)
        }
        NodeEnum::ViewStmt(s) => {
            let name = relation(part(s.view.as_ref(), "view name")?);
            let view = Subject::create(Kind::View, Some(name.clone())).on(name);
            // pg_dump says OR REPLACE only where a view replaces the stub that
            // it made to break a circle; that is post-data by its own rules.
            match s.replace {
                true => Subject { creates: false, ..view.at(after(Step::Rest)) },
                false => view,
            }
        }
        NodeEnum::CreateTableAsStmt(s) => materialized_view(s)?,
        NodeEnum::IndexStmt(s) => index(s)?,
        NodeEnum::RuleStmt(s) => {
            let table = relation(part(s.relation.as_ref(), "relation")?);
            part_of_table(Kind::Rule, &s.rulename, table)
        }
        NodeEnum::CreateTrigStmt(s) => {
            let table = relation(part(s.relation.as_ref(), "relation")?);
            let function = part(qualified(&s.funcname), "function name")?;
            let subject = part_of_table(Kind::Trigger, &s.trigname, table);
            subject.hanging_on(&function.schema.unwrap_or_default())
        }
        NodeEnum::CreatePolicyStmt(s) => {
            let table = relation(part(s.table.as_ref(), "relation")?);
            part_of_table(Kind::Policy, &s.policy_name, table)
        }
        NodeEnum::CreateStatsStmt(s) => {
            let subject = in_schema(Kind::Statistics, &s.defnames).at(after(Step::Rest));
            match s.relations.first().and_then(|r| r.node.as_ref()) {
                Some(NodeEnum::RangeVar(range)) => subject.on(relation(range)),
                _ => return unknown("statistics without a table"),
            }
        }
        NodeEnum::CreateEventTrigStmt(s) => {
            let function = part(qualified(&s.funcname), "function name")?;
            let subject = bare(Kind::EventTrigger, &s.trigname).at(after(Step::Rest));
            subject.hanging_on(&function.schema.unwrap_or_default())
        }
        NodeEnum::CreatePublicationStmt(s) => {
            bare(Kind::Publication, &s.pubname).at(after(Step::Rest))
        }
        NodeEnum::CreateSubscriptionStmt(s) => {
            bare(Kind::Subscription, &s.subname).at(after(Step::Rest))
        }
        NodeEnum::CreateFdwStmt(s) => bare(Kind::ForeignDataWrapper, &s.fdwname),
        NodeEnum::CreateForeignServerStmt(s) => {
            bare(Kind::ForeignServer, &s.servername).hanging_on(&s.fdwname)
        }
        NodeEnum::CreateUserMappingStmt(s) => {
            let user = role(part(s.user.as_ref(), "role")?);
            let name = format!("{user} SERVER {}", s.servername);
            bare(Kind::UserMapping, &name).hanging_on(&s.servername)
        }
        NodeEnum::CreatedbStmt(s) => bare(Kind::Database, &s.dbname),
        _ => return Ok(None),
    }))
}

/// Something named within a relation, made after the data.
fn part_of_table(kind: Kind, name: &str, table: Name) -> Subject {
    Subject::create(kind, Some(table.sibling(name))).on(table).at(Place::After(Step::Rest))
}

fn table(kind: Kind, statement: &CreateStmt) -> Result<Subject, Refused> {
    let name = relation(part(statement.relation.as_ref(), "table name")?);
    Ok(Subject::create(kind, Some(name.clone())).on(name).at(Place::BeforeData))
}

fn materialized_view(statement: &CreateTableAsStmt) -> Result<Subject, Refused> {
    if statement.objtype() != ObjectType::ObjectMatview {
        return Err(Refused::Data);
    }
    let into = part(statement.into.as_ref(), "name")?;
    let name = relation(part(into.rel.as_ref(), "name")?);
    Ok(Subject {
        unfilled: into.skip_data,
        ..Subject::create(Kind::MaterializedView, Some(name.clone())).on(name)
    })
}

fn index(statement: &IndexStmt) -> Result<Subject, Refused> {
    let table = relation(part(statement.relation.as_ref(), "relation")?);
    // An index lives in the schema of its table.
    let name = table.sibling(&statement.idxname);
    let columns = plain_columns(&statement.index_params);
    let has_expressions =
        statement.where_clause.is_some() || columns.len() < statement.index_params.len();
    Ok(Subject {
        columns,
        has_expressions,
        ..Subject::create(Kind::Index, Some(name)).on(table).at(Place::After(Step::Indexes))
    })
}

/// The columns of an index that aren't expressions, in order.
pub(super) fn plain_columns(params: &[Node]) -> Vec<String> {
    params
        .iter()
        .filter_map(|param| match param.node.as_ref()? {
            NodeEnum::IndexElem(element) => plain_column(element),
            // An element of an exclusion constraint: the column, the operator.
            NodeEnum::List(pair) => match pair.items.first()?.node.as_ref()? {
                NodeEnum::IndexElem(element) => plain_column(element),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn plain_column(element: &IndexElem) -> Option<String> {
    Some(element.name.clone()).filter(|name| !name.is_empty())
}

fn define(statement: &DefineStmt) -> Result<Subject, Refused> {
    let kind = match statement.kind() {
        ObjectType::ObjectAggregate => Kind::Aggregate,
        ObjectType::ObjectOperator => Kind::Operator,
        ObjectType::ObjectType => Kind::Type,
        ObjectType::ObjectCollation => Kind::Collation,
        ObjectType::ObjectTsparser => Kind::TextSearchParser,
        ObjectType::ObjectTsdictionary => Kind::TextSearchDictionary,
        ObjectType::ObjectTstemplate => Kind::TextSearchTemplate,
        ObjectType::ObjectTsconfiguration => Kind::TextSearchConfiguration,
        other => return unknown(format!("{other:?}")),
    };
    Ok(Subject::create(kind, qualified(&statement.defnames)))
}

/// `(source AS target)`, as pg_dump names casts.
pub(super) fn cast_name(
    source: Option<&TypeName>,
    target: Option<&TypeName>,
) -> Result<Name, Refused> {
    let source = part(source.and_then(type_name), "source type")?;
    let target = part(target.and_then(type_name), "target type")?;
    Ok(Name::bare(&format!("({} AS {})", dotted(&source), dotted(&target))))
}

/// `FOR type LANGUAGE language`.
pub(super) fn transform_name(of: Option<&TypeName>, language: &str) -> Result<Name, Refused> {
    let of = part(of.and_then(type_name), "type")?;
    Ok(Name::bare(&format!("FOR {} LANGUAGE {language}", dotted(&of))))
}

fn dotted(name: &Name) -> String {
    match name.schema.as_deref() {
        None | Some("pg_catalog") => name.name.clone(),
        Some(schema) => format!("{schema}.{}", name.name),
    }
}

/// Names of a key constraint's columns.
pub(super) fn key_columns(keys: &[Node]) -> Vec<String> {
    texts(keys)
}

/// The name of a function given with its arguments.
pub(super) fn routine_name(node: &Node) -> Option<Name> {
    match node.node.as_ref()? {
        NodeEnum::ObjectWithArgs(object) => with_args(object),
        _ => None,
    }
}
