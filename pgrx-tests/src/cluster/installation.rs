//! The PostgreSQL that the servers are started from.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// Used where the environment names none.
const DEFAULT_PG_CONFIG: &str = "/usr/lib/postgresql/15/bin/pg_config";

/// An installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Installation {
    bin: PathBuf,
    share: PathBuf,
    /// Folder of the server's libraries.
    libraries: PathBuf,
    major: u32,
}

impl Installation {
    /// The one that the environment variable `PG_CONFIG` names, else Debian's 15.
    pub fn find() -> Result<Installation> {
        let pg_config = std::env::var_os("PG_CONFIG")
            .filter(|value| !value.is_empty())
            .map_or_else(|| PathBuf::from(DEFAULT_PG_CONFIG), PathBuf::from);
        let version = ask(&pg_config, "--version")?;
        let major = version
            .split_whitespace()
            .nth(1)
            .and_then(|number| {
                let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            })
            .ok_or_else(|| Error::Unexpected(format!("unreadable version \"{version}\"")))?;
        Ok(Installation {
            bin: ask(&pg_config, "--bindir")?.into(),
            share: ask(&pg_config, "--sharedir")?.into(),
            libraries: ask(&pg_config, "--pkglibdir")?.into(),
            major,
        })
    }

    /// A program of this installation.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The same in another folder, with programs of its own. A server finds all else by
    /// its program's folder, so the folders lie there as they do here.
    pub fn copied(&self, folder: &Path) -> Result<Installation> {
        let own = |path: &Path| {
            let common = self.bin.iter().zip(self.share.iter()).take_while(|(a, b)| a == b).count();
            folder.join(path.iter().skip(common).collect::<PathBuf>())
        };
        let io = |what: &str| Error::io(format!("{what} in {}", folder.display()));
        let copy = Installation {
            bin: own(&self.bin),
            share: own(&self.share),
            libraries: own(&self.libraries),
            major: self.major,
        };
        std::fs::create_dir_all(&copy.bin).map_err(io("make a folder"))?;
        for entry in std::fs::read_dir(&self.bin).map_err(io("read programs"))? {
            let entry = entry.map_err(io("read programs"))?;
            let (from, to) = (entry.path(), copy.bin.join(entry.file_name()));
            // Others find their libraries by where they really are.
            let copied = match entry.file_name() == "postgres" {
                true => std::fs::copy(from, to).map(drop),
                false => std::os::unix::fs::symlink(from, to),
            };
            copied.map_err(io("copy a program"))?;
        }
        for (link, target) in [(&copy.share, &self.share), (&copy.libraries, &self.libraries)] {
            if let Some(parent) = link.parent() {
                std::fs::create_dir_all(parent).map_err(io("make a folder"))?;
            }
            std::os::unix::fs::symlink(target, link).map_err(io("link a folder"))?;
        }
        Ok(copy)
    }

    /// Major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Whether the extension has been installed into it.
    pub fn has_reshard(&self) -> bool {
        self.share.join("extension/reshard.control").exists()
    }
}

fn ask(pg_config: &Path, what: &str) -> Result<String> {
    let output = Command::new(pg_config)
        .arg(what)
        .output()
        .map_err(Error::io(format!("run {}", pg_config.display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a program to its end; its failure is an error with what it wrote.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(Error::io(format!("run {program}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Program {
            program,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}
