//! What a statement's text says, by the server's own parser.
use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, AlterTableType, ConstrType, NodeTag, ObjectType, RawParseMode};

/// The one statement of a text; none where there are several. An ERROR is raised
/// where the text does not parse.
unsafe fn only_statement(text: &str) -> Option<*mut pg_sys::Node> {
    let text = CString::new(text).ok()?;
    let statements = nodes(pg_sys::raw_parser(text.as_ptr(), RawParseMode::RAW_PARSE_DEFAULT));
    let [raw] = statements[..] else { return None };
    let raw = cast::<pg_sys::RawStmt>(raw, NodeTag::T_RawStmt)?;
    Some((*raw).stmt)
}

/// What a text with CONCURRENTLY is about, by the session's search path: the table that it
/// builds an index on, the index that it drops, the table that it detaches a partition
/// from. None where it does anything else, or there is no such relation.
pub fn concurrently_changed(text: &str) -> Option<pg_sys::Oid> {
    unsafe {
        let relation = pg_sys::RangeVarGetRelidExtended(
            concurrent_target(only_statement(text)?)?,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        (relation != pg_sys::InvalidOid).then_some(relation)
    }
}

/// Whether a text commits transactions before its end, or goes on with what one that
/// did has left.
pub fn commits_early(text: &str) -> bool {
    unsafe {
        only_statement(text)
            .is_some_and(|node| concurrent_target(node).is_some() || finalizes_detach(node))
    }
}

unsafe fn concurrent_target(node: *mut pg_sys::Node) -> Option<*mut pg_sys::RangeVar> {
    if let Some(index) = cast::<pg_sys::IndexStmt>(node, NodeTag::T_IndexStmt) {
        return (*index).concurrent.then_some((*index).relation);
    }
    if let Some(drop) = cast::<pg_sys::DropStmt>(node, NodeTag::T_DropStmt) {
        let [name] = nodes((*drop).objects)[..] else { return None };
        return ((*drop).concurrent && (*drop).removeType == ObjectType::OBJECT_INDEX)
            .then(|| pg_sys::makeRangeVarFromNameList(name.cast()));
    }
    let alter = cast::<pg_sys::AlterTableStmt>(node, NodeTag::T_AlterTableStmt)?;
    let detached = nodes((*alter).cmds).into_iter().find_map(|cmd| {
        let cmd = command(cmd, AlterTableType::AT_DetachPartition)?;
        cast::<pg_sys::PartitionCmd>((*cmd).def, NodeTag::T_PartitionCmd)
    })?;
    (*detached).concurrent.then_some((*alter).relation)
}

unsafe fn finalizes_detach(node: *mut pg_sys::Node) -> bool {
    cast::<pg_sys::AlterTableStmt>(node, NodeTag::T_AlterTableStmt).is_some_and(|alter| {
        let mut cmds = nodes((*alter).cmds).into_iter();
        cmds.any(|cmd| command(cmd, AlterTableType::AT_DetachPartitionFinalize).is_some())
    })
}

/// A subcommand of ALTER TABLE, if it is of this type.
unsafe fn command(
    node: *mut pg_sys::Node,
    subtype: AlterTableType::Type,
) -> Option<*mut pg_sys::AlterTableCmd> {
    let cmd = cast::<pg_sys::AlterTableCmd>(node, NodeTag::T_AlterTableCmd)?;
    ((*cmd).subtype == subtype).then_some(cmd)
}

/// Names of the columns that a text adds to a table; none where it is anything
/// but one ALTER TABLE that adds columns and nothing else, without constraints
/// other than NOT NULL. An ERROR is raised where the text does not parse.
pub fn added_columns(text: &str) -> Option<Vec<String>> {
    unsafe {
        let alter =
            cast::<pg_sys::AlterTableStmt>(only_statement(text)?, NodeTag::T_AlterTableStmt)?;
        if (*alter).objtype != ObjectType::OBJECT_TABLE {
            return None;
        }
        nodes((*alter).cmds).into_iter().map(|cmd| added_column(cmd)).collect()
    }
}

unsafe fn added_column(node: *mut pg_sys::Node) -> Option<String> {
    let cmd = command(node, AlterTableType::AT_AddColumn)?;
    let column = cast::<pg_sys::ColumnDef>((*cmd).def, NodeTag::T_ColumnDef)?;
    for constraint in nodes((*column).constraints) {
        let constraint = cast::<pg_sys::Constraint>(constraint, NodeTag::T_Constraint)?;
        let plain =
            [ConstrType::CONSTR_NULL, ConstrType::CONSTR_NOTNULL, ConstrType::CONSTR_DEFAULT];
        if !plain.contains(&(*constraint).contype) {
            return None;
        }
    }
    CStr::from_ptr((*column).colname).to_str().ok().map(str::to_owned)
}

/// The node as what its tag says; none of another kind.
unsafe fn cast<T>(node: *mut pg_sys::Node, tag: NodeTag) -> Option<*mut T> {
    (!node.is_null() && (*node).type_ == tag).then(|| node.cast())
}

unsafe fn nodes(list: *mut pg_sys::List) -> Vec<*mut pg_sys::Node> {
    let list = pgrx::PgList::<pg_sys::Node>::from_pg(list);
    list.iter_ptr().collect()
}
