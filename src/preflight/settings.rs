//! Checks of the settings of each server.
use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Facts, SynchronousStandbys};
use crate::preflight::finding::Finding;
use crate::preflight::Verb;
use crate::remote::quote::ident;

/// No server ends sessions or slots by itself that the run needs.
pub fn slot_limits(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    facts
        .known_of(Side::Source)
        .filter(|(_, known)| !known.slot_limits.is_empty())
        .map(|(server, known)| {
            Finding::warning(
                "slot_limits",
                format!("replication slots of {} may be lost during the run", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!(
                "Slots keep the WAL that is written during the copy; there {}.",
                known.slot_limits.join(", ")
            ))
            .hint(format!(
                "For the time of the run: {}SELECT pg_reload_conf();",
                known.slot_limits.iter().map(|limit| unlimited(limit)).collect::<String>()
            ))
        })
        .collect()
}

/// The name in `name = value`.
fn name_of(setting: &str) -> &str {
    setting.split(' ').next().unwrap_or_default()
}

/// The statement that takes the limit `name = value` away.
fn unlimited(limit: &str) -> String {
    let name = name_of(limit);
    let none = if name == "max_slot_wal_keep_size" { "-1" } else { "0" };
    format!("ALTER SYSTEM SET {name} = {none}; ")
}

/// Shards take writes.
pub fn read_only(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .known()
        .filter(|(_, known)| known.read_only)
        .map(|(server, known)| {
            Finding::error(
                "read_only",
                Kind::WrongState,
                format!("sessions on {} are read-only", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail("default_transaction_read_only is on for that role and database.")
            .hint(format!(
                "On that server, or for the role alone: ALTER DATABASE {} SET \
                 default_transaction_read_only = off;",
                ident(&known.database)
            ))
        })
        .collect()
}

/// Subscriptions read names and values as they were written. Their workers have the settings of
/// the database and the role: with `array_nulls` off, a null in an array becomes a text, and with
/// another `client_encoding` than the database's they convert what comes in that already
/// (`pq_getmsgstring` in src/backend/libpq/pqformat.c).
pub fn value_settings(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.verb == Verb::SchemaSync {
        return Vec::new();
    }
    facts
        .known()
        .filter(|(_, known)| !known.misreading.is_empty())
        .map(|(server, known)| {
            let database = ident(&known.database);
            let reset = known
                .misreading
                .iter()
                .map(|setting| format!(" ALTER DATABASE {database} RESET {};", name_of(setting)));
            Finding::error(
                "value_settings",
                Kind::WrongState,
                format!("subscriptions on {} would misread what they receive", server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(format!("For that role and database, {}.", known.misreading.join(", ")))
            .hint(format!(
                "On that server, where it is set for the database:{}",
                reset.collect::<String>()
            ))
        })
        .collect()
}

/// Every server writes what logical decoding needs: the source for the flow, the
/// shards for the way back.
pub fn wal_level(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.verb == Verb::SchemaSync {
        return Vec::new();
    }
    facts
        .known()
        .filter(|(_, known)| known.wal_level != "logical")
        .map(|(server, known)| {
            let why = match server.side {
                Side::Source => "Changes can't be replicated from there.",
                Side::Destination => "The way back needs to replicate from there.",
            };
            Finding::error(
                "wal_level",
                Kind::WrongState,
                format!("wal_level is \"{}\" on {}", known.wal_level, server.endpoint),
            )
            .object(server.endpoint.to_string())
            .detail(why)
            .hint("On that server: ALTER SYSTEM SET wal_level = 'logical'; then restart it.")
        })
        .collect()
}

/// Commits on no server wait for a standby that is away, and none for our subscriptions.
pub fn synchronous_standby(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .known()
        .filter_map(|(server, known)| {
            let SynchronousStandbys { names, needed, connected } = &known.synchronous_standbys;
            let set = format!("synchronous_standby_names is \"{names}\" there");
            let finding = if connected < needed {
                Finding::error(
                    "synchronous_standby",
                    Kind::WrongState,
                    format!("commits on {} wait for standbys that are away", server.endpoint),
                )
                .detail(format!("{set}; needed: {needed}, connected: {connected}."))
                .hint(
                    "Bring them back, or on that server: ALTER SYSTEM RESET \
                     synchronous_standby_names; SELECT pg_reload_conf();",
                )
            } else if names.contains('*') && facts.verb.has_flows() {
                Finding::warning(
                    "synchronous_standby",
                    format!("commits on {} may wait for subscriptions", server.endpoint),
                )
                .detail(format!("{set}: a subscription counts as any standby does."))
                .hint("Name the standbys in it.")
            } else {
                return None;
            };
            Some(finding.object(server.endpoint.to_string()))
        })
        .collect()
}
