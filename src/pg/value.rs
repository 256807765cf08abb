//! Values whose type is known only when a function is called: one by itself, or the
//! fields of a row.
use pgrx::pg_sys;
use pgrx::{AnyElement, PgTupleDesc};

/// A value of any type, other than null.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    /// The value.
    pub datum: pg_sys::Datum,
    /// Its type.
    pub type_oid: pg_sys::Oid,
    /// The collation that it is compared and hashed by.
    pub collation: pg_sys::Oid,
}

impl Value {
    /// A value by itself, which has the collation of its type.
    pub fn of(element: &AnyElement) -> Self {
        let type_oid = element.oid();
        let collation = unsafe { pg_sys::get_typcollation(type_oid) };
        Self { datum: element.datum(), type_oid, collation }
    }

    /// Whether its type has a collation at all.
    pub fn is_collatable(&self) -> bool {
        self.collation != pg_sys::InvalidOid
    }

    /// The same under another collation.
    pub fn under(self, collation: u32) -> Self {
        Self { collation: pg_sys::Oid::from(collation), ..self }
    }

    /// The fields of a row, `None` for null ones; `None` where the value is no row. They
    /// live as long as the current memory context.
    pub fn fields_of(element: &AnyElement) -> Option<Vec<Option<Self>>> {
        unsafe {
            if !pg_sys::type_is_rowtype(element.oid()) {
                return None;
            }
            let row: pg_sys::HeapTupleHeader =
                pg_sys::pg_detoast_datum(element.datum().cast_mut_ptr()).cast();
            let descriptor = PgTupleDesc::from_pg_is_copy(pg_sys::lookup_rowtype_tupdesc_copy(
                pgrx::heap_tuple_header_get_type_id(row),
                pgrx::heap_tuple_header_get_typmod(row),
            ));
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::heap_tuple_header_get_datum_length(row) as u32,
                t_data: row,
                ..Default::default()
            };
            let mut datums = vec![pg_sys::Datum::null(); descriptor.len()];
            let mut nulls = vec![true; descriptor.len()];
            pg_sys::heap_deform_tuple(
                &raw mut tuple,
                descriptor.as_ptr(),
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let fields = descriptor.iter().zip(datums).zip(nulls);
            Some(
                fields
                    .filter(|((attribute, _), _)| !attribute.attisdropped)
                    .map(|((attribute, datum), is_null)| {
                        (!is_null).then_some(Self {
                            datum,
                            type_oid: attribute.atttypid,
                            collation: attribute.attcollation,
                        })
                    })
                    .collect(),
            )
        }
    }
}
