//! How a table is compared: which columns, in which form, and what tells its rows apart.
use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::remote::quote::ident;
use crate::remote::Connection;
use crate::state::table::Table;

/// Built-in types whose text is never empty and never holds a separator: they stand as
/// they are in the text of a row. All others stand as the hash of their text.
const PLAIN: &[&str] = &[
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "oid",
    "uuid",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
];
/// Arguments of one `concat()`; PostgreSQL takes no more than 100.
const COLUMNS_AT_ONCE: usize = 40;

/// What a table looks like on the first shard of the source.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Shape {
    /// Its size, out-of-line values included.
    pub(super) bytes: i64,
    /// Its blocks, without them.
    pub(super) blocks: i64,
    /// The columns that are compared.
    pub(super) columns: Vec<Column>,
    /// The columns that tell its rows apart; `None` where there is no unique key.
    pub(super) key: Option<Vec<KeyColumn>>,
}

/// A column that is compared.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type, where that is built in.
    #[serde(rename = "type")]
    pub(super) built_in: Option<String>,
}

/// A column of the key.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct KeyColumn {
    #[serde(flatten)]
    pub(super) column: Column,
    /// The type that texts of it are read as.
    pub(super) cast: String,
    /// Where its operators are.
    pub(super) schema: String,
}

impl Shape {
    /// Asks the first shard of the source.
    ///
    /// # Errors
    /// 42P01, 42703 where the table or a column of it is gone; the server's.
    pub(super) async fn load(session: &Connection, table: &Table) -> Result<Self> {
        let rows =
            session.query(include_str!("shape.sql"), &[&table.qualified(), &table.columns]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::new(
                Kind::Server("42P01".to_owned()),
                format!("table {} does not exist on {}", table.qualified(), session.label()),
            ));
        };
        let text: String = row.try_get(0).map_err(|e| session.error(&e))?;
        let shape: Self = serde_json::from_str(&text)?;
        let gone = table.columns.iter().find(|c| shape.columns.iter().all(|have| &have.name != *c));
        match gone {
            None => Ok(shape),
            Some(column) => Err(Error::new(
                Kind::Server("42703".to_owned()),
                format!(
                    "column {} of table {} does not exist on {}",
                    ident(column),
                    table.qualified(),
                    session.label()
                ),
            )),
        }
    }

    /// The text of a row `t`: the same on every server, different for different rows.
    pub(super) fn row_text(&self) -> String {
        joined(self.columns.iter().map(Column::text).collect())
    }

    /// The hash of the key of a row `t`; `None` where rows are told apart by all of it.
    pub(super) fn key_hash(&self) -> Option<String> {
        let key = self.key.as_ref()?;
        Some(hash(&joined(key.iter().map(|k| k.column.text()).collect()), 0))
    }

    /// Schemas that the operators of the key are in, apart from the server's own.
    pub(super) fn operator_schemas(&self) -> Vec<&str> {
        let mut schemas: Vec<&str> = self
            .key
            .iter()
            .flatten()
            .map(|k| k.schema.as_str())
            .filter(|s| *s != "pg_catalog")
            .collect();
        schemas.sort_unstable();
        schemas.dedup();
        schemas
    }
}

impl Column {
    /// The column of a row `t`.
    pub(super) fn reference(&self) -> String {
        format!("t.{}", ident(&self.name))
    }

    fn text(&self) -> String {
        match self.built_in.as_deref() {
            Some(plain) if PLAIN.contains(&plain) => self.reference(),
            _ => self.hash(),
        }
    }

    /// The hash of its value; null for null.
    pub(super) fn hash(&self) -> String {
        let column = self.reference();
        let text = hash(&format!("CAST({column} AS pg_catalog.text)"), 0);
        match self.built_in.as_deref() {
            // The text of a large value would be longer than a text can be.
            Some("bytea") => format!(
                "CASE WHEN pg_catalog.octet_length({column}) > 100000000 \
                 THEN {} ELSE {text} END",
                hash(&format!("pg_catalog.md5({column})"), 0)
            ),
            _ => text,
        }
    }
}

/// The 64-bit hash of a text, by its bytes.
pub(super) fn hash(text: &str, seed: i64) -> String {
    format!("pg_catalog.hashtextextended(({text}) COLLATE pg_catalog.\"C\", {seed})")
}

/// Texts of values, one after the other. A null has no text.
fn joined(values: Vec<String>) -> String {
    let parts: Vec<String> = values
        .chunks(COLUMNS_AT_ONCE)
        .map(|some| format!("pg_catalog.concat({})", some.join(", '|', ")))
        .collect();
    match parts.as_slice() {
        [] => "''::pg_catalog.text".to_owned(),
        [one] => one.clone(),
        several => format!("pg_catalog.concat({})", several.join(", '|', ")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::verify) fn column(name: &str, built_in: Option<&str>) -> Column {
        Column { name: name.into(), built_in: built_in.map(Into::into) }
    }

    pub(in crate::verify) fn shape(key: Option<&[&str]>) -> Shape {
        Shape {
            bytes: 0,
            blocks: 0,
            columns: vec![column("id", Some("int8")), column("V", Some("text"))],
            key: key.map(|names| {
                names
                    .iter()
                    .map(|name| KeyColumn {
                        column: column(name, Some("int8")),
                        cast: "bigint".into(),
                        schema: "pg_catalog".into(),
                    })
                    .collect()
            }),
        }
    }

    #[test]
    fn texts_that_could_hold_a_separator_are_hashed() {
        let text = shape(None).row_text();
        assert!(text.starts_with("pg_catalog.concat(t.\"id\", '|', pg_catalog.hashtextextended("));
        assert!(column("e", None).text().contains("hashtextextended"));
    }

    #[test]
    fn tables_may_have_as_many_columns_as_postgresql_allows() {
        let values: Vec<String> = (0..1600).map(|n| n.to_string()).collect();
        let text = joined(values);
        assert_eq!(text.matches("pg_catalog.concat(").count(), 41);
        assert_eq!(joined(Vec::new()), "''::pg_catalog.text");
    }

    #[test]
    fn without_a_key_there_is_no_key_hash() {
        assert_eq!(shape(None).key_hash(), None);
        assert!(shape(Some(&["id"])).key_hash().is_some_and(|h| h.contains("t.\"id\"")));
    }
}
