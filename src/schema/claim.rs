//! Which statements of phase `post` can run at the same time: an index and
//! another index of the same table can, a key and anything else of its table
//! can't. Keeps our own sessions from waiting for one another, or deadlocking.
//!
//! A guess from the statement: where it is wrong, the shard's own locks decide.
use crate::state::schema::Statement;

/// A relation that a statement locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    schema: String,
    table: String,
    exclusive: bool,
}

/// What a statement locks (manual, section "Explicit Locking"): CREATE INDEX
/// takes SHARE, which goes with itself; ADD FOREIGN KEY takes SHARE ROW
/// EXCLUSIVE on both tables, which doesn't; VALIDATE CONSTRAINT takes SHARE UPDATE
/// EXCLUSIVE on its own, which doesn't either; other ALTER TABLE more than that.
pub fn claims(statement: &Statement) -> Vec<Claim> {
    let mut out = Vec::with_capacity(2);
    if let (Some(schema), Some(table)) = (&statement.table_schema, &statement.table_name) {
        let exclusive = statement.kind != "index";
        out.push(Claim { schema: schema.clone(), table: table.clone(), exclusive });
    }
    if statement.kind == "foreign_key" {
        if let Some((schema, table)) = referenced(&statement.sql) {
            out.push(Claim { schema, table, exclusive: true });
        }
    }
    out
}

/// Whether two statements get in each other's way.
pub fn conflict(a: &[Claim], b: &[Claim]) -> bool {
    a.iter().any(|x| {
        b.iter().any(|y| x.schema == y.schema && x.table == y.table && (x.exclusive || y.exclusive))
    })
}

/// The table of a foreign key's `REFERENCES`, which pg_dump always qualifies.
fn referenced(sql: &str) -> Option<(String, String)> {
    let marker = " REFERENCES ";
    let rest = &sql[sql.rfind(marker)? + marker.len()..];
    let (schema, rest) = identifier(rest)?;
    let (table, _) = identifier(rest.strip_prefix('.')?)?;
    Some((schema, table))
}

/// The identifier that a text begins with, unquoted, and what follows it.
pub fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let is_end = |c: char| !(c.is_alphanumeric() || c == '_' || c == '$');
        let end = text.find(is_end).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == '"') {
            chars.next();
            name.push('"');
        } else {
            return Some((name, &quoted[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn claim(table: &str, exclusive: bool) -> Claim {
        Claim { schema: "s".into(), table: table.into(), exclusive }
    }

    #[test]
    fn indexes_go_together_and_keys_do_not() {
        assert!(!conflict(&[claim("t", false)], &[claim("t", false)]));
        assert!(conflict(&[claim("t", true)], &[claim("t", false)]));
        assert!(!conflict(&[claim("t", true)], &[claim("u", true)]));
    }

    #[test]
    fn the_referenced_table_is_read() {
        let sql = "ALTER TABLE ONLY a.b ADD CONSTRAINT c FOREIGN KEY (x) REFERENCES p.q(id) ON DELETE CASCADE";
        assert_eq!(referenced(sql).unwrap(), ("p".into(), "q".into()));
        let sql = "ALTER TABLE x ADD FOREIGN KEY (x) REFERENCES \"S \"\"x\".\"T\"(id)";
        assert_eq!(referenced(sql).unwrap(), ("S \"x".into(), "T".into()));
        assert_eq!(referenced("no such thing"), None);
    }
}
