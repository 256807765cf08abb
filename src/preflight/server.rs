//! Checks of each server by itself: reachable and fit.
use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Facts, ServerState};
use crate::preflight::finding::Finding;
use crate::remote::quote::literal;

/// Name of the extension's library.
const LIBRARY: &str = "reshard";
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
    .hint(preload(&facts.libraries))]
}

/// How the library gets into the setting, whose value for the next start is `libraries`.
/// ALTER SYSTEM takes what stands in one pair of quotes as one name.
fn preload(libraries: &str) -> String {
    let mut names = list(libraries);
    if names.iter().any(|name| name == LIBRARY) {
        return "Restart the server: the configuration file names it already.".to_owned();
    }
    names.push(LIBRARY.to_owned());
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    format!(
        "Add it, then restart the server: ALTER SYSTEM SET shared_preload_libraries = {};",
        names.join(", ")
    )
}

/// The elements of a setting that is a list of file names, as `SplitDirectoriesString` of
/// src/backend/utils/adt/varlena.c reads it.
fn list(setting: &str) -> Vec<String> {
    let mut quoted = false;
    let names = setting.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    names
        .map(|name| match name.trim().strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
            Some(inner) => inner.replace("\"\"", "\""),
            None => name.trim().to_owned(),
        })
        .filter(|name| !name.is_empty())
        .collect()
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
            ServerState::Unprivileged(error) => {
                Some(Finding::from_error("privilege", error).object(server.endpoint.to_string()))
            }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::Cluster;
    use crate::preflight::facts::{Server, ServerFacts};
    use crate::preflight::Verb;
    use crate::remote::{Conninfo, Endpoint};
    use crate::state::options::Options;

    fn findings(source: i32, shard: i32) -> Vec<Finding> {
        let cluster = |name: &str| {
            let conninfo = Conninfo::parse("host=h dbname=d").unwrap();
            let shards = vec![Endpoint { cluster: name.into(), shard: 0, conninfo }];
            Cluster::new(name, shards).unwrap()
        };
        let (prod, sharded) = (cluster("prod"), cluster("sharded"));
        let options = Options::default();
        let server = |cluster: &'static Cluster, side, version| Server {
            endpoint: &cluster.shards[0],
            side,
            state: ServerState::Known(Box::new(ServerFacts {
                version: version * 10_000,
                ..ServerFacts::default()
            })),
            existing: Vec::new(),
            free_bytes: None,
        };
        let (prod, sharded): (&'static Cluster, &'static Cluster) =
            (Box::leak(Box::new(prod)), Box::leak(Box::new(sharded)));
        let facts = Facts {
            verb: Verb::Start,
            options: &options,
            publication: "p",
            source: prod,
            destination: sharded,
            rules: Vec::new(),
            token: String::new(),
            preloaded: true,
            libraries: String::new(),
            programs: crate::preflight::programs::Programs::default(),
            here: (String::new(), String::new()),
            copy_workers: 1,
            servers: vec![
                server(prod, Side::Source, source),
                server(sharded, Side::Destination, shard),
            ],
            content: None,
            unreachable: Vec::new(),
            nodes: None,
            joined: None,
            mapped: Vec::new(),
            strays: Vec::new(),
            orders: Vec::new(),
            source_rules: Vec::new(),
        };
        server_version(&facts)
    }

    #[test]
    fn the_library_is_added_to_those_that_are_there() {
        let ends = |setting: &str, end: &str| {
            let hint = preload(setting);
            assert!(hint.ends_with(end), "{setting}: {hint}");
        };
        ends("", "shared_preload_libraries = 'reshard';");
        ends(
            "pg_stat_statements,auto_explain",
            "= 'pg_stat_statements', 'auto_explain', 'reshard';",
        );
        ends("a, \"$libdir/b,c\"", "= 'a', '$libdir/b,c', 'reshard';");
        ends("a,reshard", "names it already.");
    }

    #[test]
    fn versions_that_are_too_old_too_new_or_older_than_the_source_are_named() {
        use crate::preflight::Severity;
        assert!(findings(15, 15).is_empty());
        assert!(findings(15, 18).is_empty());
        let [old] = &findings(14, 15)[..] else { unreachable!() };
        assert_eq!((old.severity, old.kind.clone()), (Severity::Error, Kind::Unsupported));
        assert!(old.message.contains("shard 0 of cluster \"prod\" runs PostgreSQL 14"));
        let [new] = &findings(15, 19)[..] else { unreachable!() };
        assert_eq!(new.severity, Severity::Warning);
        let [older] = &findings(18, 15)[..] else { unreachable!() };
        assert_eq!(older.severity, Severity::Warning);
        assert!(older.message.contains("older than the source"));
    }
}
