//! Out-of-line values, read from the TOAST table slice by slice.
//!
//! The server's own functions return a value as a whole, and decompress from its
//! beginning for each slice. Here a value that is not compressed is read right to where
//! it is wanted ([`PlainValue`]), and a large one is decompressed as it comes
//! ([`LargeValue`]): it costs one slice and one window, whatever its size. Form of the
//! pointer: `src/include/varatt.h` (`postgres.h` before 16), of what is stored:
//! `toast_save_datum` of `src/backend/access/common/toast_internals.c`.
mod decode;
mod plain;

use pgrx::{pg_sys, varlena};

use crate::error::{Error, Kind};
use crate::pg::report;
use decode::{Decoder, Method};
pub use plain::{PlainValue, Reader};

/// Values of at least so many bytes are worth reading in pieces.
const LARGE: usize = 1024 * 1024;
/// Bytes that are read from the TOAST table at a time.
const SLICE: usize = 256 * 1024;
/// `VARHDRSZ`: the length word that `va_rawsize` counts.
const HEADER: usize = 4;
/// The low bits of `va_extinfo` are the stored size (`VARLENA_EXTSIZE_BITS`).
const SIZE_BITS: u32 = 30;
/// Header and tag before the pointer itself.
const POINTER_AT: usize = 2;
const POINTER_SIZE: usize = POINTER_AT + size_of::<pg_sys::varatt_external>();

/// The pointer that a datum of variable length is where its value lies out of line, as its
/// bytes and as what they say.
///
/// # Safety
/// `datum` is not null and of a type of variable length.
#[inline]
unsafe fn on_disk(datum: pg_sys::Datum) -> Option<([u8; POINTER_SIZE], pg_sys::varatt_external)> {
    unsafe {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        if !varlena::varatt_is_1b_e(value)
            || u32::from(varlena::vartag_1b_e(value)) != pg_sys::vartag_external::VARTAG_ONDISK
        {
            return None;
        }
        let stored: [u8; POINTER_SIZE] = *value.cast();
        let pointer =
            stored.as_ptr().add(POINTER_AT).cast::<pg_sys::varatt_external>().read_unaligned();
        Some((stored, pointer))
    }
}

/// Bytes of a value, without header.
fn size(pointer: &pg_sys::varatt_external) -> Option<usize> {
    usize::try_from(pointer.va_rawsize).ok()?.checked_sub(HEADER)
}

/// Bytes that are stored of it; fewer where it is compressed.
fn stored_size(pointer: &pg_sys::varatt_external) -> usize {
    (pointer.va_extinfo & ((1 << SIZE_BITS) - 1)) as usize
}

/// A large value that lies out of line.
pub struct LargeValue {
    /// A pointer to the bytes as they are stored, compressed or not.
    stored: [u8; POINTER_SIZE],
    stored_size: usize,
    size: usize,
    method: Option<Method>,
}

impl LargeValue {
    /// The value behind a datum of variable length; `None` where it is not large
    /// or not out of line.
    ///
    /// # Safety
    /// `datum` is not null and of a type of variable length.
    pub unsafe fn of(datum: pg_sys::Datum) -> Option<Self> {
        unsafe {
            let (mut stored, mut pointer) = on_disk(datum)?;
            let size = size(&pointer)?;
            if size < LARGE {
                return None;
            }
            let stored_size = stored_size(&pointer);
            let method =
                (stored_size < size).then_some(Method::of_number(pointer.va_extinfo >> SIZE_BITS));
            // A value that is not compressed is as long as what is stored of it: so
            // the server hands the stored bytes over as they are.
            pointer.va_rawsize = (stored_size + HEADER) as i32;
            pointer.va_extinfo = stored_size as u32;
            stored
                .as_mut_ptr()
                .add(POINTER_AT)
                .cast::<pg_sys::varatt_external>()
                .write_unaligned(pointer);
            Some(Self { stored, stored_size, size, method })
        }
    }

    /// Its size in bytes, decompressed and without header.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Hands the value over in pieces; false as soon as `take` says stop. Memory
    /// is taken from `scratch`, which is reset again and again. Raises XX001 where
    /// the stored bytes are not what they should be.
    pub fn read(
        &self,
        scratch: pg_sys::MemoryContext,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let mut decoder = self.method.map(|method| Decoder::new(method, self.size));
        let mut at = 0;
        while at < self.stored_size {
            let size = SLICE.min(self.stored_size - at);
            let slice = unsafe { self.slice(scratch, at, size) };
            if slice.len() != size {
                raise(&format!("{} stored bytes instead of {size}", slice.len()));
            }
            let taken = match &mut decoder {
                None => take(slice),
                // The method and the size once more come first.
                Some(decoder) if at == 0 => decoder.feed(slice.get(HEADER..).unwrap_or(&[]), take),
                Some(decoder) => decoder.feed(slice, take),
            };
            if !taken {
                return false;
            }
            at += size;
        }
        match decoder.map_or(Ok(true), |decoder| decoder.finish(take)) {
            Ok(taken) => taken,
            Err(problem) => raise(&problem),
        }
    }

    /// Some of the stored bytes; they live until the scratch memory is reset.
    unsafe fn slice(&self, scratch: pg_sys::MemoryContext, at: usize, size: usize) -> &[u8] {
        unsafe {
            pg_sys::MemoryContextReset(scratch);
            let before = pg_sys::MemoryContextSwitchTo(scratch);
            let pointer = self.stored.as_ptr().cast_mut().cast::<pg_sys::varlena>();
            let value = pg_sys::pg_detoast_datum_slice(pointer, at as i32, size as i32);
            pg_sys::MemoryContextSwitchTo(before);
            varlena::varlena_to_byte_slice(value)
        }
    }
}

fn raise(problem: &str) -> ! {
    report::raise(
        Error::new(Kind::Server("XX001".to_owned()), "out-of-line value is corrupted")
            .detail(format!("Found {problem}.")),
    )
}
