//! Settings of our sessions, and for the length of a call.
use std::ffi::CStr;

use pgrx::pg_sys;

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
