//! Subscriptions: PostgreSQL's own apply workers do the work.
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::reach::QUIET;
use crate::remote::{Connection, Endpoint};
use crate::state::flow::Flow;

/// Makes the subscription of a flow, disabled, on an existing slot. `more` is done
/// in the same transaction.
///
/// # Errors
/// The subscriber's; 08001 where it can't reach the publisher.
pub async fn create(
    subscriber: &Connection,
    publisher: &Endpoint,
    flow: &Flow,
    binary: bool,
    more: &str,
) -> Result<()> {
    if exists(subscriber, flow).await? {
        return Ok(());
    }
    let version: i32 =
        subscriber.value("SELECT current_setting('server_version_num')::int", &[]).await?;
    let mut options = vec![
        "create_slot = false".to_owned(),
        format!("slot_name = {}", literal(&flow.slot_name)),
        "copy_data = false".to_owned(),
        "enabled = false".to_owned(),
        "streaming = off".to_owned(),
        format!("binary = {binary}"),
    ];
    if version >= 160_000 {
        options.push("origin = none".to_owned());
        options.push("password_required = false".to_owned());
    }
    // The connection string holds the password.
    subscriber.batch(&format!("BEGIN; {QUIET}")).await?;
    let made = subscriber
        .batch(&format!(
            "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({}); {more}",
            ident(&flow.subscription_name),
            literal(&publisher.conninfo.to_libpq()),
            ident(&flow.publication_name),
            options.join(", "),
        ))
        .await;
    match made {
        Ok(()) => subscriber.batch("COMMIT").await,
        Err(error) => {
            if !subscriber.is_closed() {
                subscriber.batch("ROLLBACK").await?;
            }
            Err(error).context(format!("could not subscribe {} to {publisher}", subscriber.label()))
        }
    }
}

async fn exists(subscriber: &Connection, flow: &Flow) -> Result<bool> {
    subscriber
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_subscription AS s JOIN pg_database AS d \
                 ON d.oid = s.subdbid WHERE d.datname = current_database() AND s.subname = $1)",
            &[&flow.subscription_name],
        )
        .await
}

/// Enables or disables subscriptions of one server; those that are missing, or
/// so already, are left alone.
///
/// # Errors
/// The server's.
pub async fn set_enabled(subscriber: &Connection, flows: &[&Flow], enabled: bool) -> Result<()> {
    let names: Vec<&str> = flows.iter().map(|f| f.subscription_name.as_str()).collect();
    let rows = subscriber
        .query(
            "SELECT s.subname::text FROM pg_subscription AS s JOIN pg_database AS d \
                 ON d.oid = s.subdbid WHERE d.datname = current_database() \
                AND s.subname = ANY ($1) AND s.subenabled <> $2",
            &[&names, &enabled],
        )
        .await?;
    let verb = if enabled { "ENABLE" } else { "DISABLE" };
    for row in rows {
        let name: String = row.try_get(0).map_err(|e| subscriber.error(&e))?;
        subscriber.batch(&format!("ALTER SUBSCRIPTION {} {verb}", ident(&name))).await?;
    }
    Ok(())
}

/// Waits until no walsender of a publisher serves these flows any more.
///
/// # Errors
/// 55P03 after ten seconds; the server's.
pub async fn wait_until_idle(publisher: &Connection, flows: &[&Flow]) -> Result<()> {
    let names: Vec<&str> = flows.iter().map(|f| f.slot_name.as_str()).collect();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let active: i64 = publisher
            .value(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY ($1) AND active",
                &[&names],
            )
            .await?;
        if active == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(
                Kind::LockNotAvailable,
                format!("{active} replication slots on {} stay in use", publisher.label()),
            )
            .detail("Their subscriptions are disabled, but the walsenders have not ended.")
            .hint("See pg_replication_slots.active_pid there."));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Drops all subscriptions of this database whose name starts with `prefix`,
/// and their origins, without asking their publisher.
///
/// # Errors
/// The server's.
pub async fn drop_prefix(subscriber: &Connection, prefix: &str) -> Result<()> {
    let rows = subscriber
        .query(
            "SELECT s.subname::text FROM pg_subscription AS s JOIN pg_database AS d \
                 ON d.oid = s.subdbid WHERE d.datname = current_database() \
                AND pg_catalog.starts_with(s.subname::text, $1)",
            &[&prefix],
        )
        .await?;
    for row in rows {
        let name = ident(&row.try_get::<_, String>(0).map_err(|e| subscriber.error(&e))?);
        subscriber.batch(&format!("ALTER SUBSCRIPTION {name} DISABLE")).await?;
        subscriber.batch(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await?;
        subscriber.batch(&format!("DROP SUBSCRIPTION {name}")).await?;
    }
    Ok(())
}
