//! Rows into the wire forms of COPY: binary (manual section "COPY", "Binary
//! Format"), or text where a type has no portable binary form.
//!
//! Values of fixed width are swapped and copied; strings are detoasted once and
//! copied, large ones piece by piece, and those that lie out of line as they are come
//! without a copy; everything else goes through its type's send function, in a scratch
//! context that is reset. The row's bytes go straight into the caller's buffer.
use std::ffi::CStr;

use pgrx::{pg_sys, varlena};

use crate::error::{Error, Kind, Result};
use crate::pg::scan::{Attribute, Row};
use crate::pg::toast::{LargeValue, PlainValue, Reader};

/// Values above this size are handed over piece by piece.
const PIECE: usize = 64 * 1024;
/// Scratch memory is given back at once after a value of this size.
const LARGE: usize = 8 * 1024;

/// Signature, flags and header extension of a binary COPY.
pub const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The end of a binary COPY.
pub const BINARY_TRAILER: &[u8] = &(-1i16).to_be_bytes();

/// Takes buffers that are full.
pub trait Overflow {
    /// Bytes from which on a buffer is full.
    fn capacity(&self) -> usize;
    /// Takes what is in the buffer and leaves it empty; false to stop.
    fn take(&mut self, buffer: &mut Vec<u8>) -> bool;
}

/// The form of a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `FORMAT binary`
    Binary,
    /// `FORMAT text`
    Text,
}

enum Codec {
    Byte,
    Swap16,
    Swap32,
    Swap64,
    Raw16,
    Interval,
    TimeTz,
    String,
    Send(Box<pg_sys::FmgrInfo>),
    Output(Box<pg_sys::FmgrInfo>),
}

struct Column {
    index: usize,
    codec: Codec,
}

/// Encodes the rows of one scan. Lives no longer than its transaction.
pub struct Encoder {
    columns: Vec<Column>,
    format: Format,
    scratch: pg_sys::MemoryContext,
    toast: Reader,
}

impl Encoder {
    /// An encoder for these columns, in this order.
    ///
    /// # Errors
    /// 0A000 where a type has no send function and the format is binary.
    pub fn new(attributes: &[Attribute], format: Format) -> Result<Self> {
        let scratch = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"reshard copy row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        };
        let columns = attributes
            .iter()
            .map(|a| Ok(Column { index: a.index, codec: codec(a.type_oid, format)? }))
            .collect::<Result<_>>()?;
        Ok(Self { columns, format, scratch, toast: Reader::default() })
    }

    /// Memory that is reset after each row.
    pub fn scratch(&self) -> pg_sys::MemoryContext {
        self.scratch
    }

    /// Gives back what the row used.
    #[inline]
    pub fn reset(&self) {
        unsafe {
            if !(*self.scratch).isReset {
                pg_sys::MemoryContextReset(self.scratch);
            }
        }
    }

    /// Appends a row; false as soon as `overflow` says stop.
    #[inline]
    pub fn append(&self, row: Row<'_>, out: &mut Vec<u8>, overflow: &mut dyn Overflow) -> bool {
        match self.format {
            Format::Binary => self.append_binary(row, out, overflow),
            Format::Text => self.append_text(row, out, overflow),
        }
    }

    fn append_binary(&self, row: Row<'_>, out: &mut Vec<u8>, overflow: &mut dyn Overflow) -> bool {
        put_bytes(out, &(self.columns.len() as i16).to_be_bytes());
        for column in &self.columns {
            let Some(datum) = row.datum(column.index) else {
                put_bytes(out, &(-1i32).to_be_bytes());
                continue;
            };
            match &column.codec {
                Codec::Swap64 => put(out, &(datum.value() as u64).to_be_bytes()),
                Codec::Swap32 => put(out, &(datum.value() as u32).to_be_bytes()),
                Codec::Raw16 => put(out, unsafe { fixed::<16>(datum) }),
                Codec::Byte => put(out, &[datum.value() as u8]),
                Codec::Swap16 => put(out, &(datum.value() as u16).to_be_bytes()),
                Codec::Interval => put(out, &interval(unsafe { fixed::<16>(datum) })),
                Codec::TimeTz => put(out, &time_tz(unsafe { fixed::<12>(datum) })),
                Codec::String => {
                    if !unsafe { self.append_string(datum, out, overflow) } {
                        return false;
                    }
                }
                Codec::Send(function) | Codec::Output(function) => {
                    let bytes = unsafe { self.send(function, datum) };
                    put_length(out, bytes.len());
                    if !self.append_large(bytes, out, overflow) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Appends a value that is sent as it is, with its length.
    ///
    /// # Safety
    /// `datum` is not null and of a type of variable length.
    #[inline]
    unsafe fn append_string(
        &self,
        datum: pg_sys::Datum,
        out: &mut Vec<u8>,
        overflow: &mut dyn Overflow,
    ) -> bool {
        if let Some(value) = unsafe { PlainValue::of(datum) } {
            put_length(out, value.size());
            return self.toast.append(&value, out, overflow);
        }
        if let Some(large) = unsafe { LargeValue::of(datum) } {
            put_length(out, large.size());
            return large.read(self.scratch, &mut |b| pieces(b, out, overflow, append));
        }
        let value = unsafe { self.detoast(datum) };
        put_length(out, value.len());
        self.append_large(value, out, overflow)
    }

    fn append_text(&self, row: Row<'_>, out: &mut Vec<u8>, overflow: &mut dyn Overflow) -> bool {
        for (position, column) in self.columns.iter().enumerate() {
            if position > 0 {
                out.push(b'\t');
            }
            let Some(datum) = row.datum(column.index) else {
                out.extend_from_slice(b"\\N");
                continue;
            };
            let text = match &column.codec {
                Codec::Output(function) => unsafe { self.output(function, datum) },
                _ => match unsafe { LargeValue::of(datum) } {
                    None => unsafe { self.detoast(datum) },
                    Some(large) => {
                        if !large.read(self.scratch, &mut |b| pieces(b, out, overflow, escape)) {
                            return false;
                        }
                        continue;
                    }
                },
            };
            if !pieces(text, out, overflow, escape) {
                return false;
            }
            self.give_back(text.len());
        }
        out.push(b'\n');
        true
    }

    /// Appends a value, handing full buffers over as it goes.
    #[inline]
    fn append_large(&self, bytes: &[u8], out: &mut Vec<u8>, overflow: &mut dyn Overflow) -> bool {
        let appended = pieces(bytes, out, overflow, append);
        self.give_back(bytes.len());
        appended
    }

    #[inline]
    fn give_back(&self, size: usize) {
        if size >= LARGE {
            unsafe { pg_sys::MemoryContextReset(self.scratch) };
        }
    }

    /// The bytes of a string, in place where they lie in the row.
    #[inline]
    unsafe fn detoast(&self, datum: pg_sys::Datum) -> &[u8] {
        unsafe {
            let mut value = datum.cast_mut_ptr::<pg_sys::varlena>();
            if !(varlena::varatt_is_4b_u(value)
                || (varlena::varatt_is_1b(value) && !varlena::varatt_is_1b_e(value)))
            {
                let before = pg_sys::MemoryContextSwitchTo(self.scratch);
                value = pg_sys::pg_detoast_datum_packed(value);
                pg_sys::MemoryContextSwitchTo(before);
            }
            varlena::varlena_to_byte_slice(value)
        }
    }

    #[inline]
    unsafe fn send(&self, function: &pg_sys::FmgrInfo, datum: pg_sys::Datum) -> &[u8] {
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let function = std::ptr::from_ref(function).cast_mut();
            let value = pg_sys::SendFunctionCall(function, datum);
            pg_sys::MemoryContextSwitchTo(before);
            varlena::varlena_to_byte_slice(value)
        }
    }

    unsafe fn output(&self, function: &pg_sys::FmgrInfo, datum: pg_sys::Datum) -> &[u8] {
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let function = std::ptr::from_ref(function).cast_mut();
            let text = pg_sys::OutputFunctionCall(function, datum);
            pg_sys::MemoryContextSwitchTo(before);
            CStr::from_ptr(text).to_bytes()
        }
    }
}

/// Appends bytes in one form or another; false as soon as `overflow` says stop.
#[inline]
fn pieces(
    bytes: &[u8],
    out: &mut Vec<u8>,
    overflow: &mut dyn Overflow,
    form: fn(&[u8], &mut Vec<u8>),
) -> bool {
    for piece in bytes.chunks(PIECE) {
        form(piece, out);
        if out.len() >= overflow.capacity() && !overflow.take(out) {
            return false;
        }
    }
    true
}

/// Bytes as they are.
#[inline]
fn append(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
}

/// A field of fixed width.
#[inline(always)]
fn put<const N: usize>(out: &mut Vec<u8>, field: &[u8; N]) {
    put_length(out, N);
    put_bytes(out, field);
}

#[inline(always)]
fn put_length(out: &mut Vec<u8>, length: usize) {
    put_bytes(out, &(length as i32).to_be_bytes());
}

/// Appends bytes without a call, and without a copy whose length is only known at run time.
#[inline(always)]
fn put_bytes<const N: usize>(out: &mut Vec<u8>, bytes: &[u8; N]) {
    out.reserve(N);
    // Reserved above, and written whole.
    unsafe {
        out.as_mut_ptr().add(out.len()).cast::<[u8; N]>().write(*bytes);
        out.set_len(out.len() + N);
    }
}

#[inline]
unsafe fn fixed<'a, const N: usize>(datum: pg_sys::Datum) -> &'a [u8; N] {
    unsafe { &*datum.cast_mut_ptr::<[u8; N]>() }
}

/// `interval_send`: time, day, month.
fn interval(native: &[u8; 16]) -> [u8; 16] {
    let mut wire = *native;
    wire[..8].reverse();
    wire[8..12].reverse();
    wire[12..].reverse();
    if cfg!(target_endian = "big") {
        return *native;
    }
    wire
}

/// `timetz_send`: time, zone.
fn time_tz(native: &[u8; 12]) -> [u8; 12] {
    let mut wire = *native;
    wire[..8].reverse();
    wire[8..].reverse();
    if cfg!(target_endian = "big") {
        return *native;
    }
    wire
}

/// Text format of COPY: backslash, and the characters that end a value or a line.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => out.push(byte),
        }
    }
}

fn codec(type_oid: pg_sys::Oid, format: Format) -> Result<Codec> {
    let base = unsafe { pg_sys::getBaseType(type_oid) };
    // What their output functions make of them, too.
    let is_text =
        matches!(base, pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID);
    if is_text {
        return Ok(Codec::String);
    }
    if format == Format::Text {
        let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
        unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena) };
        return Ok(Codec::Output(function_info(function)));
    }
    Ok(match base {
        pg_sys::BOOLOID | pg_sys::CHAROID => Codec::Byte,
        pg_sys::INT2OID => Codec::Swap16,
        pg_sys::INT4OID
        | pg_sys::FLOAT4OID
        | pg_sys::OIDOID
        | pg_sys::DATEOID
        | pg_sys::XIDOID
        | pg_sys::CIDOID => Codec::Swap32,
        pg_sys::INT8OID
        | pg_sys::FLOAT8OID
        | pg_sys::TIMEOID
        | pg_sys::TIMESTAMPOID
        | pg_sys::TIMESTAMPTZOID
        | pg_sys::MONEYOID
        | pg_sys::PG_LSNOID => Codec::Swap64,
        pg_sys::UUIDOID => Codec::Raw16,
        pg_sys::INTERVALOID => Codec::Interval,
        pg_sys::TIMETZOID => Codec::TimeTz,
        pg_sys::BYTEAOID => Codec::String,
        _ => {
            let mut kind = (pg_sys::InvalidOid, false);
            unsafe {
                let tuple = pg_sys::SearchSysCache1(
                    pg_sys::SysCacheIdentifier::TYPEOID as i32,
                    pg_sys::Datum::from(type_oid),
                );
                if !tuple.is_null() {
                    kind.0 =
                        (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_type>(tuple)).typsend;
                    kind.1 = true;
                    pg_sys::ReleaseSysCache(tuple);
                }
            }
            if !kind.1 || kind.0 == pg_sys::InvalidOid {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("type {} has no send function", type_oid.to_u32()),
                ));
            }
            Codec::Send(function_info(kind.0))
        }
    })
}

fn function_info(function: pg_sys::Oid) -> Box<pg_sys::FmgrInfo> {
    let mut info = Box::new(pg_sys::FmgrInfo::default());
    unsafe { pg_sys::fmgr_info_cxt(function, &mut *info, pg_sys::CurrentMemoryContext) };
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_values_are_escaped() {
        let mut out = Vec::new();
        escape(b"a\\b\tc\nd\re", &mut out);
        assert_eq!(out, b"a\\\\b\\tc\\nd\\re");
    }

    #[test]
    fn fields_carry_their_length() {
        let mut out = Vec::new();
        put(&mut out, &7u64.to_be_bytes());
        assert_eq!(out, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);
    }
}
