//! What of a database the tables of a publication need, from its catalogs.
use std::collections::BTreeSet;

use crate::error::Result;
use crate::remote::Connection;

/// Objects by class, schema and name.
#[derive(Debug, Clone, Default)]
pub struct Needed(BTreeSet<(String, Option<String>, String)>);

impl Needed {
    /// Asks a source shard.
    ///
    /// # Errors
    /// The server's.
    pub async fn by_publication(session: &Connection, publication: &str) -> Result<Self> {
        let rows = session.query(include_str!("needed.sql"), &[&publication]).await?;
        let mut objects = BTreeSet::new();
        for row in rows {
            let get = |e: tokio_postgres::Error| session.error(&e);
            objects.insert((
                row.try_get(0).map_err(get)?,
                row.try_get(1).map_err(get)?,
                row.try_get(2).map_err(get)?,
            ));
        }
        Ok(Self(objects))
    }

    /// Whether an object of this class (`relation`, `type`, `routine`, or a kind
    /// of the planner's) is among them.
    pub fn has(&self, class: &str, schema: Option<&str>, name: &str) -> bool {
        self.0.contains(&(class.to_owned(), schema.map(str::to_owned), name.to_owned()))
    }

    /// Those in some schemas: class, schema and name.
    pub fn in_schemas<'n>(
        &'n self,
        schemas: &'n [String],
    ) -> impl Iterator<Item = (&'n str, &'n str, &'n str)> {
        self.0.iter().filter_map(move |(class, schema, name)| {
            let schema = schema.as_ref().filter(|schema| schemas.contains(schema))?;
            Some((class.as_str(), schema.as_str(), name.as_str()))
        })
    }
}

impl FromIterator<(String, Option<String>, String)> for Needed {
    fn from_iter<T: IntoIterator<Item = (String, Option<String>, String)>>(objects: T) -> Self {
        Self(objects.into_iter().collect())
    }
}
