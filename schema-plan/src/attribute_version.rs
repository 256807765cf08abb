//! Versions of columns: an option that some servers keep with each column for themselves and
//! others refuse. A pg_dump that doesn't know it writes it as one of the column's options.

use pg_query::protobuf::{AlterTableType, List, Node};
use pg_query::{DeparseOptions, NodeEnum};

/// The option's name.
const NAME: &str = "pg_attver";

/// What a statement is without it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// The same: it doesn't set it.
    Same,
    /// Nothing: it sets nothing else.
    Nothing,
    /// This one.
    Statement(String),
}

/// Takes the option out of `ALTER TABLE ... ALTER COLUMN ... SET (...)`.
///
/// # Errors
///
/// The parser's, where the rest can't be written.
pub(crate) fn without(node: &NodeEnum) -> pg_query::Result<Without> {
    let NodeEnum::AlterTableStmt(statement) = node else { return Ok(Without::Same) };
    let [command] = statement.cmds.as_slice() else { return Ok(Without::Same) };
    let Some(options) = command.node.as_ref().and_then(options_of) else {
        return Ok(Without::Same);
    };
    let rest: Vec<Node> = options.items.iter().filter(|item| !is_version(item)).cloned().collect();
    if rest.len() == options.items.len() {
        return Ok(Without::Same);
    }
    if rest.is_empty() {
        return Ok(Without::Nothing);
    }
    let mut statement = statement.clone();
    for command in &mut statement.cmds {
        if let Some(NodeEnum::AlterTableCmd(command)) = &mut command.node {
            let list = NodeEnum::List(List { items: rest.clone() });
            command.def = Some(Box::new(Node { node: Some(list) }));
        }
    }
    let deparsed = NodeEnum::AlterTableStmt(statement).deparse(DeparseOptions::default())?;
    Ok(Without::Statement(deparsed))
}

/// The options that a command sets for a column.
fn options_of(command: &NodeEnum) -> Option<&List> {
    let NodeEnum::AlterTableCmd(command) = command else { return None };
    match (command.subtype(), command.def.as_ref()?.node.as_ref()?) {
        (AlterTableType::AtSetOptions, NodeEnum::List(options)) => Some(options),
        _ => None,
    }
}

fn is_version(option: &Node) -> bool {
    matches!(&option.node, Some(NodeEnum::DefElem(option)) if option.defname == NAME)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(sql: &str) -> Without {
        let parsed = pg_query::parse(sql, pg_query::ParserOptions::DEFAULT).unwrap();
        without(parsed.protobuf.stmts[0].stmt.as_ref().unwrap().node.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn the_version_of_a_column_goes_and_its_options_stay() {
        let alone = r#"ALTER TABLE ONLY "Odd".t ALTER COLUMN "a b" SET (pg_attver=30577568)"#;
        assert_eq!(of(alone), Without::Nothing);
        let one =
            r#"ALTER TABLE ONLY "Odd".t ALTER COLUMN "a b" SET (n_distinct=-0.5, pg_attver=3)"#;
        let Without::Statement(rest) = of(one) else { unreachable!() };
        assert!(rest.contains("n_distinct") && !rest.contains("pg_attver"), "{rest}");
        assert!(rest.contains(r#""Odd".t"#) && rest.contains(r#""a b""#), "{rest}");
        assert!(rest.starts_with("ALTER TABLE ONLY"), "{rest}");
        assert_eq!(of("ALTER TABLE t ALTER COLUMN a SET (n_distinct=5)"), Without::Same);
        assert_eq!(of("ALTER TABLE t ALTER COLUMN a SET STATISTICS 5"), Without::Same);
    }
}
