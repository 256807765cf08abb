//! Who may call, and whether the server is set up.
//!
//! The functions run with the rights of the extension's owner, since state
//! tables and passwords are closed to everyone else; this is the door.
use crate::error::{Error, Kind, Result};
use crate::pg::{db, shmem};

/// Lets superusers and members of `reshard_admin` through.
///
/// # Errors
/// 42501 for anyone else.
pub fn require() -> Result<()> {
    let caller = caller()?;
    let allowed = db::truth(
        "SELECT r.rolsuper OR pg_catalog.pg_has_role(r.oid, 'reshard_admin', 'MEMBER') \
           FROM pg_catalog.pg_roles AS r WHERE r.rolname = $1",
        &[db::Arg::Text(&caller)],
    )?;
    match allowed {
        true => Ok(()),
        false => {
            Err(Error::new(Kind::Privilege, format!("permission denied for role \"{caller}\""))
                .detail("Only superusers and members of role \"reshard_admin\" may reshard.")
                .hint(format!(
                    "As a superuser: GRANT reshard_admin TO {};",
                    crate::remote::quote::ident(&caller)
                )))
        }
    }
}

/// The role that calls: inside of our functions `current_user` is their owner.
fn caller() -> Result<String> {
    db::text(
        "SELECT CASE pg_catalog.current_setting('role') WHEN 'none' THEN session_user::text \
                ELSE pg_catalog.current_setting('role') END",
        &[],
    )?
    .ok_or_else(|| Error::internal("the session has no user"))
}

/// The door, and the library as well: without the launcher nothing would happen.
///
/// # Errors
/// 42501 as [`require`], 55000 where the library was not preloaded.
pub fn require_workers() -> Result<()> {
    require()?;
    match shmem::is_preloaded() {
        true => Ok(()),
        false => Err(Error::state("library \"reshard\" is not preloaded")
            .detail("Its background workers start with the server.")
            .hint(
                "Add reshard to shared_preload_libraries in postgresql.conf and restart the server.",
            )),
    }
}

/// Lets superusers through: for functions that servers call on one another, and that
/// the DDL guard calls.
///
/// # Errors
/// 42501 for anyone else.
pub fn require_superuser() -> Result<()> {
    let allowed = db::truth(
        "SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user",
        &[],
    )?;
    match allowed {
        true => Ok(()),
        false => Err(Error::new(Kind::Privilege, "must be superuser to work for a coordinator")),
    }
}
