//! The same tables with pgcopydb, for comparison: data only, four jobs, one
//! server as large as a shard, no writers.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Rig, Server, DATABASE};
use crate::error::{Error, Result};

/// Time of `pgcopydb copy table-data`; none where it is not installed.
pub(super) async fn copy(rig: &Rig) -> Result<Option<Duration>> {
    if Command::new("pgcopydb")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return Ok(None);
    }
    tokio::task::block_in_place(|| {
        let target = rig.add_server("target")?;
        let folder = rig.folder().join("pgcopydb");
        let (from, to) = (address(&rig.source), address(&target));
        let dump = run(Command::new(rig.source.installation().program("pg_dump")).args([
            "--section=pre-data",
            "--dbname",
            &from,
        ]))?;
        let file = rig.folder().join("pre-data.sql");
        std::fs::write(&file, dump).map_err(Error::io("write the dump"))?;
        run(Command::new(rig.source.installation().program("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "--dbname", &to, "-f"])
            .arg(&file))?;
        let begin = Instant::now();
        run(Command::new("pgcopydb")
            .args([
                "copy",
                "table-data",
                "--table-jobs",
                "4",
                "--source",
                &from,
                "--target",
                &to,
                "--dir",
            ])
            .arg(&folder))?;
        let took = begin.elapsed();
        drop(target);
        drop(std::fs::remove_dir_all(rig.folder().join("target")));
        Ok(Some(took))
    })
}

fn address(server: &Server) -> String {
    format!(
        "host={} port={} dbname={DATABASE} user=postgres",
        server.folder().display(),
        server.port()
    )
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(Error::io(format!("run {program}")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Error::Program {
            program,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}
