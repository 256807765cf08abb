//! A source whose shards stay, against the destination: each row that moves is where it
//! belongs and where it was, and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tables::{difference, key_type, USER_TABLES};
use crate::cluster::Rig;
use crate::error::Result;
use crate::session::{identifier, Session};
use crate::wait::{wait_for, Seen};

/// Rows as text, with how often there is one.
type Rows = BTreeMap<String, i64>;

/// Compares until nothing differs. With `removed` rows that have moved are not where they
/// were any more.
pub async fn compare_moved_when_quiet(
    rig: &Rig,
    key: &str,
    removed: bool,
    deadline: Duration,
) -> Result<()> {
    wait_for(deadline, "rows to be on the shards that they belong to", || async {
        let differences = compare(rig, key, removed).await?;
        Ok(match differences.is_empty() {
            true => Seen::Done(()),
            false => Seen::NotYet(differences.join("\n")),
        })
    })
    .await
}

async fn compare(rig: &Rig, key: &str, removed: bool) -> Result<Vec<String>> {
    let mut sessions = Vec::new();
    for server in rig.destination() {
        sessions.push(server.connect().await?);
    }
    let (staying, shards) = (rig.sources().len(), sessions.len() as u64);
    let mut out = Vec::new();
    let tables = rig.source.connect().await?.rows(USER_TABLES).await?;
    for name in tables.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>()) {
        let table = format!("{}.{}", identifier(&name[0]), identifier(&name[1]));
        if key_type(&rig.source.connect().await?, &table, key).await?.is_none() {
            let mut copies = Vec::new();
            for session in &sessions {
                copies.push(rows(session, &table, "0").await?.remove(&0).unwrap_or_default());
            }
            let others = copies.iter().enumerate().skip(1);
            out.extend(others.filter_map(|(number, there)| {
                Some(format!("{table} on shard {number}: {}", difference(&copies[0], there)?))
            }));
            continue;
        }
        let mut all = Vec::new();
        for session in &sessions {
            all.push(rows(session, &table, &identifier(key)).await?);
        }
        // By the shard that they move to: where they were, and where they are.
        let (mut before, mut after) = (vec![Rows::new(); all.len()], vec![Rows::new(); all.len()]);
        for (number, by_key) in all.into_iter().enumerate() {
            for (key, rows) in by_key {
                let home = rig.placement.shard_of(key, shards);
                let was = rig.source_placement.shard_of(key, staying as u64);
                let place = match (was == number, home == number) {
                    (true, true) => continue,
                    (false, true) => &mut after[home],
                    (true, false) if !removed => &mut before[home],
                    _ => {
                        out.push(format!("{table}: key {key} is on shard {number}, not {home}"));
                        continue;
                    }
                };
                rows.into_iter().for_each(|(row, n)| *place.entry(row).or_default() += n);
            }
        }
        let pairs = before.iter().zip(&after).enumerate().filter(|_| !removed);
        out.extend(pairs.filter_map(|(number, (before, after))| {
            Some(format!("{table} on shard {number}: {}", difference(before, after)?))
        }));
    }
    Ok(out)
}

/// The rows of a table, by key.
async fn rows(session: &Session, table: &str, key: &str) -> Result<BTreeMap<i64, Rows>> {
    let mut out: BTreeMap<i64, Rows> = BTreeMap::new();
    for row in session.rows(&format!("SELECT {key}, t::text FROM ONLY {table} t")).await? {
        let mut fields = row.into_iter().flatten();
        let key = fields.next().and_then(|key| key.parse().ok()).unwrap_or_default();
        *out.entry(key).or_default().entry(fields.next().unwrap_or_default()).or_default() += 1;
    }
    Ok(out)
}
