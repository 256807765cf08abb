//! Arguments of the SQL functions.
use crate::error::{Error, Kind};
use crate::pg::report::or_raise;

/// An argument that must be given. The functions take NULL and refuse it, instead of being
/// STRICT: a call that returns NULL and does nothing would look like one that worked.
///
/// Raises 22004 for NULL.
pub(super) fn given<T>(value: Option<T>, name: &str) -> T {
    or_raise(value.ok_or_else(|| {
        Error::new(
            Kind::Server("22004".to_owned()),
            format!("argument \"{name}\" must not be null"),
        )
        .hint("Give a value; a subquery that finds no row gives null.")
    }))
}
