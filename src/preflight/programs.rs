//! The programs that read the source's schema: there, and of the right version.
use pgrx::pg_sys;

use crate::error::{Error, Result};
use crate::pg::subprocess;
use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;
use crate::preflight::Verb;

/// The version of the planner that belongs to this version of the extension.
const PLANNER: &str = concat!("reshard-schema ", env!("CARGO_PKG_VERSION"));

/// Asks the programs for their versions: what is wrong with them.
pub async fn look(verb: Verb) -> Vec<Error> {
    if verb == Verb::Replicate {
        return Vec::new();
    }
    let (dump, planner) = futures::join!(pg_dump(), planner());
    [dump, planner].into_iter().filter_map(Result::err).collect()
}

async fn pg_dump() -> Result<()> {
    let said = subprocess::version_of("pg_dump").await?;
    let server = u32::from(pg_sys::get_pg_major_version_num());
    match major(&said) {
        Some(major) if major >= server => Ok(()),
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

/// They are installed beside the server, and of its version.
pub fn programs(facts: &Facts<'_>) -> Vec<Finding> {
    facts.unfit_programs.iter().map(|error| Finding::from_error("programs", error)).collect()
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
}
