//! Sharding keys in the order of their type: reads mapped keys, and finds the
//! shard of a key by comparing.
use std::cmp::Ordering;
use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use crate::cluster::keymap::{Conflict, Range};
use crate::cluster::{KeyMap, ShardNo};
use crate::error::{Error, Kind, Result};
use crate::pg::scan::{Attribute, Row};
use crate::pg::settings;
use crate::pg::value::Value;
use crate::remote::quote::literal;

// Called many times inside of one guard; pgrx's own binding would add one each time.
unsafe extern "C-unwind" {
    fn FunctionCall2Coll(
        function: *mut pg_sys::FmgrInfo,
        collation: pg_sys::Oid,
        a: pg_sys::Datum,
        b: pg_sys::Datum,
    ) -> pg_sys::Datum;
}

/// How the values of a type are read and compared.
#[derive(Clone, Copy)]
pub struct KeyOrder {
    type_oid: pg_sys::Oid,
    collation: pg_sys::Oid,
    compare: *mut pg_sys::FmgrInfo,
}

/// What is said of other types as sharding keys by list or range.
pub const ONLY_BUILT_IN: &str =
    "Keys are read and compared by functions of PostgreSQL alone, so their type is a built-in one.";

/// Whether a type belongs to PostgreSQL itself: its functions are nobody else's. A domain
/// is none, nor is an enum or a type of an extension.
pub fn is_built_in(type_oid: u32) -> bool {
    type_oid < pg_sys::FirstNormalObjectId
}

fn type_name(type_oid: pg_sys::Oid) -> String {
    unsafe { std::ffi::CStr::from_ptr(pg_sys::format_type_be(type_oid)) }
        .to_string_lossy()
        .into_owned()
}

/// A mapped key, with the text that people know it by.
#[derive(Clone)]
struct Named {
    datum: pg_sys::Datum,
    text: String,
}

impl KeyOrder {
    /// By the default btree operator class of a type; values of a domain are read as its
    /// base type's, so that none of its checks run.
    ///
    /// # Errors
    /// 42704 where the type has none, 0A000 where it is not built in.
    pub fn new(type_oid: pg_sys::Oid, collation: pg_sys::Oid) -> Result<Self> {
        let type_oid = unsafe { pg_sys::getBaseType(type_oid) };
        if !is_built_in(type_oid.to_u32()) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("type {} can't be placed by list or range", type_name(type_oid)),
            )
            .detail(ONLY_BUILT_IN)
            .hint("Choose another sharding key."));
        }
        let flags = pg_sys::TYPECACHE_CMP_PROC_FINFO as i32;
        let compare = unsafe {
            let entry = pg_sys::lookup_type_cache(type_oid, flags);
            &raw mut (*entry).cmp_proc_finfo
        };
        if unsafe { (*compare).fn_oid } == pg_sys::InvalidOid {
            return Err(Error::new(
                Kind::MissingObject,
                format!("type {} has no order", type_name(type_oid)),
            )
            .detail("It has no default operator class for access method btree.")
            .hint("Choose another sharding key."));
        }
        Ok(Self { type_oid, collation, compare })
    }

    /// A map of values of this type, sorted. They live as long as the current
    /// memory context. Texts are read in the same way in every session.
    ///
    /// # Errors
    /// 22023 where two mappings contradict each other, or a range is empty. A text that
    /// can't be read is an ERROR of the server.
    pub fn arrange(self, map: &KeyMap) -> Result<KeyMap<pg_sys::Datum>> {
        let read =
            |text: &String| Ok::<_, Error>(Named { datum: self.read(text)?, text: text.clone() });
        let mut named = settings::with(settings::READING, || map.try_map(read))?;
        named.sort(|a, b| self.compare(a.datum, b.datum)).map_err(contradiction)?;
        named.try_map(|named| Ok(named.datum))
    }

    fn read(self, text: &str) -> Result<pg_sys::Datum> {
        let text = CString::new(text).map_err(|_| Error::argument("a key with a NUL byte"))?;
        let (mut input, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        unsafe {
            pg_sys::getTypeInputInfo(self.type_oid, &raw mut input, &raw mut parameter);
            Ok(pg_sys::OidInputFunctionCall(input, text.as_ptr().cast_mut(), parameter, -1))
        }
    }

    fn compare(self, a: pg_sys::Datum, b: pg_sys::Datum) -> Ordering {
        let result = unsafe { pg_sys::FunctionCall2Coll(self.compare, self.collation, a, b) };
        (result.value() as i32).cmp(&0)
    }

    /// The shard of a key in a map that [`KeyOrder::arrange`] has made.
    pub fn shard_of(self, map: &KeyMap<pg_sys::Datum>, key: pg_sys::Datum) -> Option<ShardNo> {
        let Self { compare, collation, .. } = self;
        let find = || {
            map.shard_of(|mapped| {
                let result = unsafe { FunctionCall2Coll(compare, collation, *mapped, key) };
                (result.value() as i32).cmp(&0)
            })
        };
        unsafe { pg_guard_ffi_boundary(find) }
    }

    /// A key as text.
    pub fn text(self, key: pg_sys::Datum) -> String {
        let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
        unsafe {
            pg_sys::getTypeOutputInfo(self.type_oid, &raw mut output, &raw mut varlena);
            let text = pg_sys::OidOutputFunctionCall(output, key);
            std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}

fn contradiction(conflict: Conflict<Named>) -> Error {
    match conflict {
        Conflict::Twice(a, b) => Error::argument(format!(
            "key {} is mapped to shard {} and to shard {}",
            literal(&a.key.text),
            a.shard,
            b.shard
        ))
        .detail(match a.key.text == b.key.text {
            true => "A key has one shard.".to_owned(),
            false => format!(
                "{} and {} are the same value of the column's type.",
                literal(&a.key.text),
                literal(&b.key.text)
            ),
        })
        .hint("Take one of them back with reshard_unmap_values()."),
        Conflict::Overlap(a, b) => Error::argument(format!(
            "range {} of shard {} overlaps range {} of shard {}",
            range(&a),
            a.shard,
            range(&b),
            b.shard
        ))
        .detail("A range holds its lower bound and not its upper one.")
        .hint("Take one of them back with reshard_unmap_range()."),
        Conflict::Empty(r) => Error::argument(format!("range {} holds no key", range(&r)))
            .detail("Its lower bound is not below its upper one, which doesn't belong to it."),
    }
}

fn range(range: &Range<Named>) -> String {
    let bound = |b: &Option<Named>| b.as_ref().map_or("unbounded".to_owned(), |b| literal(&b.text));
    format!("[{}, {})", bound(&range.lower), bound(&range.upper))
}

/// Finds the shards of the rows of a scan by one column.
pub struct KeySearch {
    index: usize,
    order: KeyOrder,
    map: KeyMap<pg_sys::Datum>,
    scratch: pg_sys::MemoryContext,
}

impl KeySearch {
    /// Values are detoasted in `scratch`, which the caller resets.
    ///
    /// # Errors
    /// As [`KeyOrder::new`] and [`KeyOrder::arrange`].
    pub fn new(attribute: Attribute, map: &KeyMap, scratch: pg_sys::MemoryContext) -> Result<Self> {
        let order = KeyOrder::new(attribute.type_oid, attribute.collation)?;
        Ok(Self { index: attribute.index, order, map: order.arrange(map)?, scratch })
    }

    /// The shard of a row; `None` where no shard takes it.
    #[inline]
    pub fn of(&self, row: Row<'_>) -> Option<ShardNo> {
        let Some(key) = row.datum(self.index) else { return self.map.shard_of_null() };
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let shard = self.order.shard_of(&self.map, key);
            pg_sys::MemoryContextSwitchTo(before);
            shard
        }
    }

    /// The row's key as people write it.
    pub fn key_of(&self, row: Row<'_>) -> String {
        row.datum(self.index).map_or("NULL".to_owned(), |key| literal(&self.order.text(key)))
    }
}

/// The shard of a single value, by the default order of its type and its collation; `None`
/// where no shard takes it. Null has no type to speak of.
///
/// # Errors
/// As [`KeyOrder::new`] and [`KeyOrder::arrange`].
pub fn shard_of_value(map: &KeyMap, value: Option<Value>) -> Result<Option<ShardNo>> {
    let Some(value) = value else { return Ok(map.shard_of_null()) };
    let order = KeyOrder::new(value.type_oid, value.collation)?;
    Ok(order.shard_of(&order.arrange(map)?, value.datum))
}

/// Looks whether mapped keys contradict each other as values of a type; they can be read.
///
/// # Errors
/// As [`KeyOrder::new`] and [`KeyOrder::arrange`].
pub fn check(map: &KeyMap, type_oid: u32, collation: u32) -> Result<()> {
    let order = KeyOrder::new(pg_sys::Oid::from(type_oid), pg_sys::Oid::from(collation))?;
    order.arrange(map).map(drop)
}
