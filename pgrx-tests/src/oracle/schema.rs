//! The source's schema against that of each shard, as pg_dump tells them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use reshard_schema::{plan, Kind, Options, Plan};

use crate::cluster::{Rig, Server, DATABASE};
use crate::error::{Error, Result};

/// What a statement is, for comparing: its settings and its text.
type Statement = (Vec<String>, String);

/// The schema of a server's database as pg_dump writes it.
pub fn dump(server: &Server) -> Result<String> {
    let output = program(server, "pg_dump")
        .args(["--schema-only", "--encoding=UTF8", "--exclude-schema=reshard"])
        .output()
        .map_err(Error::io("run pg_dump"))?;
    finished("pg_dump", output.status, &output.stderr)?;
    String::from_utf8(output.stdout)
        .map_err(|_| Error::Unexpected("a dump that is not UTF-8".to_owned()))
}

/// Runs a script in the database of a server, as psql does; stops at an error.
pub fn run_script(server: &Server, script: &Path) -> Result<()> {
    let output = program(server, "psql")
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file"])
        .arg(script)
        .output()
        .map_err(Error::io("run psql"))?;
    finished("psql", output.status, &output.stderr)
}

/// Compares the source's schema with that of each shard: both hold the same
/// statements, apart from those that the plan of the source's dump leaves out.
/// Says what differs, with the shard.
pub fn same_schema(rig: &Rig) -> Result<Vec<String>> {
    let wanted = statements(&planned(&dump(&rig.source)?)?);
    let mut differences = Vec::new();
    for shard in &rig.shards {
        let found = statements(&planned(&dump(shard)?)?);
        let all: std::collections::BTreeSet<&Statement> =
            wanted.keys().chain(found.keys()).collect();
        for statement in all {
            let (here, there) = (wanted.get(statement), found.get(statement));
            let sign = match here.unwrap_or(&0).cmp(there.unwrap_or(&0)) {
                std::cmp::Ordering::Less => "too much",
                std::cmp::Ordering::Greater => "missing",
                std::cmp::Ordering::Equal => continue,
            };
            differences.push(format!("{sign} on {}: {}", shard.name(), statement.1));
        }
    }
    Ok(differences)
}

/// Number of objects that a dump makes.
pub fn objects(dump: &str) -> Result<usize> {
    let makes = |sql: &str| sql.starts_with("CREATE ") || sql.contains("ADD CONSTRAINT");
    Ok(planned(dump)?.statements.iter().filter(|s| makes(&s.sql)).count())
}

fn planned(dump: &str) -> Result<Plan> {
    plan(dump, Options::default())
        .map_err(|error| Error::Unexpected(format!("a dump can't be planned: {error}")))
}

fn statements(plan: &Plan) -> BTreeMap<Statement, usize> {
    let mut out = BTreeMap::new();
    for statement in plan.statements.iter().filter(|s| s.kind != Kind::Refresh) {
        *out.entry((statement.settings.clone(), statement.sql.clone())).or_default() += 1;
    }
    out
}

fn program(server: &Server, name: &str) -> Command {
    let mut command = Command::new(server.installation().program(name));
    command
        .env_remove("PGDATA")
        .env("PGOPTIONS", "-c client_min_messages=warning")
        .env("LC_ALL", "C.UTF-8")
        .arg("--host")
        .arg(server.folder())
        .args(["--port", &server.port().to_string()])
        .args(["--username", "postgres", "--dbname", DATABASE])
        .stdin(Stdio::null());
    command
}

fn finished(program: &str, status: std::process::ExitStatus, stderr: &[u8]) -> Result<()> {
    match status.success() {
        true => Ok(()),
        false => Err(Error::Program {
            program: program.to_owned(),
            status: status.to_string(),
            stderr: String::from_utf8_lossy(stderr).trim().to_owned(),
        }),
    }
}
