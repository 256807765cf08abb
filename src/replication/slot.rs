//! Slots: the first of a wave is made with an exported snapshot, the others are
//! copies of it, so that all start at the same position.
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::pg::settings::{BEGIN, NO_TIMEOUTS};
use crate::remote::quote::literal;
use crate::remote::{replication, Connection, Endpoint, Purpose};
use crate::state::flow::Flow;

/// A slot and the snapshot that fits it.
pub struct Exported {
    /// The session that keeps the snapshot; it must stay idle.
    pub session: Connection,
    /// The snapshot's name.
    pub snapshot: String,
    /// The position that the slot starts from.
    pub lsn: String,
}

/// How long the making of a slot may take before the cause is looked for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a slot and exports its snapshot. Waits for all transactions that are
/// open now; `blocked` is told of them, every two seconds.
///
/// # Errors
/// 53400 where no slot is free; the server's.
pub async fn create_with_snapshot(
    endpoint: &Endpoint,
    control: &Connection,
    slot: &str,
    blocked: impl Fn(&str),
) -> Result<Exported> {
    let session = replication::connect(endpoint, Purpose::Snapshot).await?;
    session.batch(&format!("{BEGIN}; {NO_TIMEOUTS}; COMMIT")).await?;
    // A slot name has only lower-case letters, digits and underscores: ours do.
    let command = format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export')");
    let row = {
        let making = session.text_row(&command);
        tokio::pin!(making);
        loop {
            tokio::select! {
                row = &mut making => break row.map_err(out_of_slots).context(format!(
                    "could not create a replication slot on {endpoint}"))?,
                () = tokio::time::sleep(PATIENCE) => {
                    if let Some(who) = oldest_transactions(control).await? {
                        blocked(&who);
                    }
                }
            }
        }
    };
    let field = |at: usize| row.as_ref().and_then(|r| r.get(at).cloned().flatten());
    match (field(1), field(2)) {
        (Some(lsn), Some(snapshot)) => Ok(Exported { session, snapshot, lsn }),
        _ => Err(Error::internal(format!("{endpoint} made a slot without a snapshot"))),
    }
}

/// Open transactions that the making of a slot waits for, for people.
async fn oldest_transactions(control: &Connection) -> Result<Option<String>> {
    control
        .value(
            "SELECT string_agg(w, '; ') FROM ( \
             SELECT format('pid %s (user \"%s\", application \"%s\", open for %s)', pid, usename, \
                           application_name, date_trunc('second', now() - xact_start)) AS w \
               FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             UNION ALL \
             SELECT format('prepared transaction \"%s\" (open for %s)', gid, \
                           date_trunc('second', now() - prepared)) FROM pg_prepared_xacts \
             LIMIT 5) AS t",
            &[],
        )
        .await
}

fn out_of_slots(mut error: Error) -> Error {
    if error.sqlstate() == "53400" {
        error.kind = Kind::Resources;
        error.hint = Some(
            "Raise max_replication_slots and restart that server, or drop slots that are not \
             used any more: SELECT slot_name, active FROM pg_replication_slots."
                .to_owned(),
        );
    }
    error
}

/// Makes the other slots of a wave as copies of the first one.
///
/// # Errors
/// As [`create_with_snapshot`].
pub async fn copy(control: &Connection, first: &str, slot: &str) -> Result<()> {
    if exists(control, slot).await? {
        return Ok(());
    }
    control
        .batch(&format!(
            "SELECT pg_copy_logical_replication_slot({}, {})",
            literal(first),
            literal(slot)
        ))
        .await
        .map_err(out_of_slots)
        .context(format!("could not create a replication slot on {}", control.label()))
}

/// Makes a slot that starts now, where there is none of that name. That waits for
/// all transactions that are open now and write.
///
/// # Errors
/// As [`create_with_snapshot`]; 55P03 after `timeout`, with the transactions in
/// the way.
pub async fn create(control: &Connection, slot: &str, timeout: Duration) -> Result<()> {
    if exists(control, slot).await? {
        return Ok(());
    }
    let made = control
        .batch(&format!(
            "BEGIN; SET LOCAL lock_timeout = {}; \
             SELECT pg_create_logical_replication_slot({}, 'pgoutput'); COMMIT",
            timeout.as_millis(),
            literal(slot)
        ))
        .await;
    let Err(error) = made else { return Ok(()) };
    if !control.is_closed() {
        control.batch("ROLLBACK").await?;
    }
    let what = format!("could not create a replication slot on {}", control.label());
    if error.sqlstate() != "55P03" {
        return Err(out_of_slots(error)).context(what);
    }
    let who = oldest_transactions(control).await?;
    Err(Error::new(Kind::LockNotAvailable, what)
        .detail(format!(
            "It has to wait for all transactions of the server that write, of other databases \
             too. After {} s these were open: {}.",
            timeout.as_secs(),
            who.as_deref().unwrap_or("none any more")
        ))
        .hint("End them, then try again."))
}

/// Drops a slot that has lost WAL, if it has.
///
/// # Errors
/// The server's.
pub async fn drop_lost(control: &Connection, slot: &str) -> Result<()> {
    drop_where(control, "wal_status = 'lost' AND slot_name = ANY ($1)", &[slot]).await
}

/// Whether a server has a slot of that name.
///
/// # Errors
/// The server's.
pub async fn exists(control: &Connection, slot: &str) -> Result<bool> {
    control
        .value("SELECT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1)", &[&slot])
        .await
}

/// Drops slots by name; those that are gone are no error. A walsender that still
/// serves one is ended first.
///
/// # Errors
/// The server's.
pub async fn drop_all(control: &Connection, flows: &[Flow]) -> Result<()> {
    let names: Vec<&str> = flows.iter().map(|f| f.slot_name.as_str()).collect();
    drop_where(control, "slot_name = ANY ($1)", &names).await
}

/// Drops all slots whose name starts with `prefix`.
///
/// # Errors
/// The server's.
pub async fn drop_prefix(control: &Connection, prefix: &str) -> Result<()> {
    drop_where(control, "pg_catalog.starts_with(slot_name::text, ($1::text[])[1])", &[prefix]).await
}

async fn drop_where(control: &Connection, condition: &str, names: &[&str]) -> Result<()> {
    let terminate = format!(
        "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots \
          WHERE active_pid IS NOT NULL AND database = current_database() AND {condition}"
    );
    let drop = format!(
        "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots \
          WHERE active_pid IS NULL AND database = current_database() AND {condition}"
    );
    let left = format!(
        "SELECT count(*) FROM pg_replication_slots \
          WHERE database = current_database() AND {condition}"
    );
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        control.query(&terminate, &[&names]).await?;
        match control.query(&drop, &[&names]).await {
            Ok(_) => {}
            // Taken, or dropped, by someone in between: looked at again.
            Err(error) if matches!(error.sqlstate(), "55006" | "42704") => {}
            Err(error) => return Err(error),
        }
        let left: i64 = control.value(&left, &[&names]).await?;
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(
                Kind::LockNotAvailable,
                format!("could not drop {left} replication slots on {}", control.label()),
            )
            .detail("They are in use by a walsender that does not end.")
            .hint("See pg_replication_slots.active_pid there."));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
