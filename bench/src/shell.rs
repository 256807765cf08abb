//! Programs that a person would use.

use std::process::Stdio;

use reshard_scenarios::cluster::DATABASE;
use reshard_scenarios::{Error, Result, Server};
use tokio::process::Command;

/// Connection string over TCP, as for a server elsewhere.
pub fn address(server: &Server) -> String {
    server.conninfo()
}

/// `psql` on a server, silent and strict.
pub fn psql(server: &Server) -> Command {
    let mut command = Command::new(server.installation().program("psql"));
    command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
        .arg(address(server))
        .kill_on_drop(true);
    command
}

/// Runs a shell line in bash; fails where any part of a pipe fails.
pub async fn bash(line: &str) -> Result<()> {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {line}")]).kill_on_drop(true);
    run(command).await.map(drop)
}

/// Runs a program to its end and returns what it wrote.
pub async fn run(mut command: Command) -> Result<Vec<u8>> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().await.map_err(Error::io(format!("run {program}")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Error::Program {
            program,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// Definitions of the tables on the source, without keys and indexes.
pub async fn pre_data(server: &Server) -> Result<String> {
    let mut dump = Command::new(server.installation().program("pg_dump"));
    dump.args(["--section=pre-data", "--table=public.*", "--dbname"]).arg(format!(
        "host={} port={} dbname={DATABASE} user=postgres",
        server.folder().display(),
        server.port()
    ));
    let text = String::from_utf8_lossy(&run(dump).await?).into_owned();
    // Commands to psql itself; the rest is plain SQL.
    Ok(text.lines().filter(|line| !line.starts_with('\\')).collect::<Vec<_>>().join("\n"))
}
