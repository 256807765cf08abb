//! One PostgreSQL server: its folder, its settings, its process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Config;

use super::account::Account;
use super::installation::{run, Installation};
use super::lease::Port;
use super::rig::{DATABASE, PASSWORD};
use super::scratch::signal;
use crate::error::{Error, Result};
use crate::session::Session;

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// All processes end at once; recovery at the next start.
    Immediate,
}

/// How a server is set up.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// Settings beside, and over, those that all servers get.
    pub settings: Vec<(String, String)>,
}

/// Longest start: crash recovery of a loaded server on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Longest orderly stop.
const STOP: Duration = Duration::from_secs(60);

/// A server of its own. Stopped when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    folder: PathBuf,
    port: Port,
    account: Account,
    installation: Arc<Installation>,
    /// Where its programs are started from, if not from the installation.
    programs: Mutex<Option<Installation>>,
    settings: Mutex<BTreeMap<String, String>>,
    process: Mutex<Option<Child>>,
}

impl Server {
    /// Makes the data folder and starts the server. Blocks.
    pub(super) fn create(
        name: &str,
        parent: &Path,
        account: Account,
        installation: Arc<Installation>,
        options: &ServerOptions,
    ) -> Result<Server> {
        let folder = parent.join(name);
        std::fs::create_dir(&folder)
            .map_err(Error::io(format!("make folder {}", folder.display())))?;
        account.own(&folder)?;
        let mut settings = base_settings();
        settings.extend(options.settings.iter().cloned());
        let server = Server {
            name: name.to_owned(),
            folder,
            port: Port::take()?,
            account,
            installation,
            programs: Mutex::new(None),
            settings: Mutex::new(settings),
            process: Mutex::new(None),
        };
        server.initialize()?;
        server.start()?;
        Ok(server)
    }

    fn initialize(&self) -> Result<()> {
        let password = self.folder.join("password");
        std::fs::write(&password, PASSWORD).map_err(Error::io("write the password file"))?;
        self.account.own(&password)?;
        let mut initdb = self.command("initdb");
        initdb
            .arg("-D")
            .arg(self.data())
            .args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .args(["--no-sync", "--no-instructions", "--pwfile"])
            .arg(&password);
        run(&mut initdb)?;
        std::fs::remove_file(&password).map_err(Error::io("remove the password file"))?;
        let main = self.data().join("postgresql.conf");
        let mut file = OpenOptions::new()
            .append(true)
            .open(&main)
            .map_err(Error::io("open postgresql.conf"))?;
        std::io::Write::write_all(&mut file, b"include 'harness.conf'\n")
            .map_err(Error::io("write postgresql.conf"))?;
        self.write_settings()?;
        self.create_database()
    }

    /// CREATE DATABASE before the first start, in single-user mode.
    fn create_database(&self) -> Result<()> {
        let mut command = self.command("postgres");
        command
            .args(["--single", "-c", "shared_preload_libraries=", "-D"])
            .arg(self.data())
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(Error::io("start postgres --single"))?;
        if let Some(mut input) = child.stdin.take() {
            let sql = format!("CREATE DATABASE {DATABASE}\n");
            std::io::Write::write_all(&mut input, sql.as_bytes())
                .map_err(Error::io("write to postgres --single"))?;
        }
        child.wait().map(drop).map_err(Error::io("wait for postgres --single"))
    }

    fn command(&self, program: &str) -> Command {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let path = programs.as_ref().unwrap_or(&self.installation).program(program);
        drop(programs);
        let mut command = Command::new(path);
        command
            .current_dir(&self.folder)
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .env_remove("PGHOST")
            // libpq looks for certificates there, also in a server.
            .env("HOME", &self.folder)
            .env("LC_ALL", "C.UTF-8");
        self.account.apply(&mut command);
        command
    }

    fn write_settings(&self) -> Result<()> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let text: String = settings
            .iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        let path = self.data().join("harness.conf");
        std::fs::write(&path, text).map_err(Error::io("write harness.conf"))?;
        self.account.own(&path)
    }

    /// Starts the server and returns when it takes connections. Blocks.
    pub fn start(&self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(Error::io("open a server log"))?;
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        let mut said = self.log().len();
        let mut child = self.spawn(&log)?;
        loop {
            if self.is_ready(child.id()) {
                *process = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait().map_err(Error::io("look at a server"))? {
                // Children of a killed server keep its shared memory for a moment.
                let text = self.log();
                let in_use = text.get(said..).is_some_and(|s| s.contains("shared memory block"));
                if !in_use || begin.elapsed() > START {
                    return Err(self.error(format!("did not start ({status})")));
                }
                std::thread::sleep(Duration::from_millis(100));
                said = self.log().len();
                child = self.spawn(&log)?;
            } else if begin.elapsed() > START {
                drop(child.kill());
                return Err(self.error("did not get ready"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn spawn(&self, log: &File) -> Result<Child> {
        let copy = || log.try_clone().map_err(Error::io("share a server log"));
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(&self.folder)
            .args(["-p", &self.port().to_string()])
            .stdin(Stdio::null())
            .stdout(copy()?)
            .stderr(copy()?);
        command.spawn().map_err(Error::io("start a server"))
    }

    /// The eighth line of postmaster.pid says when connections are taken.
    fn is_ready(&self, pid: u32) -> bool {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        lines.next() == Some(pid.to_string().as_str())
            && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    /// Stops the server and waits for its end. Blocks. A stopped server stays stopped.
    pub fn stop(&self, how: Stop) -> Result<()> {
        self.end(match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        })
    }

    /// Kills the postmaster with SIGKILL; its children notice by themselves. Blocks.
    pub fn kill9(&self) -> Result<()> {
        self.end("KILL")
    }

    /// Kills a process of this server with SIGKILL; the postmaster then restarts all.
    pub fn kill9_process(&self, pid: u32) -> Result<()> {
        signal("KILL", pid)
    }

    fn end(&self, name: &str) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut child) = process.take() else {
            return Ok(());
        };
        signal(name, child.id())?;
        let begin = Instant::now();
        loop {
            if child.try_wait().map_err(Error::io("look at a server"))?.is_some() {
                return Ok(());
            }
            if begin.elapsed() > STOP {
                drop(child.kill());
                drop(child.wait());
                return Err(self.error(format!("did not stop within {STOP:?} of SIG{name}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops and starts. Blocks.
    pub fn restart(&self, how: Stop) -> Result<()> {
        self.stop(how)?;
        self.start()
    }

    /// Changes settings in the file; they count after a reload or a restart.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut kept = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in settings {
            kept.insert((*name).to_owned(), (*value).to_owned());
        }
        drop(kept);
        self.write_settings()
    }

    /// Name in the rig: `source`, `shard0`...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Port on 127.0.0.1, and of the unix socket in [`Server::folder`].
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Folder of data, log and socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Has it run from another installation, from its next start on.
    pub fn run_from(&self, installation: Installation) {
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = Some(installation);
    }

    /// The installation it was made by.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// All of the log so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Connection string over TCP with the password, as a DBA hands it to `reshard_add_shard`.
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} dbname={DATABASE} user=postgres password={PASSWORD}",
            self.port()
        )
    }

    /// Opens a session as superuser on the rig's database.
    pub async fn connect(&self) -> Result<Session> {
        self.connect_as("postgres", DATABASE).await
    }

    /// Opens a session as any role on any database, without a password.
    pub async fn connect_as(&self, user: &str, database: &str) -> Result<Session> {
        Session::open_socket(&self.folder, self.port(), user, database, "harness").await
    }

    /// Opens a session over TCP with a password.
    pub async fn connect_tcp(&self, user: &str, password: &str) -> Result<Session> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port()).user(user).password(password).dbname(DATABASE);
        Session::open(&config).await
    }

    /// One statement in a session of its own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.connect().await?.execute(sql).await
    }

    /// First column of the first row, in a session of its own.
    pub async fn text(&self, sql: &str) -> Result<Option<String>> {
        self.connect().await?.text(sql).await
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::Server {
            server: self.name.clone(),
            problem: problem.into(),
            log_tail: self.log_tail(15),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if super::scratch::keep() {
            eprintln!("kept {} running on port {}", self.name, self.port());
            return;
        }
        drop(self.stop(Stop::Immediate));
    }
}

fn base_settings() -> BTreeMap<String, String> {
    [
        ("listen_addresses", "127.0.0.1"),
        ("wal_level", "logical"),
        ("max_replication_slots", "40"),
        ("max_wal_senders", "40"),
        ("max_logical_replication_workers", "40"),
        ("max_worker_processes", "40"),
        ("max_connections", "200"),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "4GB"),
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("autovacuum_naptime", "10s"),
        ("log_line_prefix", "%m [%p] %b %a: "),
        ("log_error_verbosity", "default"),
        ("log_statement", "none"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}
