//! Where a row belongs: key value -> shard.
//!
//! Hash placement is exactly `PARTITION BY HASH`: the extended hashes of the key's
//! columns under `HASH_PARTITION_SEED`, combined in their order as
//! `compute_partition_hash_value` of src/backend/partitioning/partbounds.c does,
//! modulo the number of shards. A null column contributes nothing, so a row whose
//! key is all null belongs to shard 0.
//!
//! Placement by list and by range is [`super::keymap`].
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::keymap::KeyMap;

/// `HASH_PARTITION_SEED` of src/backend/partitioning/partbounds.c.
pub const HASH_PARTITION_SEED: u64 = 0x7A5B_2236_7996_DCFD;

/// The number of a shard in its cluster, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardNo(pub u32);

impl fmt::Display for ShardNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ShardNo {
    /// As an index into a list of shards.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// As it is kept in state tables.
    pub fn as_i32(self) -> i32 {
        self.0 as i32
    }
}

/// How the rows of one table spread over the shards of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Every shard gets every row: an omni table, or a cluster of one shard.
    All,
    /// By the hash of its key's columns.
    Hash {
        /// Number of shards.
        shards: u32,
    },
    /// By what its key is mapped to.
    Mapped(Arc<KeyMap>),
}

/// The shard of a key by the extended hash values of its columns; `None` for a null.
pub fn shard_of_hashes(hashes: impl Iterator<Item = Option<u64>>, shards: u32) -> ShardNo {
    let row_hash = hashes.flatten().fold(0, hash_combine64);
    ShardNo((row_hash % u64::from(shards)) as u32)
}

/// `hash_combine64` of src/include/common/hashfn.h.
pub fn hash_combine64(a: u64, b: u64) -> u64 {
    a ^ (b.wrapping_add(0x49A0_F4DD_15E5_A8E3).wrapping_add(a << 54).wrapping_add(a >> 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_key_belongs_to_shard_zero() {
        assert_eq!(shard_of_hashes([None].into_iter(), 7), ShardNo(0));
        assert_eq!(shard_of_hashes([None, None].into_iter(), 7), ShardNo(0));
    }

    #[test]
    fn a_null_column_contributes_nothing() {
        let of = |hashes: &[Option<u64>]| shard_of_hashes(hashes.iter().copied(), 1_000_003);
        assert_eq!(of(&[Some(7), None]), of(&[Some(7)]));
        assert_eq!(of(&[None, Some(7)]), of(&[Some(7)]));
        assert_ne!(of(&[Some(7), Some(8)]), of(&[Some(8), Some(7)]));
    }

    #[test]
    fn every_shard_is_in_range() {
        for hash in (0..1000u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            assert!(shard_of_hashes([Some(hash), Some(!hash)].into_iter(), 5).0 < 5);
        }
    }
}
