//! Reads from the sessions of a comparison, and brings the answers into one form.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::AddAssign;

use futures::future::try_join_all;
use futures::{pin_mut, TryStreamExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::Row;

use crate::cluster::ShardNo;
use crate::error::{Error, Result};
use crate::verify::rows::{Rows, SHOWN};
use crate::verify::server::Server;
use crate::verify::verdict::Group;

/// A server and the statements that read the table there.
#[derive(Clone)]
pub(super) struct Party<'a> {
    pub(super) server: &'a Server,
    pub(super) rows: Rows<'a>,
}

/// Number and sums of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) rows: i64,
    pub(super) sums: (i128, i128),
    /// Rows on a shard that they don't belong to.
    pub(super) misplaced: i64,
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.sums.0 += other.sums.0;
        self.sums.1 += other.sums.1;
        self.misplaced += other.misplaced;
    }
}

/// Digests by slice.
pub(super) type Digests = BTreeMap<i64, Digest>;

/// Rows that are looked at one by one.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Number of its key, or hash of all of it.
    pub(super) id: i64,
    /// Texts of its key; none without one.
    pub(super) key: Vec<String>,
    /// What is shown of it.
    pub(super) shown: serde_json::Value,
}

/// What one side says of some items.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// By item and the shard that the rows belong to; no shard: that of whoever compares.
    pub(super) groups: BTreeMap<(i64, Option<u32>), Group>,
    /// By item and the shard that they lie on, where that is a wrong one.
    pub(super) astray: BTreeMap<(i64, u32), Group>,
}

impl Reading {
    /// The rows of an item that belong to a shard.
    pub(super) fn group(&self, id: i64, shard: Option<u32>) -> Group {
        self.groups.get(&(id, shard)).copied().unwrap_or_default()
    }

    /// The rows of an item that lie on a wrong shard.
    pub(super) fn stray(&self, id: i64, shard: u32) -> Group {
        self.astray.get(&(id, shard)).copied().unwrap_or_default()
    }
}

fn number(server: &Server, row: &Row, column: usize) -> Result<i64> {
    row.try_get(column).map_err(|e| server.error(&e))
}

fn sum(server: &Server, row: &Row, column: usize) -> Result<i128> {
    let text: String = row.try_get(column).map_err(|e| server.error(&e))?;
    text.parse().map_err(|_| Error::internal(format!("a sum of hashes is \"{text}\"")))
}

/// Digests of one server, by slice.
///
/// # Errors
/// The server's.
pub(super) async fn digests(party: &Party<'_>, slices: i64) -> Result<Digests> {
    let server = party.server;
    let rows = server.session.query(&party.rows.digest(slices), &[]).await?;
    let mut digests = Digests::new();
    for row in &rows {
        let digest = Digest {
            rows: number(server, row, 1)?,
            sums: (sum(server, row, 2)?, sum(server, row, 3)?),
            misplaced: number(server, row, 4)?,
        };
        digests.insert(number(server, row, 0)?, digest);
    }
    Ok(digests)
}

/// The sum of the digests of several servers.
pub(super) fn total(all: &[Digests]) -> Digests {
    let mut out = Digests::new();
    for (slice, digest) in all.iter().flatten() {
        *out.entry(*slice).or_default() += *digest;
    }
    out
}

/// Hashes of keys whose rows are not the same on both sides, or lie in a wrong place.
/// Holds one slice of the rows in memory, as a few numbers each.
///
/// # Errors
/// The servers'.
pub(super) async fn candidates(
    publishers: &[Party<'_>],
    subscribers: &[Party<'_>],
    slices: i64,
    slice: i64,
) -> Result<Vec<i64>> {
    let mut balance: HashMap<i64, (i64, i64, i64)> = HashMap::new();
    let mut astray = HashSet::new();
    let signed = publishers.iter().map(|p| (p, 1)).chain(subscribers.iter().map(|s| (s, -1)));
    for (party, sign) in signed {
        let server = party.server;
        let none: [&(dyn ToSql + Sync); 0] = [];
        let stream = server
            .session
            .client()
            .query_raw(party.rows.list(slices, slice).as_str(), none)
            .await
            .map_err(|e| server.error(&e))?;
        pin_mut!(stream);
        while let Some(row) = stream.try_next().await.map_err(|e| server.error(&e))? {
            let id = number(server, &row, 0)?;
            let entry = balance.entry(id).or_default();
            entry.0 += sign;
            entry.1 = entry.1.wrapping_add(number(server, &row, 1)?.wrapping_mul(sign));
            entry.2 = entry.2.wrapping_add(number(server, &row, 2)?.wrapping_mul(sign));
            let placed: bool = row.try_get(3).map_err(|e| server.error(&e))?;
            if !placed {
                astray.insert(id);
            }
        }
    }
    let mut out: Vec<i64> =
        balance.into_iter().filter(|(_, sums)| *sums != (0, 0, 0)).map(|(id, _)| id).collect();
    out.extend(astray);
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// The items behind hashes of keys, wherever they are.
///
/// # Errors
/// The servers'.
pub(super) async fn items(parties: &[&Party<'_>], hashes: &[i64]) -> Result<Vec<Item>> {
    let answers = try_join_all(parties.iter().map(|party| async move {
        let rows = party.server.session.query(&party.rows.keys(), &[&hashes]).await?;
        rows.iter()
            .map(|row| {
                let get = |e: tokio_postgres::Error| party.server.error(&e);
                let hash: i64 = row.try_get(0).map_err(get)?;
                let key: Vec<String> = row.try_get(1).map_err(get)?;
                let shown: String = row.try_get(2).map_err(get)?;
                Ok((hash, key, shown))
            })
            .collect::<Result<Vec<_>>>()
    }))
    .await?;
    let mut seen = HashSet::new();
    let mut out: Vec<Item> = Vec::new();
    for (hash, key, shown) in answers.into_iter().flatten() {
        if seen.insert((hash, key.clone())) {
            // Different keys may have one hash.
            let id = if key.is_empty() { hash } else { out.len() as i64 };
            out.push(Item { id, key, shown: shown_value(&shown) });
        }
    }
    Ok(out)
}

fn shown_value(text: &str) -> serde_json::Value {
    if text.chars().count() <= SHOWN {
        if let Ok(value) = serde_json::from_str(text) {
            return value;
        }
    }
    let head: String = text.chars().take(SHOWN).collect();
    serde_json::json!({ "row": format!("{head}...") })
}

/// The parameters that ask for items: their ids, then a list for each column of the key.
struct Wanted {
    ids: Vec<i64>,
    columns: Vec<Vec<String>>,
}

impl Wanted {
    fn new(items: &[&Item]) -> Self {
        let width = items.first().map_or(0, |item| item.key.len());
        Self {
            ids: items.iter().map(|item| item.id).collect(),
            columns: (0..width)
                .map(|n| items.iter().filter_map(|item| item.key.get(n).cloned()).collect())
                .collect(),
        }
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&self.ids];
        parameters.extend(self.columns.iter().map(|c| c as &(dyn ToSql + Sync)));
        parameters
    }
}

/// Reads items on all servers of a side. Rows of a subscriber belong to itself.
///
/// # Errors
/// The servers'.
pub(super) async fn read(
    parties: &[Party<'_>],
    items: &[&Item],
    subscribers: bool,
) -> Result<Reading> {
    let wanted = Wanted::new(items);
    let answers = try_join_all(parties.iter().map(|party| async {
        let rows = party.server.session.query(&party.rows.read(), &wanted.parameters()).await?;
        Ok::<_, Error>((party.server, rows))
    }))
    .await?;
    let mut reading = Reading::default();
    for (server, rows) in &answers {
        for row in rows {
            let id = number(server, row, 0)?;
            let group = Group {
                rows: number(server, row, 2)?,
                misplaced: number(server, row, 3)?,
                sums: (sum(server, row, 4)?, sum(server, row, 5)?),
                versions: sum(server, row, 6)?,
            };
            let shard = match subscribers {
                true => Some(server.shard.0),
                false => {
                    let target: Option<i32> = row.try_get(1).map_err(|e| server.error(&e))?;
                    target.and_then(|t| u32::try_from(t).ok())
                }
            };
            *reading.groups.entry((id, shard)).or_default() += group;
            if group.misplaced > 0 {
                *reading.astray.entry((id, server.shard.0)).or_default() += group;
            }
        }
    }
    Ok(reading)
}

/// Hashes of the columns of items, on the servers of a side, by item and shard.
///
/// # Errors
/// The servers'.
pub(super) async fn values(
    parties: &[Party<'_>],
    items: &[&Item],
) -> Result<HashMap<(i64, ShardNo), Vec<Option<i64>>>> {
    let wanted = Wanted::new(items);
    let mut out = HashMap::new();
    for party in parties {
        let Some(sql) = party.rows.values() else { continue };
        let rows = party.server.session.query(&sql, &wanted.parameters()).await?;
        for row in &rows {
            let hashes: Vec<Option<i64>> = row.try_get(1).map_err(|e| party.server.error(&e))?;
            out.insert((number(party.server, row, 0)?, party.server.shard), hashes);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_several_servers_add_up_by_slice() {
        let digest = |rows| Digest { rows, sums: (1, -1), misplaced: 0 };
        let all =
            [Digests::from([(0, digest(2)), (1, digest(1))]), Digests::from([(0, digest(3))])];
        let sum = total(&all);
        assert_eq!(sum.get(&0), Some(&Digest { rows: 5, sums: (2, -2), misplaced: 0 }));
        assert_eq!(sum.get(&1), Some(&digest(1)));
    }

    #[test]
    fn rows_that_are_too_long_to_show_are_cut() {
        assert_eq!(shown_value("{\"a\": 1}"), serde_json::json!({"a": 1}));
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(SHOWN));
        let shown = shown_value(&long);
        assert!(shown["row"].as_str().is_some_and(|row| row.ends_with("...")));
    }
}
