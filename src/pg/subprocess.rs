//! Programs beside the server's own, run from a worker.
//!
//! Not tokio's process module: it installs a SIGCHLD handler for the whole
//! process, which is the server's business. The runtime reads the programs'
//! pipes; a program ends with the process that started it, or when its
//! [`Child`] is dropped.
use std::ffi::CStr;
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child as OsChild, Command, ExitStatus};
use std::time::Duration;

use pgrx::pg_sys;

use crate::error::{Error, Result};

/// How often an ending program is looked at, once its outputs are closed.
const REAP_INTERVAL: Duration = Duration::from_millis(2);

/// The path of a program in the folder of the running `postgres`.
///
/// # Errors
/// 55000 where it is not there.
pub fn find(name: &str) -> Result<PathBuf> {
    let server = unsafe {
        let start = (&raw const pg_sys::my_exec_path).cast::<std::ffi::c_char>();
        CStr::from_ptr(start)
    };
    let server = PathBuf::from(server.to_string_lossy().into_owned());
    let path = server.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::state(format!("program \"{name}\" is not installed"))
        .detail(format!("There is no \"{}\".", path.display()))
        .hint(format!(
            "In the source folder of reshard: make install PG_CONFIG={}",
            server.with_file_name("pg_config").display()
        )))
}

/// A running program; dropped, it is killed and reaped.
pub struct Child {
    inner: OsChild,
    name: String,
}

/// Starts a program that ends with this process.
///
/// # Errors
/// 55000 where the system can't start it.
pub fn spawn(mut command: Command) -> Result<Child> {
    let program = PathBuf::from(command.get_program());
    let name =
        program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let parent = unsafe { libc::getpid() };
    unsafe {
        // Between fork and exec: system calls alone.
        command.pre_exec(move || {
            // The server's open files are none of the program's business. Old
            // kernels lack the call; then they stay open until the exit.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(IoError::last_os_error());
            }
            if libc::getppid() != parent {
                return Err(IoError::from(ErrorKind::BrokenPipe));
            }
            Ok(())
        });
    }
    let inner = command.spawn().map_err(|error| {
        Error::state(format!("could not start program \"{name}\"")).detail(format!("{error}."))
    })?;
    Ok(Child { inner, name })
}

impl Child {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its standard output, if that is a pipe that nobody took yet.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// Its standard error, if that is a pipe that nobody took yet.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.inner.stderr.take()
    }

    /// Waits for its end; to be called once its outputs are closed.
    ///
    /// # Errors
    /// XX000 where someone else has reaped it.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            let status = self.inner.try_wait().map_err(|error| {
                Error::internal(format!("could not wait for program \"{}\": {error}", self.name))
            })?;
            if let Some(status) = status {
                return Ok(status);
            }
            tokio::time::sleep(REAP_INTERVAL).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only where the program has been reaped already.
        drop(self.inner.kill());
        drop(self.inner.wait());
    }
}

/// How a program ended, in words: `exit code 1`, `signal 9`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}
