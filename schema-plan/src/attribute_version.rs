//! Versions of columns: an option that some servers keep with each column for themselves and
//! others refuse. A pg_dump that doesn't know it writes it as one of the column's options.

use pg_query::protobuf::AlterTableType;
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
    let mut statement = statement.clone();
    let (mut taken, mut left) = (0, 0);
    for command in &mut statement.cmds {
        let Some(NodeEnum::AlterTableCmd(command)) = &mut command.node else { continue };
        if command.subtype() != AlterTableType::AtSetOptions {
            return Ok(Without::Same);
        }
        let options = command.def.as_mut().and_then(|def| def.node.as_mut());
        let Some(NodeEnum::List(options)) = options else { continue };
        let before = options.items.len();
        options.items.retain(
            |item| !matches!(&item.node, Some(NodeEnum::DefElem(option)) if option.defname == NAME),
        );
        taken += before - options.items.len();
        left += options.items.len();
    }
    Ok(match (taken, left) {
        (0, _) => Without::Same,
        (_, 0) => Without::Nothing,
        _ => Without::Statement(
            NodeEnum::AlterTableStmt(statement).deparse(DeparseOptions::default())?,
        ),
    })
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
