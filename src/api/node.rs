//! What a coordinator asks of the other shards of its cluster.
use pgrx::prelude::*;

use crate::api::admin;
use crate::copy;
use crate::error::Error;
use crate::pg::apply_errors;
use crate::pg::report::or_raise;

/// Copies a part of a table to the shards of another cluster, under the snapshot of
/// the present transaction, and says how that went. For superusers: it reads
/// whatever it is told to, and is told the shards' passwords.
///
/// # Errors
/// 42501 for anyone else; 22023 for an assignment that can't be read.
#[pg_extern(volatile, strict, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_copy_part(assignment: &str) -> String {
    or_raise(admin::require_superuser().and_then(|()| {
        let assignment = serde_json::from_str(assignment)
            .map_err(|error| Error::argument("invalid assignment").detail(format!("{error}.")))?;
        let reply = copy::copy_assigned(assignment)?;
        Ok(serde_json::to_string(&reply)?)
    }))
}

/// What the apply worker of a subscription of this server failed with last; null
/// where it did not, or the library is not preloaded.
#[pg_extern(volatile, strict, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_apply_error(subscription: pg_sys::Oid) -> Option<String> {
    or_raise(admin::require_superuser().map(|()| apply_errors::last(subscription.to_u32())))
}
