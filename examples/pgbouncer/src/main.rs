//! Follows the cutover flag of reshard and drives PgBouncer: PAUSE when a switch is
//! announced, other databases and RESUME when it is done. See docs/poolers.md.
//!
//!     reshard-pgbouncer agent.conf

mod bouncer;
mod config;
mod flag;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::bouncer::Bouncer;
use self::config::Config;
use self::flag::{Flag, Flags, Seen};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration, or a file that it names.
    #[error("configuration: {0}")]
    Config(String),
    /// A server or PgBouncer refused something.
    #[error("{}", text_of(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A server does not answer.
    #[error("a server does not answer")]
    Away,
    /// PgBouncer's console did not end a command.
    #[error("console: {0}")]
    Console(String),
}

/// What the server said, or why it could not be asked.
fn text_of(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} {}", db.code().code(), db.message()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Pause after an error.
const RETRY: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: reshard-pgbouncer agent.conf");
        return ExitCode::from(2);
    };
    let config = match Config::read(&path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("reshard-pgbouncer: {error}");
            return ExitCode::from(2);
        }
    };
    tokio::select! {
        () = follow(&config) => ExitCode::FAILURE,
        _ = tokio::signal::ctrl_c() => ExitCode::SUCCESS,
    }
}

/// Follows the flag for good.
async fn follow(config: &Config) {
    let mut flags = Flags::new(config);
    let mut bouncer = Bouncer::new(config);
    let mut acknowledged = None;
    loop {
        let (outcome, pause) = match flags.read().await {
            Seen::Unknown => (Ok(()), RETRY),
            Seen::NoFlag => (bouncer.begin_with(&config.traffic).await, RETRY),
            Seen::Flag(flag) => {
                let obeyed = obey(config, &mut flags, &mut bouncer, &flag, &mut acknowledged);
                (obeyed.await, config.poll)
            }
        };
        let pause = match outcome {
            Ok(()) => pause,
            Err(error) => {
                eprintln!("reshard-pgbouncer: {error}");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Does what the flag says, then says so. Repeatable, and right after a restart of
/// either program.
async fn obey(
    config: &Config,
    flags: &mut Flags,
    bouncer: &mut Bouncer,
    flag: &Flag,
    acknowledged: &mut Option<Flag>,
) -> Result<(), Error> {
    if flag.paused {
        if !bouncer.pause().await? {
            return Ok(());
        }
    } else if bouncer.cluster.as_ref() != Some(&flag.active) {
        // At the start nobody knows what PgBouncer was told before.
        if bouncer.cluster.is_some() && !bouncer.pause().await? {
            return Ok(());
        }
        bouncer.lead_to(&flag.active).await?;
        bouncer.resume().await?;
        eprintln!("reshard-pgbouncer: cluster \"{}\" since epoch {}", flag.active, flag.epoch);
    } else if bouncer.is_held() {
        // The switch was called off.
        bouncer.resume().await?;
    }
    if acknowledged.as_ref() != Some(flag) {
        flags.acknowledge(&config.name, flag).await?;
        *acknowledged = Some(flag.clone());
    }
    Ok(())
}
