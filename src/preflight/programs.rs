//! The programs that read the source's schema: there, and of the right version.
use pgrx::pg_sys;

use crate::error::{Error, Kind, Result};
use crate::pg::subprocess;
use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;
use crate::preflight::Verb;

/// The version of the planner that belongs to this version of the extension.
const PLANNER: &str = concat!("reshard-schema ", env!("CARGO_PKG_VERSION"));

/// The programs that a verb needs here.
#[derive(Default)]
pub struct Programs {
    /// What is wrong with them.
    unfit: Vec<Error>,
    /// Major version of a pg_dump that fits this server.
    pg_dump: Option<u32>,
}

/// Asks the programs for their versions.
pub async fn look(verb: Verb) -> Programs {
    if verb == Verb::Replicate {
        return Programs::default();
    }
    let (dump, planner) = futures::join!(pg_dump(), planner());
    let pg_dump = dump.as_ref().ok().copied();
    let unfit = [dump.map(drop), planner].into_iter().filter_map(Result::err).collect();
    Programs { unfit, pg_dump }
}

async fn pg_dump() -> Result<u32> {
    let said = subprocess::version_of("pg_dump").await?;
    let server = u32::from(pg_sys::get_pg_major_version_num());
    match major(&said) {
        Some(major) if major >= server => Ok(major),
        _ => Err(Error::state("program \"pg_dump\" is of another version")
            .detail(format!(
                "It says \"{said}\", and reads no server that is newer; this one is of version \
                 {server}."
            ))
            .hint(format!(
                "Put the pg_dump of PostgreSQL {server} beside the program \"postgres\" of this \
                 server."
            ))),
    }
}

async fn planner() -> Result<()> {
    let said = subprocess::version_of("reshard-schema").await?;
    match said == PLANNER {
        true => Ok(()),
        false => Err(Error::state("program \"reshard-schema\" is of another version")
            .detail(format!("It says \"{said}\"; this extension needs \"{PLANNER}\"."))
            .hint("Install both from the same folder: make install PG_CONFIG=...")),
    }
}

/// The major version in what a program of PostgreSQL says.
fn major(said: &str) -> Option<u32> {
    let number = said.split_once("(PostgreSQL) ")?.1;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

/// They are installed beside the server, and of its version; pg_dump reads the shards as well.
pub fn programs(facts: &Facts<'_>) -> Vec<Finding> {
    let Programs { unfit, pg_dump } = &facts.programs;
    let servers = facts.known().map(|(server, known)| (server.endpoint.to_string(), known.version));
    let mut out: Vec<Finding> =
        unfit.iter().map(|error| Finding::from_error("programs", error)).collect();
    if let Some(major) = pg_dump {
        out.extend(unreadable(*major, servers));
    }
    out
}

/// Servers that a pg_dump of this major version refuses to read.
fn unreadable(pg_dump: u32, servers: impl Iterator<Item = (String, i32)>) -> Vec<Finding> {
    servers
        .map(|(name, version)| (name, u32::try_from(version).unwrap_or(0) / 10_000))
        .filter(|(_, server)| *server > pg_dump)
        .map(|(name, server)| {
            Finding::error(
                "programs",
                Kind::WrongState,
                format!("program \"pg_dump\" is too old for {name}"),
            )
            .object(name)
            .detail(format!(
                "It is of version {pg_dump} and reads no server that is newer; that one is of \
                 version {server}. Before a cutover the shards' schema is read too."
            ))
            .hint(format!(
                "Replace the pg_dump beside the program \"postgres\" of this server by that of \
                 PostgreSQL {server} or newer, or by a link to it: it reads older servers as well."
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn each_server_that_is_newer_than_pg_dump_is_named() {
        let servers =
            [("old", 150_018), ("same", 160_001), ("new", 180_000)].map(|(n, v)| (n.to_owned(), v));
        let found = unreadable(16, servers.into_iter());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].object.as_deref(), Some("new"));
        assert_eq!(found[0].severity, crate::preflight::Severity::Error);
    }
}
