//! The extended hashes of a sharding key's columns, as hash partitioning computes them.
use pgrx::pg_sys;

use crate::cluster::placement::{shard_of_hashes, ShardNo, HASH_PARTITION_SEED};
use crate::error::{Error, Kind, Result};
use crate::pg::scan::{Attribute, Row};
use crate::pg::value::Value;

/// The shard of single values, one for each column of the key, `None` for null: each
/// hashed by the default hash operator class of its type, under its own collation.
///
/// # Errors
/// 42704 where a type has no extended hash function.
pub fn shard_of_values(values: &[Option<Value>], shards: u32) -> Result<ShardNo> {
    let hash_of = |value: &Value| {
        let function = function_of(value.type_oid)?;
        Ok(unsafe { hash(function, value.collation, value.datum) })
    };
    let hashes: Vec<Option<u64>> =
        values.iter().map(|v| v.as_ref().map(hash_of).transpose()).collect::<Result<_>>()?;
    Ok(shard_of_hashes(hashes.into_iter(), shards))
}

fn function_of(type_oid: pg_sys::Oid) -> Result<*mut pg_sys::FmgrInfo> {
    let flags = pg_sys::TYPECACHE_HASH_EXTENDED_PROC_FINFO as i32;
    let function = unsafe {
        let entry = pg_sys::lookup_type_cache(type_oid, flags);
        &raw mut (*entry).hash_extended_proc_finfo
    };
    if unsafe { (*function).fn_oid } == pg_sys::InvalidOid {
        return Err(Error::new(
            Kind::MissingObject,
            format!("type {} has no extended hash function", type_oid.to_u32()),
        )
        .hint("Choose another sharding key."));
    }
    Ok(function)
}

/// # Safety
/// The function is an extended hash function of the datum's type.
unsafe fn hash(
    function: *mut pg_sys::FmgrInfo,
    collation: pg_sys::Oid,
    datum: pg_sys::Datum,
) -> u64 {
    let seed = pg_sys::Datum::from(HASH_PARTITION_SEED);
    unsafe { pg_sys::FunctionCall2Coll(function, collation, datum, seed) }.value() as u64
}

/// Hashes the key columns of the rows of a scan.
pub struct KeyHash {
    columns: Vec<Column>,
    shards: u32,
    scratch: pg_sys::MemoryContext,
}

struct Column {
    index: usize,
    collation: pg_sys::Oid,
    function: *mut pg_sys::FmgrInfo,
}

impl KeyHash {
    /// By the default hash operator class of each column's type: the one that
    /// `PARTITION BY HASH` takes. Values are detoasted in `scratch`, which the caller
    /// resets.
    ///
    /// # Errors
    /// 42704 where a type has no extended hash function.
    pub fn new(key: &[Attribute], shards: u32, scratch: pg_sys::MemoryContext) -> Result<Self> {
        let column = |a: &Attribute| {
            let function = function_of(a.type_oid)?;
            Ok(Column { index: a.index, collation: a.collation, function })
        };
        let columns = key.iter().map(column).collect::<Result<_>>()?;
        Ok(Self { columns, shards, scratch })
    }

    /// The shard of a row.
    #[inline]
    pub fn of(&self, row: Row<'_>) -> ShardNo {
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let hashes = self.columns.iter().map(|column| {
                let datum = row.datum(column.index)?;
                Some(hash(column.function, column.collation, datum))
            });
            let shard = shard_of_hashes(hashes, self.shards);
            pg_sys::MemoryContextSwitchTo(before);
            shard
        }
    }
}
