//! The extended hash of a sharding key, as hash partitioning computes it.
use pgrx::pg_sys;

use crate::cluster::placement::HASH_PARTITION_SEED;
use crate::error::{Error, Kind, Result};
use crate::pg::scan::{Attribute, Row};

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
        let entry = unsafe {
            pg_sys::lookup_type_cache(
                attribute.type_oid,
                pg_sys::TYPECACHE_HASH_EXTENDED_PROC_FINFO as i32,
            )
        };
        let function = unsafe { &raw mut (*entry).hash_extended_proc_finfo };
        if unsafe { (*function).fn_oid } == pg_sys::InvalidOid {
            return Err(Error::new(
                Kind::MissingObject,
                format!("type {} has no extended hash function", attribute.type_oid.to_u32()),
            )
            .hint("Choose another sharding key."));
        }
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
