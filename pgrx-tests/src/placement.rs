//! Which shard a bigint key belongs to, worked out by a client on its own: by hash, by
//! list or by range.
//!
//! By hash it is the same arithmetic as `PARTITION BY HASH` on one bigint column, or on it
//! and an integer column whose value follows from it (src/backend/partitioning/partbounds.c, `compute_partition_hash_value`;
//! src/common/hashfn.c, `hash_bytes_uint32_extended`), as a pooler does it.

use std::collections::BTreeMap;

use crate::session::literal;

/// `HASH_PARTITION_SEED` of partition.h.
const SEED: u64 = 0x7A5B_2236_7996_DCFD;

/// How keys are placed on the shards of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Placement {
    /// As `PARTITION BY HASH` does.
    #[default]
    Hash,
    /// The same with the column `owner`, whose value is [`owner_of`] the key.
    HashWithOwner,
    /// Keys that are listed, and where all others go.
    List {
        /// Key to shard.
        keys: BTreeMap<i64, usize>,
        /// The shard of all others.
        default: usize,
    },
    /// Keys below the first bound are on shard 0, those from the last one on on the last.
    Range {
        /// Between two shards.
        bounds: Vec<i64>,
    },
}

impl Placement {
    /// A list of all keys in `keys` but for each seventh, dealt out in turns; the others
    /// are on the last shard.
    pub fn list(keys: impl Iterator<Item = i64>, shards: usize) -> Placement {
        let keys = keys.enumerate().filter(|(n, _)| n % 7 != 6);
        Placement::List {
            keys: keys.map(|(n, key)| (key, n % shards)).collect(),
            default: shards - 1,
        }
    }

    /// The shard, `0..shards`, on which rows with this key live.
    pub fn shard_of(&self, key: i64, shards: u64) -> usize {
        match self {
            _ if shards == 1 => 0,
            Placement::Hash => shard_of(key, shards),
            Placement::HashWithOwner => (row_hash_with_owner(key) % shards) as usize,
            Placement::List { keys, default } => keys.get(&key).copied().unwrap_or(*default),
            Placement::Range { bounds } => bounds.partition_point(|bound| *bound <= key),
        }
    }

    /// What a DBA types for it.
    pub fn declaration(&self, cluster: &str, column: &str) -> Vec<String> {
        let (cluster, column) = (literal(cluster), literal(column));
        let key = |method: &str| {
            format!("SELECT reshard_set_sharding_key({cluster}, {column}, '{method}')")
        };
        match self {
            Placement::Hash => {
                vec![format!("SELECT reshard_set_sharding_key({cluster}, {column})")]
            }
            Placement::HashWithOwner => vec![format!(
                "SELECT reshard_set_sharding_key({cluster}, ARRAY[{column}, 'owner'])"
            )],
            Placement::List { keys, default } => {
                let mut shards: BTreeMap<usize, Vec<String>> = BTreeMap::new();
                for (key, shard) in keys {
                    shards.entry(*shard).or_default().push(key.to_string());
                }
                let map = shards.into_iter().map(|(shard, keys)| {
                    format!(
                        "SELECT reshard_map_values({cluster}, {column}, '{{{}}}', {shard})",
                        keys.join(",")
                    )
                });
                let default = format!("SELECT reshard_map_default({cluster}, {column}, {default})");
                [key("list")].into_iter().chain(map).chain([default]).collect()
            }
            Placement::Range { bounds } => {
                let text = |bound: Option<&i64>| bound.map_or("NULL".into(), |b| format!("'{b}'"));
                let map = (0..=bounds.len()).map(|shard| {
                    let lower = text(shard.checked_sub(1).and_then(|n| bounds.get(n)));
                    let upper = text(bounds.get(shard));
                    format!(
                        "SELECT reshard_map_range({cluster}, {column}, {lower}, {upper}, {shard})"
                    )
                });
                [key("range")].into_iter().chain(map).collect()
            }
        }
    }

    /// A session's temporary table `placement` that is partitioned by keys of this type,
    /// and the key's columns; by hash.
    pub fn partitioned(&self, key: &str, key_type: &str) -> Option<(String, String)> {
        let (columns, names, key) = match self {
            Placement::Hash => (format!("k {key_type}"), "k", key.to_owned()),
            Placement::HashWithOwner => {
                (format!("k {key_type}, o integer"), "k, o", format!("{key}, owner"))
            }
            _ => return None,
        };
        let table = format!(
            "DROP TABLE IF EXISTS pg_temp.placement;
             CREATE TEMP TABLE placement ({columns}) PARTITION BY HASH ({names})"
        );
        Some((table, key))
    }

    /// True for the rows of one shard, by an expression for the key; not by hash.
    pub fn condition(&self, key: &str, shard: usize) -> Option<String> {
        match self {
            Placement::Hash | Placement::HashWithOwner => None,
            Placement::List { keys, default } => {
                let of = |wanted: &dyn Fn(usize) -> bool| {
                    let keys = keys.iter().filter(|(_, s)| wanted(**s));
                    let keys: Vec<String> = keys.map(|(k, _)| k.to_string()).collect();
                    format!("'{{{}}}'::bigint[] @> ARRAY[{key}::bigint]", keys.join(","))
                };
                Some(match shard == *default {
                    true => format!("NOT ({})", of(&|s| s != shard)),
                    false => of(&|s| s == shard),
                })
            }
            Placement::Range { bounds } => {
                let bounds: Vec<String> = bounds.iter().map(i64::to_string).collect();
                Some(format!(
                    "width_bucket({key}::bigint, '{{{}}}'::bigint[]) = {shard}",
                    bounds.join(",")
                ))
            }
        }
    }
}

/// The shard, `0..shards`, by hash on which rows with this key live.
pub fn shard_of(key: i64, shards: u64) -> usize {
    (row_hash(key) % shards) as usize
}

/// The owner of all rows with this key, as clients write them.
pub fn owner_of(key: i64) -> i32 {
    (key / 1_000_000) as i32
}

fn row_hash(key: i64) -> u64 {
    // 0 is the row's hash before its first column.
    hash_combine64(0, hashint8extended(key, SEED))
}

fn row_hash_with_owner(key: i64) -> u64 {
    hash_combine64(row_hash(key), hash_uint32_extended(owner_of(key) as u32, SEED))
}

fn hash_combine64(a: u64, b: u64) -> u64 {
    a ^ b.wrapping_add(0x49A0_F4DD_15E5_A8E3).wrapping_add(a << 54).wrapping_add(a >> 7)
}

fn hashint8extended(value: i64, seed: u64) -> u64 {
    let low = value as u32;
    let high = (value >> 32) as u32;
    let folded = low ^ if value >= 0 { high } else { !high };
    hash_uint32_extended(folded, seed)
}

fn hash_uint32_extended(key: u32, seed: u64) -> u64 {
    let start = 0x9E37_79B9_u32.wrapping_add(4).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    if seed != 0 {
        a = a.wrapping_add((seed >> 32) as u32);
        b = b.wrapping_add(seed as u32);
        mix(&mut a, &mut b, &mut c);
    }
    a = a.wrapping_add(key);
    finish(&mut a, &mut b, &mut c);
    (u64::from(b) << 32) | u64::from(c)
}

fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    let step = |x: &mut u32, y: &mut u32, z: &mut u32, bits: u32| {
        *x = x.wrapping_sub(*z) ^ z.rotate_left(bits);
        *z = z.wrapping_add(*y);
    };
    step(a, b, c, 4);
    step(b, c, a, 6);
    step(c, a, b, 8);
    step(a, b, c, 16);
    step(b, c, a, 19);
    step(c, a, b, 4);
}

fn finish(a: &mut u32, b: &mut u32, c: &mut u32) {
    let step = |x: &mut u32, y: &u32, bits: u32| {
        *x = (*x ^ *y).wrapping_sub(y.rotate_left(bits));
    };
    step(c, b, 14);
    step(a, c, 11);
    step(b, a, 25);
    step(c, b, 16);
    step(a, c, 4);
    step(b, a, 14);
    step(c, b, 24);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of `hashint8extended(key, 8816678312871386365)`, PostgreSQL 15.
    #[test]
    fn hash_is_the_servers() {
        for (key, hash) in KNOWN {
            assert_eq!(hashint8extended(key, SEED) as i64, hash, "key {key}");
        }
    }

    #[test]
    fn lists_and_ranges_have_a_default_and_bounds() {
        let list = Placement::List { keys: BTreeMap::from([(7, 1)]), default: 2 };
        assert_eq!([7, 8].map(|key| list.shard_of(key, 3)), [1, 2]);
        let range = Placement::Range { bounds: vec![0, 10] };
        assert_eq!([-1, 0, 9, 10].map(|key| range.shard_of(key, 3)), [0, 1, 1, 2]);
    }

    const KNOWN: [(i64, i64); 6] = [
        (0, -4_403_592_609_991_167_795),
        (1, 5_968_994_663_651_403_477),
        (42, 7_363_975_540_656_877_951),
        (-1, -5_017_072_347_659_237_694),
        (5_000_000_000, -2_799_505_259_769_899_283),
        (i64::MIN, -6_050_265_599_104_649_060),
    ];
}
