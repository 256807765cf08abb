//! ALTER TABLE, which is also how pg_dump alters indexes, views and sequences.

use super::create::{key_columns, plain_columns};
use super::names::{relation, Name};
use super::object::kind_of;
use super::{part, unknown, Classified, Place, Subject};
use crate::{Kind, Step};
use pg_query::protobuf::{
    AlterTableCmd, AlterTableStmt, AlterTableType as At, ConstrType, Constraint, ObjectType,
};
use pg_query::NodeEnum;

/// Classifies an ALTER TABLE, by its one command.
pub(super) fn classify(statement: &AlterTableStmt) -> Classified {
    let range = part(statement.relation.as_ref(), "relation")?;
    let target = relation(range);
    let [cmd] = statement.cmds.as_slice() else {
        return unknown("ALTER TABLE with several commands");
    };
    let Some(NodeEnum::AlterTableCmd(cmd)) = cmd.node.as_ref() else {
        return unknown("ALTER TABLE command");
    };
    match statement.objtype() {
        ObjectType::ObjectIndex => of_index(target, cmd),
        ObjectType::ObjectSequence => of_sequence(target, cmd),
        ObjectType::ObjectTable
        | ObjectType::ObjectView
        | ObjectType::ObjectMatview
        | ObjectType::ObjectForeignTable => {
            of_relation(target, !range.inh, statement.objtype(), cmd)
        }
        other => unknown(format!("ALTER TABLE of {other:?}")),
    }
}

fn of_index(index: Name, cmd: &AlterTableCmd) -> Classified {
    let subject = |kind| Subject { object: Kind::Index, ..Subject::new(kind, Some(index.clone())) };
    Ok(match cmd.subtype() {
        At::AtAttachPartition => {
            let child = part(attached(cmd), "index")?;
            // Parent and child have the same columns and expressions, so both
            // are made in the same step, or both late.
            subject(Kind::IndexAttach).at(Place::WithIndex(child))
        }
        At::AtSetStatistics => subject(Kind::ColumnOption).at(Place::WithIndex(index.clone())),
        At::AtChangeOwner => subject(Kind::Owner).at(Place::WithIndex(index.clone())),
        other => return unknown(format!("ALTER INDEX {other:?}")),
    })
}

fn of_sequence(sequence: Name, cmd: &AlterTableCmd) -> Classified {
    let subject = Subject::new(Kind::Sequence, Some(sequence));
    match cmd.subtype() {
        At::AtChangeOwner => Ok(subject.doing(Kind::Owner)),
        At::AtSetLogged | At::AtSetUnLogged => Ok(subject),
        other => unknown(format!("ALTER SEQUENCE {other:?}")),
    }
}

fn of_relation(table: Name, only: bool, objtype: ObjectType, cmd: &AlterTableCmd) -> Classified {
    // A part of the table (column, trigger, rule) has the command's name.
    let part_of = |kind| Subject::new(kind, Some(table.sibling(&cmd.name))).on(table.clone());
    let whole = |kind| Subject::new(kind, Some(table.clone())).on(table.clone());
    Ok(match cmd.subtype() {
        At::AtAddConstraint => return constraint(table, only, cmd),
        At::AtColumnDefault => part_of(Kind::Default),
        At::AtAddIdentity | At::AtSetIdentity => part_of(Kind::Identity).at(Place::BeforeData),
        At::AtSetNotNull => part_of(Kind::NotNull),
        At::AtSetStatistics
        | At::AtSetOptions
        | At::AtSetStorage
        | At::AtSetCompression
        | At::AtAlterColumnGenericOptions => part_of(Kind::ColumnOption),
        At::AtSetAccessMethod
        | At::AtSetRelOptions
        | At::AtSetLogged
        | At::AtSetUnLogged
        | At::AtGenericOptions => whole(Kind::TableOption),
        // pg_dump writes ALTER TABLE for the owners of all relations.
        At::AtChangeOwner => Subject { object: kind_of(objtype)?, ..whole(Kind::Owner) },
        At::AtAddInherit => whole(Kind::Inherit).at(Place::BeforeData),
        At::AtAttachPartition => {
            let child = part(attached(cmd), "partition")?;
            Subject::new(Kind::Partition, Some(child)).on(table).at(Place::BeforeData)
        }
        At::AtClusterOn => {
            let index = table.sibling(&cmd.name);
            part_of(Kind::Cluster).at(Place::WithIndex(index))
        }
        At::AtReplicaIdentity => replica_identity(table, cmd)?,
        At::AtEnableTrig | At::AtEnableAlwaysTrig | At::AtEnableReplicaTrig | At::AtDisableTrig => {
            part_of(Kind::Trigger).at(Place::MovedTo(Step::Rest))
        }
        At::AtEnableTrigAll
        | At::AtDisableTrigAll
        | At::AtEnableTrigUser
        | At::AtDisableTrigUser => whole(Kind::Trigger).at(Place::MovedTo(Step::Rest)),
        At::AtEnableRule | At::AtEnableAlwaysRule | At::AtEnableReplicaRule | At::AtDisableRule => {
            part_of(Kind::Rule).at(Place::MovedTo(Step::Rest))
        }
        At::AtEnableRowSecurity
        | At::AtDisableRowSecurity
        | At::AtForceRowSecurity
        | At::AtNoForceRowSecurity => whole(Kind::RowSecurity).at(Place::MovedTo(Step::Rest)),
        other => return unknown(format!("ALTER TABLE {other:?}")),
    })
}

fn attached(cmd: &AlterTableCmd) -> Option<Name> {
    match cmd.def.as_deref()?.node.as_ref()? {
        NodeEnum::PartitionCmd(partition) => partition.name.as_ref().map(relation),
        _ => None,
    }
}

fn replica_identity(table: Name, cmd: &AlterTableCmd) -> Classified {
    let identity = match cmd.def.as_deref().and_then(|def| def.node.as_ref()) {
        Some(NodeEnum::ReplicaIdentityStmt(identity)) => identity,
        _ => return unknown("replica identity"),
    };
    let subject = Subject::new(Kind::ReplicaIdentity, Some(table.clone())).on(table.clone());
    // 'i' is USING INDEX (pg_class.h)
    Ok(match identity.identity_type.as_str() {
        "i" => subject.at(Place::WithIndex(table.sibling(&identity.name))),
        _ => subject.at(Place::MovedTo(Step::Attach)),
    })
}

fn constraint(table: Name, only: bool, cmd: &AlterTableCmd) -> Classified {
    let Some(NodeEnum::Constraint(constraint)) =
        cmd.def.as_deref().and_then(|def| def.node.as_ref())
    else {
        return unknown("constraint");
    };
    let (kind, step) = match constraint.contype() {
        ConstrType::ConstrPrimary => (Kind::PrimaryKey, Step::Keys),
        ConstrType::ConstrUnique => (Kind::Unique, Step::Keys),
        ConstrType::ConstrExclusion => (Kind::Exclusion, Step::Keys),
        ConstrType::ConstrForeign => (Kind::ForeignKey, Step::ForeignKeys),
        // Outside of CREATE TABLE: NOT VALID ones, which old rows may violate,
        // and those that use what comes after the table.
        ConstrType::ConstrCheck => (Kind::Check, Step::Rest),
        ConstrType::ConstrNotnull => (Kind::NotNull, Step::Rest),
        other => return unknown(format!("constraint {other:?}")),
    };
    let referenced = constraint.pktable.as_ref().map(relation);
    // Before version 18 a partitioned table's, which pg_dump alters without ONLY,
    // must be valid from the start.
    let validated_apart =
        kind == Kind::ForeignKey && only && !constraint.skip_validation && constraint.is_enforced;
    Ok(Subject {
        validated_apart,
        referenced: referenced.map(|table| (table, key_columns(&constraint.pk_attrs))),
        columns: columns(constraint),
        has_expressions: kind == Kind::Exclusion,
        ..Subject::create(kind, Some(table.sibling(&constraint.conname)))
            .on(table)
            .at(Place::After(step))
    })
}

fn columns(constraint: &Constraint) -> Vec<String> {
    match constraint.contype() {
        ConstrType::ConstrPrimary | ConstrType::ConstrUnique => key_columns(&constraint.keys),
        ConstrType::ConstrForeign => key_columns(&constraint.fk_attrs),
        ConstrType::ConstrExclusion => plain_columns(&constraint.exclusions),
        ConstrType::ConstrNotnull => key_columns(&constraint.keys),
        _ => Vec::new(),
    }
}
