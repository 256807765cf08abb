//! Tables that each shard of the source has whole: which of them their rows come from. They
//! are spread by size, so that no shard reads and decodes for all.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::ShardNo;
use crate::error::Result;
use crate::pg::db::{self, Arg};

/// What a table counts for at least, in bytes: empty ones are spread as well.
const LEAST: i64 = 8192;

/// Gives each table that each of these source shards has whole the one that its rows come
/// from, where it has none yet; that never changes while the task lasts. Runs in the caller's
/// transaction, after [`super::plan_source_keys`].
///
/// The largest goes first, to the shard that has the fewest bytes so far. Tables that foreign
/// keys link, and parts of one table, stay together: subscribers refuse the TRUNCATE of a
/// table without those that refer to it (section "Restrictions" of the manual's chapter on
/// logical replication), and keys are checked on rows of one snapshot.
///
/// # Errors
/// SPI's.
pub fn assign_nodes(task_id: i64, nodes: impl Iterator<Item = ShardNo>) -> Result<()> {
    let tables: Vec<Whole> = db::rows(include_str!("omni.sql"), &[Arg::I64(task_id)])?;
    let chosen = serde_json::to_value(choose(&tables, nodes))?;
    db::execute(
        "UPDATE reshard.copy_table AS t SET source_shard = c.source_shard \
           FROM pg_catalog.jsonb_to_recordset($2) AS c (table_id int, source_shard int) \
          WHERE t.task_id = $1 AND t.table_id = c.table_id AND t.source_shard IS NULL",
        &[Arg::I64(task_id), Arg::Json(chosen)],
    )
    .map(|_| ())
}

/// A table that each source shard has whole.
#[derive(Debug, Clone, Deserialize)]
struct Whole {
    table_id: i32,
    /// The shard that it has already.
    source_shard: Option<ShardNo>,
    bytes: i64,
    /// Itself, or the partitioned table that it is a part of.
    root: i64,
    /// Those that its foreign keys refer to, as roots.
    refers_to: Vec<i64>,
}

impl Whole {
    fn weight(&self) -> i64 {
        self.bytes.max(LEAST)
    }
}

/// The shard that a table's rows come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Chosen {
    table_id: i32,
    source_shard: ShardNo,
}

/// Shards for the tables that have none.
fn choose(tables: &[Whole], nodes: impl Iterator<Item = ShardNo>) -> Vec<Chosen> {
    let mut loads: BTreeMap<ShardNo, i64> = nodes.map(|node| (node, 0)).collect();
    for table in tables {
        if let Some(load) = table.source_shard.and_then(|node| loads.get_mut(&node)) {
            *load += table.weight();
        }
    }
    let mut chosen = Vec::new();
    for family in families(tables) {
        let kept = family.iter().find_map(|table| table.source_shard);
        let lightest = loads.iter().min_by_key(|(_, load)| **load).map(|(node, _)| *node);
        let Some(node) = kept.or(lightest) else { continue };
        for table in family.into_iter().filter(|table| table.source_shard.is_none()) {
            *loads.entry(node).or_default() += table.weight();
            chosen.push(Chosen { table_id: table.table_id, source_shard: node });
        }
    }
    chosen
}

/// Tables that have to stay together, the largest family first.
fn families(tables: &[Whole]) -> Vec<Vec<&Whole>> {
    let mut members: BTreeMap<i64, Vec<&Whole>> = BTreeMap::new();
    for table in tables {
        members.entry(table.root).or_default().push(table);
    }
    let mut links: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for table in tables {
        for other in table.refers_to.iter().filter(|other| members.contains_key(other)) {
            links.entry(table.root).or_default().insert(*other);
            links.entry(*other).or_default().insert(table.root);
        }
    }
    let mut families = Vec::new();
    while let Some((root, first)) = members.pop_first() {
        let mut family = first;
        let mut linked: Vec<i64> = links.remove(&root).into_iter().flatten().collect();
        while let Some(next) = linked.pop() {
            family.extend(members.remove(&next).into_iter().flatten());
            linked.extend(links.remove(&next).into_iter().flatten());
        }
        family.sort_by_key(|table| table.table_id);
        families.push(family);
    }
    families.sort_by_key(|family| {
        let weight: i64 = family.iter().map(|table| table.weight()).sum();
        (Reverse(weight), family.first().map(|table| table.table_id))
    });
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: i64 = 1024 * 1024;

    fn table(table_id: i32, bytes: i64) -> Whole {
        Whole {
            table_id,
            source_shard: None,
            bytes,
            root: i64::from(table_id),
            refers_to: Vec::new(),
        }
    }

    /// Tables and their shards, by table.
    fn chosen(tables: &[Whole], nodes: u32) -> Vec<(i32, u32)> {
        let chosen = choose(tables, (0..nodes).map(ShardNo));
        let mut chosen: Vec<(i32, u32)> =
            chosen.into_iter().map(|c| (c.table_id, c.source_shard.0)).collect();
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn the_largest_table_goes_first_to_the_shard_that_has_least() {
        let tables = [table(1, 40 * MB), table(2, 100 * MB), table(3, 50 * MB), table(4, 90 * MB)];
        assert_eq!(chosen(&tables, 2), [(1, 0), (2, 0), (3, 1), (4, 1)]);
        assert_eq!(chosen(&tables, 1), [(1, 0), (2, 0), (3, 0), (4, 0)]);
    }

    #[test]
    fn empty_tables_are_spread() {
        assert_eq!(chosen(&[table(1, 0), table(2, 0), table(3, 0)], 2), [(1, 0), (2, 1), (3, 0)]);
    }

    #[test]
    fn a_table_that_has_a_shard_keeps_it() {
        let kept = Whole { source_shard: Some(ShardNo(0)), ..table(1, MB) };
        assert_eq!(chosen(&[kept, table(2, 10 * MB), table(3, 2 * MB)], 2), [(2, 1), (3, 0)]);
    }

    #[test]
    fn tables_that_foreign_keys_link_and_parts_of_one_stay_together() {
        let refers = |table_id, bytes, to: &[i64]| Whole {
            refers_to: to.to_vec(),
            ..table(table_id, bytes)
        };
        let part = |table_id, root| Whole { root, ..table(table_id, MB) };
        // 1 -> 3 <- 4, 5 and 6 are parts of one table; 99 does not move.
        let tables = [
            refers(1, 10 * MB, &[3, 99]),
            refers(2, 11 * MB, &[2, 99]),
            table(3, MB),
            refers(4, MB, &[3]),
            part(5, 50),
            part(6, 50),
        ];
        let expected = [(1, 0), (2, 1), (3, 0), (4, 0), (5, 1), (6, 1)];
        assert_eq!(chosen(&tables, 2), expected);
    }

    #[test]
    fn a_table_joins_those_that_have_a_shard() {
        let kept = Whole { source_shard: Some(ShardNo(1)), ..table(1, 100 * MB) };
        let joins = Whole { refers_to: vec![1], ..table(2, MB) };
        assert_eq!(chosen(&[kept, joins], 2), [(2, 1)]);
    }
}
