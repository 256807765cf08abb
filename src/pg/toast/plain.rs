//! Values that are stored as they are: no copy of them is made on the way.
use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::{on_disk, raise, size, stored_size, HEADER};
use crate::pg::encode::Overflow;

/// Bytes that are read at a time.
const SLICE: usize = 64 * 1024;

/// An out-of-line value that is not compressed.
pub struct PlainValue {
    pointer: pg_sys::varatt_external,
    size: usize,
}

impl PlainValue {
    /// The value behind a datum of variable length; `None` where it is compressed or not
    /// out of line.
    ///
    /// # Safety
    /// `datum` is not null and of a type of variable length.
    #[inline]
    pub unsafe fn of(datum: pg_sys::Datum) -> Option<Self> {
        let (_, pointer) = unsafe { on_disk(datum) }?;
        let size = size(&pointer)?;
        (size == stored_size(&pointer)).then_some(Self { pointer, size })
    }

    /// Its size in bytes, without header.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Reads the values of one scan: keeps their TOAST table open, locked with ACCESS SHARE to
/// the end of the transaction.
#[derive(Default)]
pub struct Reader {
    table: Cell<Option<(pg_sys::Oid, pg_sys::Relation)>>,
}

impl Reader {
    /// Appends a value, handing full buffers over as it goes; false as soon as `overflow`
    /// says stop. Raises XX001 where the stored bytes are not what they should be.
    pub fn append(
        &self,
        value: &PlainValue,
        out: &mut Vec<u8>,
        overflow: &mut dyn Overflow,
    ) -> bool {
        let mut at = 0;
        while at < value.size {
            let size = SLICE.min(value.size - at);
            unsafe { self.read(value, at, size, out) };
            at += size;
            if out.len() >= overflow.capacity() && !overflow.take(out) {
                return false;
            }
        }
        true
    }

    /// Appends `size` bytes of a value from `at` on, which it has.
    unsafe fn read(&self, value: &PlainValue, at: usize, size: usize, out: &mut Vec<u8>) {
        out.reserve(size);
        unsafe {
            let table = self.open(value.pointer.va_toastrelid);
            let end = out.as_mut_ptr().add(out.len());
            // Only what follows the header is written to: `heap_fetch_toast_slice` of
            // src/backend/access/heap/heaptoast.c leaves the length to its caller.
            let result = end.wrapping_sub(HEADER).cast::<pg_sys::varlena>();
            let number = value.pointer.va_valueid;
            let (whole, at, slice) = (value.size as i32, at as i32, size as i32);
            let Some(fetch) = (*(*table).rd_tableam).relation_fetch_toast_slice else {
                raise("a TOAST table that has no slices");
            };
            pg_guard_ffi_boundary(|| fetch(table, number, whole, at, slice, result));
            out.set_len(out.len() + size);
        }
    }

    unsafe fn open(&self, oid: pg_sys::Oid) -> pg_sys::Relation {
        match self.table.get() {
            Some((open, table)) if open == oid => table,
            other => unsafe {
                close(other);
                let table = pg_sys::table_open(oid, pg_sys::AccessShareLock as i32);
                self.table.set(Some((oid, table)));
                table
            },
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // While an error is on its way, the transaction's abort closes the table.
        if !std::thread::panicking() {
            unsafe { close(self.table.take()) };
        }
    }
}

unsafe fn close(table: Option<(pg_sys::Oid, pg_sys::Relation)>) {
    if let Some((_, table)) = table {
        unsafe { pg_sys::table_close(table, pg_sys::NoLock as i32) };
    }
}
