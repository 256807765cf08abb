//! What a statement's text says, by the server's own parser.
use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, AlterTableType, ConstrType, NodeTag, ObjectType, RawParseMode};

/// Names of the columns that a text adds to a table; none where it is anything
/// but one ALTER TABLE that adds columns and nothing else, without constraints
/// other than NOT NULL. An ERROR is raised where the text does not parse.
pub fn added_columns(text: &str) -> Option<Vec<String>> {
    let text = CString::new(text).ok()?;
    unsafe {
        let statements = nodes(pg_sys::raw_parser(text.as_ptr(), RawParseMode::RAW_PARSE_DEFAULT));
        let [raw] = statements[..] else { return None };
        let raw = cast::<pg_sys::RawStmt>(raw, NodeTag::T_RawStmt)?;
        let alter = cast::<pg_sys::AlterTableStmt>((*raw).stmt, NodeTag::T_AlterTableStmt)?;
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
