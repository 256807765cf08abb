//! Placement by list and by range: which keys were mapped to which shard.
//!
//! Generic over what a key is: text as it was declared, or a value that the
//! server can compare. Only its type's own operators know how keys compare, so
//! whoever has them brings them.
use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::cluster::placement::ShardNo;

/// A key and its shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value<T> {
    /// The key.
    pub key: T,
    /// Where it belongs.
    pub shard: ShardNo,
}

/// Keys from `lower` up to, but not with, `upper`; `None` is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range<T> {
    /// The first key.
    pub lower: Option<T>,
    /// The first key that does not belong any more.
    pub upper: Option<T>,
    /// Where they belong.
    pub shard: ShardNo,
}

/// Keys that are mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys<T> {
    /// One by one.
    Values(Vec<Value<T>>),
    /// By ranges.
    Ranges(Vec<Range<T>>),
}

/// Which keys belong to which shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMap<T = String> {
    /// Keys that are mapped.
    pub keys: Keys<T>,
    /// Where null belongs, where it is mapped by itself.
    pub null: Option<ShardNo>,
    /// Where all other keys belong, null too; `None`: they have no shard.
    pub default: Option<ShardNo>,
}

/// Two mappings that contradict each other, or one that holds nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict<T> {
    /// A key is mapped to two shards.
    Twice(Value<T>, Value<T>),
    /// A key is in two ranges.
    Overlap(Range<T>, Range<T>),
    /// No key is in the range.
    Empty(Range<T>),
}

impl<T> KeyMap<T> {
    /// The same map of other keys.
    ///
    /// # Errors
    /// The first that `read` returns.
    pub fn try_map<U, E>(&self, mut read: impl FnMut(&T) -> Result<U, E>) -> Result<KeyMap<U>, E> {
        let keys = match &self.keys {
            Keys::Values(values) => Keys::Values(
                values
                    .iter()
                    .map(|v| Ok(Value { key: read(&v.key)?, shard: v.shard }))
                    .collect::<Result<_, E>>()?,
            ),
            Keys::Ranges(ranges) => Keys::Ranges(
                ranges
                    .iter()
                    .map(|r| {
                        Ok(Range {
                            lower: r.lower.as_ref().map(&mut read).transpose()?,
                            upper: r.upper.as_ref().map(&mut read).transpose()?,
                            shard: r.shard,
                        })
                    })
                    .collect::<Result<_, E>>()?,
            ),
        };
        Ok(KeyMap { keys, null: self.null, default: self.default })
    }

    /// Puts the keys in order, so that they can be searched.
    ///
    /// # Errors
    /// Two mappings that contradict each other; a value that is mapped to the same shard
    /// twice is none.
    pub fn sort(&mut self, compare: impl Fn(&T, &T) -> Ordering) -> Result<(), Conflict<T>>
    where
        T: Clone,
    {
        match &mut self.keys {
            Keys::Values(values) => {
                values.sort_by(|a, b| compare(&a.key, &b.key));
                let equal = |a: &Value<T>, b: &Value<T>| compare(&a.key, &b.key).is_eq();
                let twice = values.windows(2).find_map(|pair| match pair {
                    [a, b] if equal(a, b) && a.shard != b.shard => Some((a.clone(), b.clone())),
                    _ => None,
                });
                if let Some((a, b)) = twice {
                    return Err(Conflict::Twice(a, b));
                }
                values.dedup_by(|a, b| equal(a, b));
            }
            Keys::Ranges(ranges) => {
                let empty = ranges.iter().find(|r| match (&r.lower, &r.upper) {
                    (Some(lower), Some(upper)) => compare(lower, upper).is_ge(),
                    _ => false,
                });
                if let Some(empty) = empty {
                    return Err(Conflict::Empty(empty.clone()));
                }
                ranges.sort_by(|a, b| match (&a.lower, &b.lower) {
                    (None, None) => Ordering::Equal,
                    (None, Some(_)) => Ordering::Less,
                    (Some(_), None) => Ordering::Greater,
                    (Some(a), Some(b)) => compare(a, b),
                });
                let apart = |a: &Range<T>, b: &Range<T>| match (&a.upper, &b.lower) {
                    (Some(upper), Some(lower)) => compare(upper, lower).is_le(),
                    _ => false,
                };
                let overlap = ranges.windows(2).find_map(|pair| match pair {
                    [a, b] if !apart(a, b) => Some((a.clone(), b.clone())),
                    _ => None,
                });
                if let Some((a, b)) = overlap {
                    return Err(Conflict::Overlap(a, b));
                }
            }
        }
        Ok(())
    }

    /// The shard of a key in a sorted map; `compare` tells how a mapped key compares to it.
    pub fn shard_of(&self, mut compare: impl FnMut(&T) -> Ordering) -> Option<ShardNo> {
        let mapped = match &self.keys {
            Keys::Values(values) => {
                let found = values.binary_search_by(|v| compare(&v.key));
                found.ok().and_then(|at| values.get(at)).map(|v| v.shard)
            }
            Keys::Ranges(ranges) => {
                let begun = |r: &Range<T>, compare: &mut dyn FnMut(&T) -> Ordering| {
                    r.lower.as_ref().is_none_or(|lower| compare(lower).is_le())
                };
                let after = ranges.partition_point(|r| begun(r, &mut compare));
                let last = after.checked_sub(1).and_then(|at| ranges.get(at));
                last.filter(|r| r.upper.as_ref().is_none_or(|upper| compare(upper).is_gt()))
                    .map(|r| r.shard)
            }
        };
        mapped.or(self.default)
    }

    /// The shard of a null key.
    pub fn shard_of_null(&self) -> Option<ShardNo> {
        self.null.or(self.default)
    }

    /// All shards that keys are mapped to, as often as they are.
    pub fn shards(&self) -> impl Iterator<Item = ShardNo> + '_ {
        let (values, ranges) = match &self.keys {
            Keys::Values(values) => (values.as_slice(), &[][..]),
            Keys::Ranges(ranges) => (&[][..], ranges.as_slice()),
        };
        let mapped = values.iter().map(|v| v.shard).chain(ranges.iter().map(|r| r.shard));
        mapped.chain(self.null).chain(self.default)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(values: &[(i32, u32)], null: Option<u32>, default: Option<u32>) -> KeyMap<i32> {
        let values =
            values.iter().map(|(key, shard)| Value { key: *key, shard: ShardNo(*shard) }).collect();
        KeyMap {
            keys: Keys::Values(values),
            null: null.map(ShardNo),
            default: default.map(ShardNo),
        }
    }

    fn ranges(of: &[(Option<i32>, Option<i32>, u32)], default: Option<u32>) -> KeyMap<i32> {
        let ranges = of
            .iter()
            .map(|(lower, upper, shard)| Range {
                lower: *lower,
                upper: *upper,
                shard: ShardNo(*shard),
            })
            .collect();
        KeyMap { keys: Keys::Ranges(ranges), null: None, default: default.map(ShardNo) }
    }

    fn at(map: &KeyMap<i32>, key: i32) -> Option<u32> {
        map.shard_of(|bound| bound.cmp(&key)).map(|s| s.0)
    }

    #[test]
    fn a_listed_key_has_its_shard_and_others_the_default() {
        let mut map = list(&[(7, 1), (3, 0), (5, 2)], None, None);
        map.sort(i32::cmp).unwrap();
        assert_eq!([3, 5, 7, 4].map(|k| at(&map, k)), [Some(0), Some(2), Some(1), None]);
        map.default = Some(ShardNo(2));
        assert_eq!(at(&map, 4), Some(2));
    }

    #[test]
    fn null_has_its_own_shard_or_the_default_or_none() {
        assert_eq!(list(&[], Some(1), Some(2)).shard_of_null(), Some(ShardNo(1)));
        assert_eq!(list(&[], None, Some(2)).shard_of_null(), Some(ShardNo(2)));
        assert_eq!(list(&[(1, 0)], None, None).shard_of_null(), None);
    }

    #[test]
    fn a_range_holds_its_lower_bound_and_not_its_upper_one() {
        let mut map =
            ranges(&[(Some(20), None, 2), (None, Some(0), 0), (Some(0), Some(10), 1)], None);
        map.sort(i32::cmp).unwrap();
        let keys = [-5, 0, 9, 10, 19, 20, 99];
        let shards = [Some(0), Some(1), Some(1), None, None, Some(2), Some(2)];
        assert_eq!(keys.map(|k| at(&map, k)), shards);
    }

    #[test]
    fn contradictions_are_found() {
        let twice = list(&[(1, 0), (2, 0), (1, 1)], None, None).sort(i32::cmp);
        assert!(matches!(twice, Err(Conflict::Twice(a, _)) if a.key == 1));
        assert!(list(&[(1, 0), (1, 0)], None, None).sort(i32::cmp).is_ok());
        for overlapping in [
            [(Some(0), Some(10), 0), (Some(9), Some(20), 1)],
            [(None, Some(10), 0), (None, Some(5), 1)],
            [(Some(0), None, 0), (Some(9), Some(20), 1)],
            [(Some(0), Some(10), 0), (Some(2), Some(5), 0)],
        ] {
            let found = ranges(&overlapping, None).sort(i32::cmp);
            assert!(matches!(found, Err(Conflict::Overlap(..))), "{overlapping:?}");
        }
        let empty = ranges(&[(Some(5), Some(5), 0)], None).sort(i32::cmp);
        assert!(matches!(empty, Err(Conflict::Empty(_))));
        let touching = ranges(&[(Some(0), Some(10), 0), (Some(10), Some(20), 1)], None);
        assert!(touching.clone().sort(i32::cmp).is_ok());
    }

    #[test]
    fn nothing_mapped_places_nothing() {
        assert_eq!(at(&ranges(&[], None), 1), None);
        assert_eq!(at(&ranges(&[(None, None, 3)], None), 1), Some(3));
    }
}
