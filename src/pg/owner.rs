//! Reading what only the extension's owner may read, in functions that run with the
//! rights of their caller.
use pgrx::pg_sys;

use crate::error::{Error, Result};
use crate::pg::db;

/// Runs `read` with the rights of the extension's owner, as a SECURITY DEFINER function
/// does (`fmgr_security_definer` of src/backend/utils/fmgr/fmgr.c). An ERROR gives the
/// caller's rights back with the end of its transaction or subtransaction. Nothing that a
/// user has supplied, a value of a type of his among it, may be touched in it.
///
/// # Errors
/// Whatever `read` returned.
pub fn as_owner<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    let owner = db::bigint(
        "SELECT x.extowner::bigint FROM pg_catalog.pg_extension AS x WHERE x.extname = 'reshard'",
        &[],
    )?
    .and_then(|oid| u32::try_from(oid).ok())
    .ok_or_else(|| Error::internal("extension \"reshard\" has no owner"))?;
    let (mut caller, mut context) = (pg_sys::InvalidOid, 0);
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut caller, &raw mut context);
        let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(owner), context | local);
    }
    let outcome = read();
    unsafe { pg_sys::SetUserIdAndSecContext(caller, context) };
    outcome
}
