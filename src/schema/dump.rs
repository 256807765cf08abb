//! The schema of a database as a plan: `pg_dump --schema-only | reshard-schema`.
//! The dump is streamed from one program to the other; only the plan comes into
//! this process.
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::pg::subprocess::{self, Child};
use crate::remote::quote::ident;
use crate::remote::Endpoint;
use crate::schema::failure;
use crate::state::options::Options;

/// The planner's JSON that this version reads.
const CONTRACT_VERSION: u32 = 2;
/// How long pg_dump waits for a lock of the source before it gives up.
const DUMP_LOCK_TIMEOUT: &str = "--lock-wait-timeout=30s";
/// Bytes of a program's messages that are kept.
const MESSAGES_LIMIT: usize = 4_000;
/// A database's schema, in the order in which it is made.
#[derive(Debug, Clone, Deserialize)]
pub struct Plan {
    version: u32,
    /// Version of the server that was dumped.
    pub server_version: Option<String>,
    /// What each session runs before the first of the statements.
    pub session: Vec<String>,
    /// The statements.
    pub statements: Vec<Planned>,
    /// What the dump has and the plan hasn't.
    pub left_out: Vec<LeftOut>,
}

/// A statement of a plan; fields as in the planner's contract.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Planned {
    pub ordinal: i32,
    pub phase: String,
    pub step: String,
    pub kind: String,
    pub object_kind: String,
    pub schema_name: Option<String>,
    pub object_name: Option<String>,
    pub table_schema: Option<String>,
    pub table_name: Option<String>,
    pub settings: Vec<String>,
    pub sql: String,
    #[serde(default)]
    pub shown: Option<String>,
}

/// Something of the source that doesn't come along.
#[derive(Debug, Clone, Deserialize)]
pub struct LeftOut {
    pub kind: String,
    pub schema_name: Option<String>,
    pub object_name: Option<String>,
    pub reason: String,
}

#[cfg(test)]
impl Plan {
    /// Of these statements.
    pub fn of(statements: Vec<Planned>) -> Self {
        Self {
            version: CONTRACT_VERSION,
            server_version: None,
            session: Vec::new(),
            statements,
            left_out: Vec::new(),
        }
    }
}

impl Planned {
    /// What is left out, and why.
    pub fn leave_out(self, reason: &str) -> LeftOut {
        LeftOut {
            kind: self.kind,
            schema_name: self.schema_name,
            object_name: self.object_name,
            reason: reason.to_owned(),
        }
    }
}

/// The schema of a shard's database, without what the options exclude.
///
/// # Errors
/// 55000 where a program is missing or of another version, the dump fails or the
/// planner refuses a statement; 08006 where the server went away.
pub async fn plan_of(node: &Endpoint, options: &Options) -> Result<Plan> {
    let json = run(node, options).await?;
    let plan: Plan = serde_json::from_slice(&json).map_err(|error| {
        Error::state("could not read the plan of program \"reshard-schema\"")
            .detail(format!("{error}."))
            .hint("Install extension and program from the same version of reshard.")
    })?;
    match plan.version {
        CONTRACT_VERSION => Ok(plan),
        other => Err(Error::state("program \"reshard-schema\" is of another version")
            .detail(format!(
                "It writes plans of version {other}, and this version of reshard reads version \
                 {CONTRACT_VERSION}."
            ))
            .hint("Install extension and program from the same version of reshard.")),
    }
}

/// Runs both programs; the plan's JSON.
async fn run(node: &Endpoint, options: &Options) -> Result<Vec<u8>> {
    // The planner first: without it no dump is begun.
    let mut planner = Command::new(subprocess::find("reshard-schema")?);
    let mut pg_dump_child =
        subprocess::spawn(&mut dump_command(&subprocess::find("pg_dump")?, node, options))?;
    let dump_out = pg_dump_child
        .take_stdout()
        .ok_or_else(|| Error::internal("pg_dump was started without a pipe"))?;
    planner.args(["--format", "json"]);
    if options.no_owner {
        planner.arg("--no-owner");
    }
    planner.env("LC_ALL", "C").stdin(dump_out).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut planner_child = subprocess::spawn(&mut planner)?;
    let planner_out = planner_child
        .take_stdout()
        .ok_or_else(|| Error::internal("reshard-schema was started without a pipe"))?;
    let (json, planner_said, dump_said) = futures::future::join3(
        subprocess::read_all(planner_out.into(), usize::MAX),
        messages(&mut planner_child),
        messages(&mut pg_dump_child),
    )
    .await;
    let (json, planner_said, dump_said) = (json?, planner_said?, dump_said?);
    let dump_status = pg_dump_child.wait().await?;
    let planner_status = planner_child.wait().await?;
    // The planner's failure closes the dump's output, which then dies of it.
    let dump_broke_first =
        !dump_status.success() && (planner_status.success() || !dump_said.is_empty());
    if dump_broke_first {
        return Err(dump_error(node, &subprocess::describe(dump_status), &dump_said));
    }
    if !planner_status.success() {
        let said = failure::without_secret(&planner_said, node);
        return Err(Error::state(format!("could not plan the schema of {node}"))
            .detail(format!("{}: {}", subprocess::describe(planner_status), said.trim()))
            .hint("Try it by hand: pg_dump --schema-only ... | reshard-schema --format text"));
    }
    Ok(json)
}

fn dump_command(program: &Path, node: &Endpoint, options: &Options) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_libpq_variable(name)) {
        command.env_remove(name);
    }
    // The password goes through the environment: arguments can be read by all.
    let (open, password) = node.conninfo.split_secret();
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    command
        .env("LC_ALL", "C")
        .env("PGAPPNAME", "reshard schema")
        .env("PGCONNECT_TIMEOUT", "10")
        .args(["--schema-only", "--encoding=UTF8", "--no-password", DUMP_LOCK_TIMEOUT])
        .arg("--exclude-schema=reshard")
        // In double quotes a name is no pattern.
        .args(options.exclude_schemas.iter().map(|s| format!("--exclude-schema={}", ident(s))))
        .arg(format!("--dbname={}", open.redacted()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Settings that the server's environment would give pg_dump.
fn is_libpq_variable(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("PG")
}

fn dump_error(node: &Endpoint, status: &str, said: &str) -> Error {
    let said = failure::without_secret(said, node);
    let lost = ["connection to server", "server closed the connection", "terminating connection"];
    let kind = if lost.iter().any(|text| said.contains(text)) {
        Kind::ConnectionLost
    } else {
        Kind::WrongState
    };
    let hint = if said.contains("lock timeout") {
        "Another session holds a lock that forbids reading the schema; see pg_locks on the source."
    } else {
        "Try it by hand: pg_dump --schema-only with the connection string of that shard."
    };
    Error::new(kind, format!("could not dump the schema of {node}"))
        .detail(format!("pg_dump ended with {status}: {}", said.trim()))
        .hint(hint)
}

async fn messages(child: &mut Child) -> Result<String> {
    let stderr = child
        .take_stderr()
        .ok_or_else(|| Error::internal(format!("{} was started without a pipe", child.name())))?;
    let bytes = subprocess::read_all(stderr.into(), MESSAGES_LIMIT).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::remote::Conninfo;

    fn node() -> Endpoint {
        Endpoint {
            cluster: "c".into(),
            shard: 0,
            conninfo: Conninfo::parse("host=h dbname=d password=hunter2").unwrap(),
        }
    }

    #[test]
    fn the_password_is_no_argument() {
        let command = dump_command(Path::new("/x/pg_dump"), &node(), &Options::default());
        assert!(command.get_args().all(|arg| !arg.to_string_lossy().contains("hunter2")));
        assert!(command.get_envs().any(|(k, v)| k == "PGPASSWORD" && v.unwrap() == "hunter2"));
    }

    #[test]
    fn the_password_is_not_in_errors() {
        let error = dump_error(&node(), "exit code 1", "no login with hunter2");
        assert!(!error.detail.unwrap().contains("hunter2"));
    }

    #[test]
    fn a_lost_source_is_tried_again() {
        let error = dump_error(&node(), "exit code 1", "pg_dump: error: connection to server at");
        assert_eq!(error.sqlstate(), "08006");
    }

    #[test]
    fn excluded_schemas_are_no_patterns() {
        let options = Options { exclude_schemas: vec!["a*\"b".to_owned()], ..Options::default() };
        let command = dump_command(Path::new("/x/pg_dump"), &node(), &options);
        assert!(command.get_args().any(|arg| arg == "--exclude-schema=\"a*\"\"b\""));
    }
}
