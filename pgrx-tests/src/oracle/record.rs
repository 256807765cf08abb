//! Servers against the record of acknowledged writes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::cluster::Server;
use crate::error::{Error, Result};
use crate::load::{Outcome, Row, Table};

/// Examples kept for the report, of each kind of fault.
const EXAMPLES: usize = 10;

/// What the comparison found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Rows compared.
    pub rows: usize,
    /// Number and first examples, by kind of fault.
    faults: BTreeMap<&'static str, (usize, Vec<String>)>,
}

impl Verdict {
    /// An acknowledged row isn't there.
    pub const LOST: &'static str = "lost";
    /// A row is there more often than it must.
    pub const DOUBLED: &'static str = "doubled";
    /// A row lies on a shard that its key doesn't belong to.
    pub const MISPLACED: &'static str = "misplaced";
    /// A row isn't as it was last written.
    pub const STALE: &'static str = "stale";
    /// A row is there that was deleted, or never acknowledged.
    pub const GHOST: &'static str = "ghost";

    /// Whether there is no fault.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Number of faults of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.faults.get(kind).map_or(0, |(count, _)| *count)
    }

    /// An error where there is any fault.
    pub fn into_result(self) -> Result<usize> {
        match self.is_clean() {
            true => Ok(self.rows),
            false => Err(Error::Unexpected(self.to_string())),
        }
    }

    fn add(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        let (count, examples) = self.faults.entry(kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows compared", self.rows)?;
        for (kind, (count, examples)) in &self.faults {
            write!(f, "; {count} {kind}")?;
            for example in examples {
                write!(f, "\n  {kind}: {example}")?;
            }
        }
        Ok(())
    }
}

/// A row as found on one server.
#[derive(Debug, Clone)]
struct Found {
    server: usize,
    tenant: Option<i64>,
    stamp: String,
}

/// Compares all rows that clients own on `servers` (one, or all shards in order)
/// with the clients' record: rows lie where the placement of the active cluster puts them.
pub async fn check_record(servers: &[&Server], outcome: &Outcome) -> Result<Verdict> {
    check_record_but(servers, outcome, |_, _| false).await
}

/// The same without rows that count for nothing: those of a tenant on a server.
pub async fn check_record_but(
    servers: &[&Server],
    outcome: &Outcome,
    is_left_over: impl Fn(i64, usize) -> bool,
) -> Result<Verdict> {
    let placement = outcome.placement();
    let mut verdict = Verdict::default();
    for table in Table::ALL {
        let mut found = read(servers, table).await?;
        for seen in found.values_mut() {
            seen.retain(|row| !row.tenant.is_some_and(|t| is_left_over(t, row.server)));
        }
        found.retain(|_, seen| !seen.is_empty());
        for client in &outcome.clients {
            for (_, id, row) in client.state.rows().filter(|(of, ..)| *of == table) {
                verdict.rows += 1;
                let seen = found.remove(&id).unwrap_or_default();
                let homes = match row.tenant {
                    Some(tenant) => vec![placement.shard_of(tenant, servers.len() as u64)],
                    None => (0..servers.len()).collect(),
                };
                check_row(&mut verdict, &homes, table, id, row, &seen);
            }
        }
        for (id, seen) in found {
            verdict.add(Verdict::GHOST, || format!("{} {id}: {seen:?}", table.name()));
        }
    }
    Ok(verdict)
}

fn check_row(
    verdict: &mut Verdict,
    homes: &[usize],
    table: Table,
    id: i64,
    row: &Row,
    seen: &[Found],
) {
    let describe = || format!("{} {id}: {row:?}, found {seen:?}", table.name());
    for home in homes {
        let here = seen.iter().filter(|found| found.server == *home).count();
        match here.cmp(&(row.copies as usize)) {
            std::cmp::Ordering::Less => verdict.add(Verdict::LOST, describe),
            std::cmp::Ordering::Greater => verdict.add(Verdict::DOUBLED, describe),
            std::cmp::Ordering::Equal => {}
        }
    }
    if seen.iter().any(|found| !homes.contains(&found.server)) {
        verdict.add(Verdict::MISPLACED, describe);
    }
    if seen.iter().any(|found| found.stamp != row.stamp || found.tenant != row.tenant) {
        verdict.add(Verdict::STALE, describe);
    }
}

async fn read(servers: &[&Server], table: Table) -> Result<HashMap<i64, Vec<Found>>> {
    let mut all: HashMap<i64, Vec<Found>> = HashMap::new();
    let query = table.owned_rows();
    for (number, server) in servers.iter().enumerate() {
        for row in server.connect().await?.rows(&query).await? {
            let mut fields = row.into_iter();
            let id = fields.next().flatten().and_then(|text| text.parse().ok());
            let tenant = fields.next().flatten().and_then(|text| text.parse().ok());
            let stamp = fields.next().flatten().unwrap_or_default();
            let id = id.ok_or_else(|| {
                Error::Unexpected(format!("a row of {} without an id", table.name()))
            })?;
            all.entry(id).or_default().push(Found { server: number, tenant, stamp });
        }
    }
    Ok(all)
}
