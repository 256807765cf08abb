//! Subscriptions: PostgreSQL's own apply workers do the work.
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::remote::quote::{ident, literal};
use crate::remote::reach::QUIET;
use crate::remote::{Connection, Endpoint};
use crate::replication::locked;
use crate::state::flow::Flow;
use crate::state::table::Table;

/// How long those are waited for that are in the way of dropping one, before they are named.
const PATIENCE: Duration = Duration::from_secs(15);

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
    let statements = format!(
        "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({}); {more}",
        ident(&flow.subscription_name),
        literal(&publisher.conninfo.to_libpq()),
        ident(&flow.publication_name),
        options.join(", "),
    );
    quietly(subscriber, &statements)
        .await
        .context(format!("could not subscribe {} to {publisher}", subscriber.label()))
}

/// Has those subscriptions of one server that are there connect to these publishers, with
/// the connection strings that are declared now.
///
/// # Errors
/// The subscriber's.
pub async fn redirect(subscriber: &Connection, flows: &[(&Flow, &Endpoint)]) -> Result<()> {
    let names: Vec<&str> = flows.iter().map(|(f, _)| f.subscription_name.as_str()).collect();
    // Compared here: the parameters of a query may be logged.
    let rows = subscriber
        .query(
            "SELECT s.subname::text, s.subconninfo FROM pg_subscription AS s \
               JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database() \
              WHERE s.subname = ANY ($1)",
            &[&names],
        )
        .await?;
    for row in rows {
        let name: String = row.try_get(0).map_err(|e| subscriber.error(&e))?;
        let present: String = row.try_get(1).map_err(|e| subscriber.error(&e))?;
        let publisher = flows.iter().find(|(f, _)| f.subscription_name == name).map(|(_, p)| p);
        let Some(publisher) = publisher else { continue };
        let declared = publisher.conninfo.to_libpq();
        if present != declared {
            let (name, declared) = (ident(&name), literal(&declared));
            quietly(subscriber, &format!("ALTER SUBSCRIPTION {name} CONNECTION {declared}"))
                .await
                .context(format!("could not redirect {} to {publisher}", subscriber.label()))?;
        }
    }
    Ok(())
}

/// Runs statements that hold a connection string, and with it a password, in a transaction
/// of their own that is shown nowhere.
async fn quietly(subscriber: &Connection, statements: &str) -> Result<()> {
    subscriber.batch(&format!("BEGIN; {QUIET}")).await?;
    match subscriber.batch(statements).await {
        Ok(()) => subscriber.batch("COMMIT").await,
        Err(error) => {
            if !subscriber.is_closed() {
                subscriber.batch("ROLLBACK").await?;
            }
            Err(error)
        }
    }
}

/// Drops the subscription of a flow that was made before these tables were published,
/// so that it can be made anew; one that has them all is left alone. It must be
/// disabled.
///
/// # Errors
/// The subscriber's.
pub async fn drop_outdated(subscriber: &Connection, flow: &Flow, tables: &[Table]) -> Result<()> {
    let names: Vec<String> = tables.iter().map(Table::qualified).collect();
    let outdated: bool = subscriber
        .value(
            "SELECT EXISTS (SELECT 1 FROM pg_subscription AS s \
               JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database() \
              CROSS JOIN unnest($2::text[]) AS t (name) \
              WHERE s.subname = $1 AND NOT EXISTS (SELECT 1 FROM pg_subscription_rel AS r \
                    WHERE r.srsubid = s.oid AND r.srrelid = to_regclass(t.name)))",
            &[&flow.subscription_name, &names],
        )
        .await?;
    match outdated {
        true => drop_one(subscriber, &flow.subscription_name).await,
        false => Ok(()),
    }
}

/// Drops a subscription, without asking its publisher. Disabled first, on its own: to drop
/// it takes the whole catalog in some releases, which anybody who has read it may keep for as
/// long as their transaction lasts (`DropSubscription` in
/// src/backend/commands/subscriptioncmds.c).
async fn drop_one(subscriber: &Connection, name: &str) -> Result<()> {
    let name = ident(name);
    let disable = format!(
        "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"
    );
    for sql in [disable, format!("DROP SUBSCRIPTION {name}")] {
        locked::batch_within(subscriber, "pg_catalog.pg_subscription", &sql, PATIENCE).await?;
    }
    Ok(())
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
/// The server's; 55P03 after 15 seconds, with the sessions in the way.
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
        let name: String = row.try_get(0).map_err(|e| subscriber.error(&e))?;
        drop_one(subscriber, &name).await?;
    }
    Ok(())
}
