//! How texts are sorted on each server, where sharding keys are mapped by range: the copy
//! and the flow forth place rows by the source's order, the guard and the way back by the
//! shards'.
use std::collections::BTreeSet;

use futures::future::try_join_all;

use crate::cluster::Method;
use crate::error::{Kind, Result};
use crate::preflight::facts::{Facts, KeyColumn, Table};
use crate::preflight::finding::Finding;
use crate::remote::quote::ident;
use crate::remote::{Connection, Endpoint};

/// How a server sorts by a collation; none where it has no such.
type Rule = Option<String>;

/// How all servers sort by a collation; this database comes first.
#[derive(Debug)]
pub struct Order {
    collation: String,
    servers: Vec<(Endpoint, Rule)>,
}

/// Sharding keys of either cluster that are texts and mapped by range.
fn ranged<'f>(facts: &'f Facts<'_>) -> impl Iterator<Item = (&'f Table, &'f KeyColumn, &'f str)> {
    facts
        .keyed()
        .filter(|(cluster, table)| cluster.size() > 1 && table.key_method == Some(Method::Range))
        .flat_map(|(_, table)| table.key_columns.iter().map(move |column| (table, column)))
        .filter_map(|(table, column)| Some((table, column, column.collation_name.as_deref()?)))
}

/// Asks all servers about the collations of such keys.
///
/// # Errors
/// The servers'.
pub async fn gather(
    facts: &Facts<'_>,
    sessions: &[(&Endpoint, &Connection)],
) -> Result<Vec<Order>> {
    let names: BTreeSet<&str> = ranged(facts).map(|(_, _, collation)| collation).collect();
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names = &names;
    let answers = try_join_all(sessions.iter().map(|(_, session)| async move {
        session.query(include_str!("collation.sql"), &[names]).await
    }))
    .await?;
    let mut orders: Vec<Order> = names
        .iter()
        .map(|name| Order { collation: (*name).to_owned(), servers: Vec::new() })
        .collect();
    for ((endpoint, session), rows) in sessions.iter().zip(answers) {
        for row in rows {
            let get = |e: tokio_postgres::Error| session.error(&e);
            let name: String = row.try_get(0).map_err(get)?;
            let rule: Rule = row.try_get(1).map_err(get)?;
            for order in orders.iter_mut().filter(|order| order.collation == name) {
                order.servers.push(((*endpoint).clone(), rule.clone()));
            }
        }
    }
    Ok(orders)
}

impl Order {
    /// The first server that sorts otherwise than this database, with both rules.
    fn difference(&self) -> Option<(&Endpoint, &Rule, &Rule)> {
        let ((_, here), others) = self.servers.split_first()?;
        others.iter().find(|(_, rule)| rule != here).map(|(server, rule)| (server, here, rule))
    }
}

/// Keys that are mapped by range are sorted by the same rules everywhere.
pub fn sharding_key_collation(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    let mut said = BTreeSet::new();
    ranged(facts)
        .filter(|(table, column, _)| said.insert((table.oid, column.name.clone())))
        .filter_map(|(table, column, collation)| {
            let order = facts.orders.iter().find(|order| order.collation == collation)?;
            Some(otherwise(table, column, order, order.difference()?))
        })
        .collect()
}

fn otherwise(
    table: &Table,
    column: &KeyColumn,
    order: &Order,
    (server, here, there): (&Endpoint, &Rule, &Rule),
) -> Finding {
    let shown = |rule: &Rule| rule.clone().unwrap_or_else(|| "unknown".to_owned());
    let type_name = column.type_name.as_deref().unwrap_or("text");
    Finding::error(
        "sharding_key_collation",
        Kind::WrongState,
        format!(
            "sharding key {} of table {} is sorted otherwise on {server}",
            ident(&column.name),
            table.name
        ),
    )
    .object(table.name.clone())
    .detail(format!(
        "Its keys are mapped by range, in the order of collation {}, which is {} here and {} there: \
         servers would place the same row on different shards.",
        order.collation,
        shown(here),
        shown(there)
    ))
    .hint(format!(
        "Give all servers the same locale and release of its library, or sort the key by bytes: ALTER \
         TABLE {} ALTER COLUMN {} TYPE {type_name} COLLATE \"C\";",
        table.name,
        ident(&column.name)
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::remote::Conninfo;

    fn order(rules: &[Option<&str>]) -> Order {
        let conninfo = Conninfo::parse("host=h").unwrap();
        let server = |shard| Endpoint { cluster: "c".into(), shard, conninfo: conninfo.clone() };
        Order {
            collation: "pg_catalog.\"default\"".into(),
            servers: (0..).zip(rules).map(|(n, r)| (server(n), r.map(str::to_owned))).collect(),
        }
    }

    #[test]
    fn a_server_that_sorts_otherwise_is_found() {
        assert!(order(&[Some("C"), Some("C")]).difference().is_none());
        assert!(order(&[Some("libc de_de.utf8 2.36"); 3]).difference().is_none());
        let order = order(&[Some("libc de_de.utf8 2.36"), Some("libc de_de.utf8 2.36"), None]);
        let (server, here, there) = order.difference().unwrap();
        assert_eq!(
            (server.shard, here.as_deref(), there),
            (2, Some("libc de_de.utf8 2.36"), &None)
        );
        let column = KeyColumn { name: "k".into(), ..KeyColumn::default() };
        let found = otherwise(
            &Table { name: "public.t".into(), ..Table::default() },
            &column,
            &order,
            (server, here, there),
        );
        assert!(found.detail.contains("2.36 here and unknown there"), "{}", found.detail);
        assert!(found.hint.unwrap().contains("ALTER COLUMN \"k\" TYPE text COLLATE \"C\""));
    }
}
