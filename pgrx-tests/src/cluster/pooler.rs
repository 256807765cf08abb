//! A PgBouncer before a rig, and the agent that drives it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_postgres::Config;

use super::lease::Port;
use super::rig::Rig;
use super::scratch::signal;
use super::server::Server;
use crate::error::{Error, Result};
use crate::migration::{DESTINATION, SOURCE};
use crate::session::Session;
use crate::wait::{wait_for, Seen};

/// What the agent calls itself in `reshard.poolers`.
pub const POOLER: &str = "pgbouncer-1";

/// Both programs; they end when this is dropped.
#[derive(Debug)]
pub struct Pooler {
    port: Port,
    bouncer: Option<Child>,
    agent: Option<Child>,
    folder: PathBuf,
}

impl Pooler {
    /// Starts the agent, which writes PgBouncer's databases `app_0`, `app_1`..., then
    /// PgBouncer. They lead to where the writes go; to the source before a migration.
    pub async fn start(rig: &Rig) -> Result<Pooler> {
        let folder = rig.folder().join("pgbouncer");
        std::fs::create_dir(&folder).map_err(Error::io("make a folder"))?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))
            .map_err(Error::io("open a folder"))?;
        let port = Port::take()?;
        let databases = folder.join("databases.ini");
        let write = |name: &str, text: String| {
            std::fs::write(folder.join(name), text).map_err(Error::io(format!("write {name}")))
        };
        write(
            "pgbouncer.ini",
            format!(
                "%include {}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\nadmin_users = admin\npool_mode = transaction\ndefault_pool_size = 20\n\
                 server_login_retry = 0\nmax_client_conn = 500\nlogfile = {}\n",
                databases.display(),
                port.number,
                folder.join("users").display(),
                folder.join("log").display()
            ),
        )?;
        write("users", "\"client\" \"\"\n\"admin\" \"\"\n".to_owned())?;
        // Readable by the account that PgBouncer runs under.
        write("databases.ini", String::new())?;
        std::fs::set_permissions(&databases, std::fs::Permissions::from_mode(0o644))
            .map_err(Error::io("open a file"))?;
        let shards: String = rig
            .shards
            .iter()
            .enumerate()
            .map(|(number, shard)| format!("{number} = {}\n", shard.conninfo()))
            .collect();
        write(
            "agent.conf",
            format!(
                "name = {POOLER}\ntraffic = {SOURCE}\ncoordinator = {}\nprefix = app_\npoll_ms = 10\n\
                 databases = {}\n\
                 admin = host=127.0.0.1 port={} user=admin dbname=pgbouncer\n\
                 [{SOURCE}]\n0 = {}\n[{DESTINATION}]\n{shards}",
                rig.source.conninfo(),
                databases.display(),
                port.number,
                rig.source.conninfo()
            ),
        )?;
        let agent = Some(spawn_agent(&folder)?);
        let mut pooler = Pooler { port, bouncer: None, agent, folder };
        wait_for(
            std::time::Duration::from_secs(30),
            "the agent to write the databases",
            || async {
                let text = std::fs::read_to_string(&databases).unwrap_or_default();
                Ok(match text.contains("app_0 = ") {
                    true => Seen::Done(()),
                    false => Seen::NotYet(text),
                })
            },
        )
        .await?;
        let mut command = Command::new("pgbouncer");
        command.arg(pooler.folder.join("pgbouncer.ini"));
        rig.account().apply(&mut command);
        let bouncer = command
            .current_dir(&pooler.folder)
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start pgbouncer (Debian's package pgbouncer)"))?;
        pooler.bouncer = Some(bouncer);
        Ok(pooler)
    }

    /// Starts the agent again and waits until it has said what it obeys.
    pub async fn start_agent(&mut self, source: &Server) -> Result<()> {
        self.agent = Some(spawn_agent(&self.folder)?);
        self.registered(source).await
    }

    /// Waits until the agent has said what it obeys.
    pub async fn registered(&self, source: &Server) -> Result<()> {
        let what = "the agent to acknowledge what it obeys";
        wait_for(std::time::Duration::from_secs(30), what, || async {
            let query = format!(
                "SELECT count(*) FROM reshard.poolers AS p, reshard.traffic AS t
                  WHERE p.name = '{POOLER}' AND p.epoch = t.epoch AND p.state = t.state"
            );
            let agrees: i64 = source.connect().await?.one(&query).await?;
            Ok(match agrees {
                0 => Seen::NotYet(self.log()),
                _ => Seen::Done(()),
            })
        })
        .await
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
    }

    /// Holds the agent up, or lets it go on.
    pub fn hold_agent(&self, hold: bool) -> Result<()> {
        match &self.agent {
            Some(agent) => signal(if hold { "STOP" } else { "CONT" }, agent.id()),
            None => Ok(()),
        }
    }

    /// A session of a client, through PgBouncer.
    pub async fn connect(&self, shard: usize) -> Result<Session> {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port.number)
            .user("client")
            .dbname(format!("app_{shard}"));
        Session::open(&config).await
    }

    /// What the agent and PgBouncer logged.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        format!("agent: {}\npgbouncer: {}", read("agent.log"), read("log"))
    }
}

fn spawn_agent(folder: &Path) -> Result<Child> {
    let program = std::env::current_exe()
        .map_err(Error::io("find this program"))?
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("reshard-pgbouncer"))
        .find(|program| program.exists())
        .ok_or_else(|| {
            Error::Unexpected("reshard-pgbouncer is not built; run \"make install\"".to_owned())
        })?;
    let log = std::fs::File::create(folder.join("agent.log"))
        .map_err(Error::io("open the agent's log"))?;
    Command::new(program)
        .arg(folder.join("agent.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(Error::io("start reshard-pgbouncer"))
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill_agent();
        if let Some(bouncer) = &mut self.bouncer {
            drop(bouncer.kill());
            drop(bouncer.wait());
        }
    }
}
