//! Which shard a bigint key belongs to, worked out by a client on its own.
//!
//! The same arithmetic as `PARTITION BY HASH` on one bigint column
//! (src/backend/partitioning/partbounds.c, `compute_partition_hash_value`;
//! src/common/hashfn.c, `hash_bytes_uint32_extended`), as a pooler does it.

/// `HASH_PARTITION_SEED` of partition.h.
const SEED: u64 = 0x7A5B_2236_7996_DCFD;

/// The shard, `0..shards`, on which rows with this key live.
pub fn shard_of(key: i64, shards: u64) -> usize {
    (row_hash(key) % shards) as usize
}

fn row_hash(key: i64) -> u64 {
    // hash_combine64(0, hash), where 0 is the row's hash before its first column.
    hashint8extended(key, SEED).wrapping_add(0x49A0_F4DD_15E5_A8E3)
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

    const KNOWN: [(i64, i64); 6] = [
        (0, -4_403_592_609_991_167_795),
        (1, 5_968_994_663_651_403_477),
        (42, 7_363_975_540_656_877_951),
        (-1, -5_017_072_347_659_237_694),
        (5_000_000_000, -2_799_505_259_769_899_283),
        (i64::MIN, -6_050_265_599_104_649_060),
    ];
}
