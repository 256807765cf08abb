//! Settings of our sessions and workers, and for the length of a call.
use std::ffi::CStr;

use pgrx::pg_sys;

/// How our statements are read, and how values and names are written as text: in every
/// session and worker of ours the same, whatever the server's, the database's and the role's
/// defaults are. Without JIT: compiling queries of catalogs takes far longer than running them.
pub const OURS: &str = "SET search_path = pg_catalog; SET client_encoding = 'UTF8'; \
     SET standard_conforming_strings = on; SET quote_all_identifiers = off; \
     SET array_nulls = on; SET xmloption = content; \
     SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET jit = off";

/// How texts of values are read in every session of ours, whatever the user's, the
/// role's or the database's settings are.
pub const READING: &[(&CStr, &CStr)] =
    &[(c"DateStyle", c"ISO, MDY"), (c"IntervalStyle", c"postgres"), (c"TimeZone", c"UTC")];

/// Statements that take all time limits off a session, whatever the server or a user has set;
/// `transaction_timeout` is there from PostgreSQL 17 on.
pub const NO_TIMEOUTS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
     SELECT pg_catalog.set_config('transaction_timeout', '0', false) \
      WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL";

/// Begins the transaction that sets a session up: one under the server's defaults could wait
/// for others, where it is SERIALIZABLE, READ ONLY and DEFERRABLE.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE";

/// Runs `work` under these settings, as a function with SET clauses does
/// (`fmgr_security_definer` of src/backend/utils/fmgr/fmgr.c). After an ERROR the end of the
/// transaction or subtransaction puts the former ones back.
pub fn with<T>(settings: &[(&CStr, &CStr)], work: impl FnOnce() -> T) -> T {
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for (name, value) in settings {
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
    let outcome = work();
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
    outcome
}
