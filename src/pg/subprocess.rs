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
use std::process::{Child as OsChild, Command, ExitStatus, Stdio};
use std::time::Duration;

use pgrx::pg_sys;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::error::{Error, Result};

/// How often an ending program is looked at, once its outputs are closed.
const REAP_INTERVAL: Duration = Duration::from_millis(2);
/// How long a program may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of what it says that are read.
const VERSION_LIMIT: usize = 200;

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
    let hint = match name {
        "reshard-schema" => format!(
            "In the source folder of reshard: make install PG_CONFIG={}",
            server.with_file_name("pg_config").display()
        ),
        _ => format!(
            "Install the client programs of this version of PostgreSQL beside the server (Debian: \
             apt install postgresql-client-{}).",
            pg_sys::get_pg_major_version_num()
        ),
    };
    Err(Error::state(format!("program \"{name}\" is not installed"))
        .detail(format!("There is no \"{}\".", path.display()))
        .hint(hint))
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
pub fn spawn(command: &mut Command) -> Result<Child> {
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

/// Reads a pipe to its end; keeps the first `limit` bytes.
///
/// # Errors
/// XX000 where it can't be read.
pub async fn read_all(pipe: std::os::fd::OwnedFd, limit: usize) -> Result<Vec<u8>> {
    let broken = |error| Error::internal(format!("could not read from a program: {error}"));
    let mut receiver = Receiver::from_owned_fd(pipe).map_err(broken)?;
    let mut kept = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = receiver.read(&mut chunk).await.map_err(broken)?;
        if n == 0 {
            return Ok(kept);
        }
        let room = limit.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
}

/// What a program beside `postgres` answers to `--version`.
///
/// # Errors
/// 55000 where it is not there, can't be started, fails or doesn't answer.
pub async fn version_of(name: &str) -> Result<String> {
    let mut command = Command::new(find(name)?);
    command.arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let answer = async {
        let said = match child.take_stdout() {
            Some(stdout) => read_all(stdout.into(), VERSION_LIMIT).await?,
            None => Vec::new(),
        };
        Ok((String::from_utf8_lossy(&said).trim().to_owned(), child.wait().await?))
    };
    let unfit = |why: String| {
        Error::state(format!("program \"{name}\" doesn't tell its version"))
            .detail(why)
            .hint(format!("Try it by hand, as the account of the server: {name} --version"))
    };
    match tokio::time::timeout(VERSION_TIMEOUT, answer).await {
        Ok(Ok((said, status))) if status.success() => Ok(said),
        Ok(Ok((_, status))) => Err(unfit(format!("It ended with {}.", describe(status)))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(unfit(format!("It has not answered for {VERSION_TIMEOUT:?}."))),
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
