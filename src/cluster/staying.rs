//! Shards that are in both clusters: which, and what the placements say of rows that come to
//! them. Pure.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::keymap::{Keys, Value};
use crate::cluster::{Cluster, KeyMap, Placement, ShardNo, ShardingKey};

/// The shards of a destination that are shards of the source too. Their rows stay where they
/// are, but for those of other shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staying {
    /// By their numbers in the destination, with those in the source.
    pub shards: BTreeMap<ShardNo, ShardNo>,
    /// Rows may have to move from one shard of the source to another one: there are flows
    /// between those, too.
    pub receive: bool,
}

impl Staying {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// The number in the destination of a shard of the source, where it is in both.
    pub fn of_node(&self, node: ShardNo) -> Option<ShardNo> {
        self.shards.iter().find(|(_, source)| **source == node).map(|(shard, _)| *shard)
    }

    /// Whether rows come from a shard of the source to one of the destination: to those that
    /// join from all, to another one that stays where it receives rows.
    pub fn has_flow(&self, node: ShardNo, shard: ShardNo) -> bool {
        match self.shards.get(&shard) {
            None => true,
            Some(same) => self.receive && *same != node,
        }
    }
}

/// Whether the placements of a table rule out that a row has to move to a shard that stays.
///
/// From one shard none does: it is the one that stays. By hash over the same columns, the
/// shard among n is the remainder by n of the one among m where m is a multiple of n. By list
/// it is said key by key. By range it would take the server to compare bounds.
pub fn none_arrives(
    source: &Cluster,
    destination: &Cluster,
    (from, to): (Option<ShardingKey<'_>>, Option<ShardingKey<'_>>),
) -> bool {
    let (n, m) = (source.size(), destination.size());
    let (from, to) = match (from, to) {
        (Some(from), Some(to)) if n > 1 => (from, to),
        // All of it is on each shard of the source, or will be.
        _ => return true,
    };
    if from.columns != to.columns {
        return false;
    }
    let mut staying = destination.staying.shards.iter();
    match (source.placement(Some(from)), destination.placement(Some(to))) {
        (Placement::Hash { .. }, Placement::Hash { .. }) => {
            m % n == 0 && staying.all(|(shard, source)| shard.0 % n == source.0)
        }
        (Placement::Mapped(before), Placement::Mapped(after)) => {
            staying.all(|(shard, source)| keeps((&before, *source), (&after, *shard)))
        }
        _ => false,
    }
}

/// Whether all keys that one list maps to a shard were mapped to that other one before: told
/// by their texts, so one that is written otherwise counts as another key.
fn keeps((before, source): (&KeyMap, ShardNo), (after, shard): (&KeyMap, ShardNo)) -> bool {
    let (Keys::Values(old), Keys::Values(new)) = (&before.keys, &after.keys) else { return false };
    let of = |all: &[Value<String>], key: &str| all.iter().find(|v| v.key == key).map(|v| v.shard);
    let listed = new.iter().filter(|v| v.shard == shard).all(|v| of(old, &v.key) == Some(source));
    let takes_others = after.default == Some(shard);
    let others = !takes_others
        || before.default == Some(source)
            && old
                .iter()
                .filter(|v| v.shard != source)
                .all(|v| of(new, &v.key).is_some_and(|now| now != shard));
    let null = after.null.or(after.default) != Some(shard)
        || before.null.or(before.default) == Some(source);
    listed && others && null
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::Method;
    use crate::remote::{Conninfo, Endpoint};

    fn cluster(shards: u32, staying: &[(u32, u32)]) -> Cluster {
        let endpoint = |shard| Endpoint {
            cluster: "c".into(),
            shard,
            conninfo: Conninfo::parse("host=h dbname=d").unwrap(),
        };
        let staying = Staying {
            shards: staying.iter().map(|(d, s)| (ShardNo(*d), ShardNo(*s))).collect(),
            receive: true,
        };
        Cluster::new("c", (0..shards).map(endpoint).collect()).unwrap().with_staying(staying)
    }

    fn none_arrives_from(n: u32, m: u32, staying: &[(u32, u32)]) -> bool {
        let columns = ["k".to_owned()];
        let key = Some(ShardingKey { columns: &columns, method: Method::Hash });
        none_arrives(&cluster(n, &[]), &cluster(m, staying), (key, key))
    }

    #[test]
    fn doubling_by_hash_moves_rows_to_new_shards_alone() {
        assert!(none_arrives_from(2, 4, &[(0, 0), (1, 1)]));
        assert!(none_arrives_from(2, 4, &[(2, 0), (1, 1)]));
        assert!(!none_arrives_from(2, 4, &[(0, 1), (1, 0)]));
        assert!(!none_arrives_from(2, 3, &[(0, 0), (1, 1)]));
        assert!(none_arrives_from(1, 3, &[(0, 0)]));
    }

    fn list(keys: &[(&str, u32)], default: Option<u32>) -> KeyMap {
        let value =
            |(key, shard): &(&str, u32)| Value { key: (*key).into(), shard: ShardNo(*shard) };
        KeyMap {
            keys: Keys::Values(keys.iter().map(value).collect()),
            null: None,
            default: default.map(ShardNo),
        }
    }

    #[test]
    fn a_key_of_a_list_moves_to_a_new_shard_alone() {
        let before = list(&[("a", 0), ("b", 0), ("c", 1)], Some(1));
        let keeps =
            |after: &KeyMap, shard| keeps((&before, ShardNo(shard)), (after, ShardNo(shard)));
        let moved = list(&[("a", 0), ("b", 2), ("c", 1)], Some(1));
        assert!(keeps(&moved, 0) && keeps(&moved, 1));
        assert!(!keeps(&list(&[("b", 2)], Some(1)), 1), "\"a\" comes");
        let listed = list(&[("a", 0), ("b", 2), ("c", 1)], Some(2));
        assert!(keeps(&listed, 0) && keeps(&listed, 1));
        let arrives = list(&[("a", 1), ("b", 0), ("c", 1)], Some(2));
        assert!(keeps(&arrives, 0) && !keeps(&arrives, 1));
        // Another text may be another key.
        assert!(!keeps(&list(&[("A", 0)], None), 0));
    }

    #[test]
    fn rows_come_to_a_shard_that_stays_from_others_alone() {
        let staying = cluster(3, &[(0, 1)]).staying;
        assert!(!staying.has_flow(ShardNo(1), ShardNo(0)));
        assert!(staying.has_flow(ShardNo(0), ShardNo(0)));
        assert!(staying.has_flow(ShardNo(1), ShardNo(2)));
        let gives = Staying { receive: false, ..staying };
        assert!(!gives.has_flow(ShardNo(0), ShardNo(0)));
        assert_eq!(gives.of_node(ShardNo(1)), Some(ShardNo(0)));
        assert_eq!(gives.of_node(ShardNo(0)), None);
    }

    #[test]
    fn other_placements_may_bring_rows_anywhere() {
        let columns = ["k".to_owned()];
        let by = |method| Some(ShardingKey { columns: &columns, method });
        let (source, destination) = (cluster(2, &[]), cluster(4, &[(0, 0), (1, 1)]));
        assert!(!none_arrives(&source, &destination, (by(Method::Hash), by(Method::List))));
        assert!(!none_arrives(&source, &destination, (by(Method::Range), by(Method::Range))));
        assert!(none_arrives(&source, &destination, (None, None)));
    }
}
