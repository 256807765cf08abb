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

/// The table that a text builds an index on concurrently, by the session's search
/// path; none where it does anything else, or there is no such table.
pub fn concurrently_indexed(text: &str) -> Option<pg_sys::Oid> {
    unsafe {
        let index = cast::<pg_sys::IndexStmt>(only_statement(text)?, NodeTag::T_IndexStmt)?;
        if !(*index).concurrent {
            return None;
        }
        let relation = pg_sys::RangeVarGetRelidExtended(
            (*index).relation,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        (relation != pg_sys::InvalidOid).then_some(relation)
    }
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
    let cmd = cast::<pg_sys::AlterTableCmd>(node, NodeTag::T_AlterTableCmd)?;
    if (*cmd).subtype != AlterTableType::AT_AddColumn {
        return None;
    }
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
