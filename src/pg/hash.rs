//! The extended hash of a sharding key, as hash partitioning computes it.
use pgrx::pg_sys;

use crate::cluster::placement::HASH_PARTITION_SEED;
use crate::error::{Error, Kind, Result};
use crate::pg::scan::{Attribute, Row};

/// The extended hash of a single value, by the default hash operator class of its
/// type and that type's default collation.
///
/// # Errors
/// 42704 where the type has no extended hash function.
pub fn of_value(value: &pgrx::AnyElement) -> Result<u64> {
    let function = function_of(value.oid())?;
    unsafe {
        let collation = pg_sys::get_typcollation(value.oid());
        let seed = pg_sys::Datum::from(HASH_PARTITION_SEED);
        let hash = pg_sys::FunctionCall2Coll(function, collation, value.datum(), seed);
        Ok(hash.value() as u64)
    }
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

/// Hashes one column of the rows of a scan.
pub struct KeyHash {
    index: usize,
    collation: pg_sys::Oid,
    function: *mut pg_sys::FmgrInfo,
    scratch: pg_sys::MemoryContext,
}

impl KeyHash {
    /// The hash of a key column, by the default hash operator class of its type:
    /// the one that `PARTITION BY HASH` takes. Values are detoasted in `scratch`,
    /// which the caller resets.
    ///
    /// # Errors
    /// 42704 where the type has no extended hash function.
    pub fn new(attribute: Attribute, scratch: pg_sys::MemoryContext) -> Result<Self> {
        let function = function_of(attribute.type_oid)?;
        Ok(Self { index: attribute.index, collation: attribute.collation, function, scratch })
    }

    /// The key's hash; `None` for a null key.
    #[inline]
    pub fn of(&self, row: Row<'_>) -> Option<u64> {
        let datum = row.datum(self.index)?;
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let hash = pg_sys::FunctionCall2Coll(
                self.function,
                self.collation,
                datum,
                pg_sys::Datum::from(HASH_PARTITION_SEED),
            );
            pg_sys::MemoryContextSwitchTo(before);
            Some(hash.value() as u64)
        }
    }
}
