//! Checks of each server by itself: reachable, fit, set up for replication.
use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Facts, ServerState};
use crate::preflight::finding::Finding;
use crate::preflight::Verb;

/// The oldest version that has row filters.
const OLDEST: i32 = 15;
/// The newest version that this one is tested with.
const NEWEST: i32 = 18;

/// The library is in `shared_preload_libraries` of this server.
pub fn library_preloaded(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.preloaded {
        return Vec::new();
    }
    vec![Finding::error(
        "library_preloaded",
        Kind::WrongState,
        "reshard is not in shared_preload_libraries",
    )
    .detail("Its background workers can't run.")
    .hint(
        "Add it and restart the server: ALTER SYSTEM SET shared_preload_libraries = 'reshard'; \
         (keep what is there already, separated by commas)",
    )]
}

/// Every server can be reached with its connection string.
pub fn connection(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .servers
        .iter()
        .filter_map(|server| match &server.state {
            ServerState::Unreachable(error) => {
                Some(Finding::from_error("connection", error).object(server.endpoint.to_string()))
            }
            _ => None,
        })
        .collect()
}

/// The role on every server is a superuser.
pub fn privilege(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .servers
        .iter()
        .filter_map(|server| match &server.state {
            ServerState::Unprivileged(role) => Some(
                Finding::error(
                    "privilege",
                    Kind::Privilege,
                    format!("role {role} is no superuser on {}", server.endpoint),
                )
                .object(server.endpoint.to_string())
                .detail("Subscriptions, replication slots and settings of the apply need one.")
                .hint(format!("On that server: ALTER ROLE {role} SUPERUSER;")),
            ),
            _ => None,
        })
        .collect()
}

/// Every server runs a version that can take part; destinations are not older.
pub fn server_version(facts: &Facts<'_>) -> Vec<Finding> {
    let oldest_source = facts.known_of(Side::Source).map(|(_, f)| f.version / 10_000).max();
    let mut out = Vec::new();
    for (server, known) in facts.known() {
        let major = known.version / 10_000;
        let object = server.endpoint.to_string();
        if major < OLDEST {
            out.push(
                Finding::error(
                    "server_version",
                    Kind::Unsupported,
                    format!("{object} runs PostgreSQL {major}, which is not supported"),
                )
                .object(object)
                .detail("Row filters came with version 15.")
                .hint("Upgrade that server to PostgreSQL 15 or later."),
            );
        } else if major > NEWEST {
            out.push(
                Finding::warning(
                    "server_version",
                    format!("{object} runs PostgreSQL {major}, which is newer than what reshard was tested with"),
                )
                .object(object)
                .hint(format!("Tested are versions {OLDEST} to {NEWEST}.")),
            );
        } else if server.side == Side::Destination && oldest_source.is_some_and(|s| major < s) {
            out.push(
                Finding::warning(
                    "server_version",
                    format!("{object} runs PostgreSQL {major}, older than the source"),
                )
                .object(object)
                .detail("Schema statements of the newer version may fail there.")
                .hint("Use at least the source's version for the shards."),
            );
        }
    }
    out
}

/// No server is a standby.
pub fn standby(facts: &Facts<'_>) -> Vec<Finding> {
    facts
        .known()
        .filter(|(_, known)| known.in_recovery)
        .map(|(server, _)| {
            Finding::error("standby", Kind::WrongState, format!("{} is a standby", server.endpoint))
                .object(server.endpoint.to_string())
                .hint("Declare the shard with the connection string of the primary.")
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
