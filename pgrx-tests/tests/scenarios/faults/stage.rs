//! One set of servers for many cases, and what is checked after each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reshard_scenarios::cluster::{Network, Place};
use reshard_scenarios::load::{schema, Load, LoadOptions, Table};
use reshard_scenarios::migration::{declare_at, traffic, DESTINATION, SOURCE};
use reshard_scenarios::wait::{wait_for, Seen};
use reshard_scenarios::{Error, Migration, Result, Rig, Server};

use super::super::common::{check_outcome, KEY, STEP};
use super::super::staying;
use super::moment::{self, arm, at_failpoint, held, Moment, Reached};

/// Which way traffic moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the shards.
    Forth,
    /// To the source.
    Back,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A step ends with an error.
    Error,
    /// The worker is killed with SIGKILL.
    Worker,
    /// The source's postmaster is killed with SIGKILL.
    Source,
    /// The second shard's postmaster is killed with SIGKILL.
    Shard,
    /// The network to the second shard is cut for a while.
    Network,
    /// The postmaster of the source's first shard, where the task doesn't run, is
    /// killed with SIGKILL.
    Node,
    /// The network to that one is cut for a while.
    NodeNet,
}

impl Fault {
    /// All of those that a source of one shard can have.
    pub const OF_ONE: &[Fault] =
        &[Fault::Error, Fault::Worker, Fault::Source, Fault::Shard, Fault::Network];
    /// Those that matter where the source has several.
    pub const OF_SEVERAL: &[Fault] =
        &[Fault::Worker, Fault::Source, Fault::Shard, Fault::Node, Fault::NodeNet];
}

/// A fault at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Which way traffic was to move.
    pub way: Way,
    /// Where the fault strikes.
    pub moment: Moment,
    /// What goes wrong.
    pub fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, fault) = (format!("{:?}", self.way), format!("{:?}", self.fault));
        write!(f, "{:<5} {:<18} {:<7}", way.to_lowercase(), self.moment, fault.to_lowercase())
    }
}

/// How a case ended.
pub struct Row {
    active: String,
    status: String,
    settled: Duration,
    rows: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<9} open: {:<12} after {:>5} ms, {} transactions kept",
            self.status,
            self.active,
            self.settled.as_millis(),
            self.rows
        )
    }
}

/// Servers with a migration whose changes flow.
pub struct Stage {
    rig: Arc<Rig>,
    network: Network,
    migration: Migration,
    /// How long a network is cut: longer than a cutover may take.
    cut: Duration,
}

impl Stage {
    /// Makes it.
    pub async fn set(rig: Arc<Rig>, cut: Duration) -> Result<Stage> {
        let network = Network::before(&rig).await?;
        if rig.nodes.is_empty() {
            let session = rig.source.connect().await?;
            schema::create(&session).await?;
            schema::seed(&session, 200).await?;
        } else {
            schema::spread(&rig, KEY, 200).await?;
        }
        let staying = if rig.staying { network.nodes() } else { Vec::new() };
        let shards: Vec<String> = staying.into_iter().chain(network.shards()).collect();
        declare_at(&rig, KEY, &network.nodes(), &shards).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        Ok(Stage { rig, network, migration, cut })
    }

    /// An error where the library has no failpoints.
    pub async fn require_failpoints(&self) -> Result<()> {
        let shown = self.rig.source.text("SELECT current_setting('reshard.failpoints', true)");
        match shown.await?.as_deref() {
            Some("on") => Ok(()),
            _ => Err(Error::Unexpected(
                "the library has no failpoints; install it with the cargo feature \"failpoints\""
                    .to_owned(),
            )),
        }
    }

    /// Which way the next cutover goes.
    pub async fn next_way(&self) -> Result<Way> {
        let active = traffic(&self.rig.source.connect().await?).await?.active_cluster;
        Ok(if active == SOURCE { Way::Forth } else { Way::Back })
    }

    /// A switch without a fault.
    pub async fn switch(&self, way: Way) -> Result<()> {
        match way {
            Way::Forth => self.migration.cutover(STEP).await,
            Way::Back => self.migration.rollback(STEP).await,
        }
    }

    fn ask(&self, way: Way) -> String {
        let verb = if way == Way::Forth { "reshard_cutover" } else { "reshard_rollback" };
        format!("SELECT {verb}({})", self.migration.id)
    }

    /// Runs one case under writers and checks what became of it.
    pub async fn run(&self, case: &Case) -> Result<Row> {
        let load = Load::start(
            &self.rig,
            &LoadOptions {
                followers: 4,
                direct: 1,
                pace: Duration::from_millis(20),
                ..LoadOptions::default()
            },
        );
        load.each_acknowledged_by_followers(2, STEP).await?;
        let before = self.last_cutover().await?;
        let epoch = traffic(&self.rig.source.connect().await?).await?.epoch;
        self.strike(case).await?;
        let struck = Instant::now();
        let status = self.settled(before, epoch).await?;
        let settled = struck.elapsed();
        moment::clear(&self.rig).await?;
        let active = self.check_side(case).await?;
        self.check_fences(&active).await?;
        load.each_acknowledged_by_followers(3, STEP).await?;
        let outcome = load.finish().await?;
        match self.rig.staying {
            true => staying::check(&self.rig, &outcome, false).await?,
            false => check_outcome(&self.rig, &outcome).await?,
        }
        self.forget_rows(&active).await?;
        Ok(Row { active, status, settled, rows: outcome.counts().acknowledged })
    }

    async fn strike(&self, case: &Case) -> Result<()> {
        let rig = &self.rig;
        let reached = match case.moment {
            Moment::Failpoint(point) => {
                let action = match case.fault {
                    Fault::Error => "error",
                    Fault::Worker => "kill",
                    _ => "wait",
                };
                arm(rig, point, action);
                rig.source.execute(&self.ask(case.way)).await?;
                at_failpoint(rig).await?
            }
            Moment::Held(hold) => held(rig, hold, case.way, &self.ask(case.way)).await?,
        };
        match case.fault {
            Fault::Error => reached.release(rig).await,
            Fault::Worker => {
                if let Moment::Held(_) = case.moment {
                    let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'reshard coordinator'";
                    let pid = rig.source.connect().await?.one(pid).await?;
                    rig.source.kill9_process(pid)?;
                }
                self.release_after_crash(reached).await
            }
            Fault::Source => {
                tokio::task::block_in_place(|| rig.source.kill9())?;
                tokio::task::block_in_place(|| rig.source.start())?;
                self.release_after_crash(reached).await
            }
            Fault::Shard => self.kill(&rig.shards[1], reached).await,
            Fault::Node => self.kill(&rig.nodes[0], reached).await,
            Fault::Network => self.cut_off(Place::Shard(1), reached).await,
            Fault::NodeNet => self.cut_off(Place::Node(0), reached).await,
        }
    }

    /// Kills a server while the cutover is held up, and starts it while it goes on.
    async fn kill(&self, server: &Server, reached: Reached) -> Result<()> {
        tokio::task::block_in_place(|| server.kill9())?;
        reached.release(&self.rig).await?;
        tokio::task::block_in_place(|| server.start())
    }

    async fn cut_off(&self, place: Place, reached: Reached) -> Result<()> {
        self.network.cut(place);
        reached.release(&self.rig).await?;
        tokio::time::sleep(self.cut).await;
        self.network.mend();
        Ok(())
    }

    /// Lets go as soon as the source answers again. It may answer once more before it
    /// notices that a process has crashed.
    async fn release_after_crash(&self, reached: Reached) -> Result<()> {
        wait_for(STEP, "the source to answer", || async {
            let answer = match reached {
                Reached::Pooler => moment::forget_pooler(&self.rig).await,
                _ => self.rig.source.execute("SELECT 1").await,
            };
            match answer {
                Ok(()) => Ok(Seen::Done(())),
                Err(error) if error.is_disconnect() => Ok(Seen::NotYet(error.to_string())),
                Err(error) => Err(error),
            }
        })
        .await?;
        match reached {
            Reached::Pooler => Ok(()),
            other => other.release(&self.rig).await,
        }
    }

    async fn last_cutover(&self) -> Result<i64> {
        self.rig
            .source
            .connect()
            .await?
            .one("SELECT coalesce(max(cutover_id), 0) FROM reshard.cutovers")
            .await
    }

    /// Waits until the cutover has ended by itself and traffic is open; how it ended.
    async fn settled(&self, before: i64, epoch: i64) -> Result<String> {
        let query = "SELECT c.cutover_id, c.status, t.state, k.status || ' ' || k.phase, t.epoch,
                            (SELECT count(*) FROM reshard.intent WHERE handled_at IS NULL)
                       FROM reshard.traffic AS t,
                            (SELECT * FROM reshard.tasks WHERE parent_id IS NULL ORDER BY id DESC LIMIT 1) AS k,
                            (SELECT * FROM reshard.cutovers ORDER BY cutover_id DESC, step_no DESC LIMIT 1) AS c";
        wait_for(STEP, "the cutover to end by itself", || async {
            let session = match self.rig.source.connect().await {
                Ok(session) => session,
                Err(error) if error.is_disconnect() => return Ok(Seen::NotYet(error.to_string())),
                Err(error) => return Err(error),
            };
            let rows = match session.rows(query).await {
                Ok(rows) => rows,
                Err(error) if error.is_disconnect() => return Ok(Seen::NotYet(error.to_string())),
                Err(error) => return Err(error),
            };
            let row: Vec<String> =
                rows.into_iter().next().unwrap_or_default().into_iter().flatten().collect();
            let seen = row.join(" | ");
            let [id, status, state, task, now, intents] = row.as_slice() else {
                return Ok(Seen::NotYet(seen));
            };
            let phases = ["running replicating", "running switched", "running rolled_back"];
            let ended = id.parse().is_ok_and(|id: i64| id > before)
                && status != "running"
                && state == "open"
                && phases.contains(&task.as_str())
                && intents == "0";
            if ended && now.parse().is_ok_and(|now: i64| now > epoch + 1) {
                return Err(Error::Unexpected(format!("traffic was switched twice: {seen}")));
            }
            Ok(if ended { Seen::Done(status.clone()) } else { Seen::NotYet(seen) })
        })
        .await
    }

    /// Traffic must be where the commit point says.
    async fn check_side(&self, case: &Case) -> Result<String> {
        let active = traffic(&self.rig.source.connect().await?).await?.active_cluster;
        let (old, new) = match case.way {
            Way::Forth => (SOURCE, DESTINATION),
            Way::Back => (DESTINATION, SOURCE),
        };
        // A shard that comes back in time does not stop a cutover.
        let may_go_on = !matches!(case.fault, Fault::Error | Fault::Worker | Fault::Source)
            || matches!(case.moment, Moment::Held(_)) && case.fault == Fault::Error;
        let right = match case.moment.is_committed() {
            true => active == new,
            false => active == old || may_go_on,
        };
        match right {
            true => Ok(active),
            false => Err(Error::Unexpected(format!("cluster \"{active}\" is active"))),
        }
    }

    /// The active cluster takes writes, the other one does not, on any server.
    async fn check_fences(&self, active: &str) -> Result<()> {
        for server in self.rig.servers() {
            let of_source = self.rig.sources().iter().any(|s| s.name() == server.name());
            let of_active = of_source && self.rig.staying || of_source == (active == SOURCE);
            let session = server.connect().await?;
            let written = session.execute("UPDATE settings SET stamp = stamp WHERE false").await;
            match written {
                Ok(()) if of_active => {}
                Err(error) if !of_active && error.sqlstate() == Some("25006") => {}
                Ok(()) => {
                    return Err(Error::Unexpected(format!(
                        "{} takes writes, but \"{active}\" is active",
                        server.name()
                    )))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes the clients' rows, so that the next case begins small.
    async fn forget_rows(&self, active: &str) -> Result<()> {
        let servers: Vec<&Server> = match active == SOURCE {
            true => self.rig.sources(),
            false => self.rig.destination(),
        };
        for server in servers {
            let session = server.connect().await?;
            session.execute("SET reshard.skip_moved_rows = on").await?;
            for table in Table::ALL {
                session.execute(&format!("DELETE FROM {} WHERE owner <> 0", table.name())).await?;
            }
        }
        Ok(())
    }
}
