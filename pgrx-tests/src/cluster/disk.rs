//! A disk that can be full: a small file system in memory, mounted in a rig's folder.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::installation::run;
use super::rig::Rig;
use crate::error::{Error, Result};

/// What fills the rest of the disk.
const BALLAST: &str = "ballast";

/// A mounted disk; unmounted on drop. Only root may mount one.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one in the rig's folder, for its servers.
    ///
    /// # Errors
    /// mount(8)'s.
    pub fn mount(rig: &Rig, name: &str, megabytes: u32) -> Result<SmallDisk> {
        let path = rig.folder().join(name);
        std::fs::create_dir(&path).map_err(Error::io(format!("make folder {}", path.display())))?;
        let size = format!("size={megabytes}m,mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path))?;
        let disk = SmallDisk { path };
        rig.account().own(&disk.path)?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves `megabytes` of what is free now.
    ///
    /// # Errors
    /// The file system's, but for its being full.
    pub fn fill_up_to(&self, megabytes: usize) -> Result<()> {
        let mut ballast =
            File::create(self.path.join(BALLAST)).map_err(Error::io("make a file"))?;
        let block = vec![1; 1 << 20];
        let mut blocks = 0_u64;
        while ballast.write_all(&block).is_ok() {
            blocks += 1;
        }
        let rest = blocks.saturating_sub(megabytes as u64);
        ballast.set_len(rest << 20).map_err(Error::io("cut a file"))
    }

    /// Frees what [`Self::fill_up_to`] took.
    ///
    /// # Errors
    /// The file system's.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.path.join(BALLAST)).map_err(Error::io("remove a file"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Servers may still use it: it goes when the last of them ends.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.path)) {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}
