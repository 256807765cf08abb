//! Whether one server can connect to another, as its subscriptions will.
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::{Connection, Endpoint};

/// Settings of a transaction whose statements hold a password: it is kept out of
/// the log, the statistics and pg_stat_activity.
pub const QUIET: &str = "SET LOCAL track_activities = off; SET LOCAL log_statement = 'none'; \
     SET LOCAL log_min_duration_statement = -1; SET LOCAL log_min_error_statement = 'panic'; \
     SET LOCAL log_duration = off; SET LOCAL pg_stat_statements.track = 'none'";

/// How long the other server may take to answer.
const TIMEOUT: &str = "SET LOCAL statement_timeout = '10s'";

/// Lets `from`, which `session` leads to and which is of that version, connect to `to` with
/// the very connection string that a subscription will use, by a subscription that is
/// rolled back at once. The session must not be in a transaction.
///
/// # Errors
/// 08001 with what `from` said; that of the session.
pub async fn reach(
    session: &Connection,
    version: i32,
    from: &Endpoint,
    to: &Endpoint,
) -> Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut options =
        "create_slot = false, slot_name = NONE, enabled = false, copy_data = false".to_owned();
    if version >= 160_000 {
        options.push_str(", password_required = false");
    }
    // No publication has this name: the publisher is asked for it, no more.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = ident(&format!("reshard_probe_{}_{number}", std::process::id()));
    let text = format!(
        "CREATE SUBSCRIPTION {name} CONNECTION {} PUBLICATION {name} WITH ({options})",
        literal(&to.conninfo.to_libpq())
    );
    session
        .batch(&format!(
            "BEGIN READ WRITE; {QUIET}; {TIMEOUT}; SET LOCAL client_min_messages = error"
        ))
        .await?;
    let outcome = session.batch(&text).await;
    if !session.is_closed() {
        session.batch("ROLLBACK").await?;
    }
    outcome.map_err(|error| {
        let secret = to.conninfo.split_secret().1.filter(|secret| !secret.is_empty());
        let said = error.detail.unwrap_or(error.message);
        let said = secret.map_or(said.clone(), |secret| said.replace(&secret, "***"));
        Error::new(Kind::Unreachable, format!("{from} can't connect to {to}")).detail(said)
    })
}
