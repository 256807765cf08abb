//! What poolers say.
use pgrx::prelude::*;

use crate::api::admin;
use crate::api::argument::given;
use crate::error::{Error, Result};
use crate::pg::db::{self, Arg};
use crate::pg::report::or_raise;

/// A pooler says which epoch and state it obeys. The first call registers it:
/// from then on a cutover waits until it has acknowledged the pause.
///
/// # Errors
/// 22023 for a state other than `open` and `paused`.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_pooler_ack(pooler: Option<&str>, epoch: Option<i64>, state: Option<&str>) {
    let (pooler, epoch) = (given(pooler, "pooler"), given(epoch, "epoch"));
    or_raise(acknowledge(pooler, epoch, given(state, "state")));
}

fn acknowledge(pooler: &str, epoch: i64, state: &str) -> Result<()> {
    admin::require()?;
    if !matches!(state, "open" | "paused") {
        return Err(Error::argument(format!("unknown state \"{state}\""))
            .hint("A pooler acknowledges open or paused."));
    }
    db::execute(
        "INSERT INTO reshard.pooler (name, epoch, state) VALUES ($1, $2, $3) \
         ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, \
            acknowledged_at = clock_timestamp()",
        &[Arg::Text(pooler), Arg::I64(epoch), Arg::Text(state)],
    )
    .map(|_| ())
}
