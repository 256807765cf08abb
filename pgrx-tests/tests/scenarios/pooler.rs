//! Clients behind PgBouncer see a switch as a moment's wait, and nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reshard_scenarios::cluster::{Pooler, POOLER};
use reshard_scenarios::migration::traffic;
use reshard_scenarios::placement::shard_of;
use reshard_scenarios::random::Random;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Error, Migration, Result, RigOptions, Session, Stop};

use super::common::{application, run_within, STEP};

const SHARDS: u64 = 2;
const CLIENTS: u64 = 8;

/// What one client wrote, and how long it had to wait at most.
struct Record {
    rows: BTreeMap<(i64, i64), String>,
    longest: Duration,
}

/// A client as pgbench runs one: reads and writes, by key, through the pooler. Any
/// failed statement ends it.
async fn client(
    number: u64,
    sessions: Vec<Session>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<Record> {
    let mut random = Random::new(number);
    let mut record = Record { rows: BTreeMap::new(), longest: Duration::ZERO };
    let mut id = number as i64 * 1_000_000_000;
    while !stop.load(Ordering::Relaxed) {
        id += 1;
        let tenant = (number * 1_000 + random.below(50)) as i64;
        let session = &sessions[shard_of(tenant, SHARDS) as usize];
        let begin = Instant::now();
        let insert = format!(
            "INSERT INTO orders (tenant_id, id, owner, stamp) VALUES ({tenant}, {id}, {number}, 'new')"
        );
        let select = format!("SELECT count(*) FROM orders WHERE tenant_id = {tenant}");
        match random.below(2) {
            0 => session.execute(&insert).await?,
            _ => {
                session.execute(&format!("BEGIN; {select}")).await?;
                session.execute(&insert).await?;
                session.execute("COMMIT").await?;
            }
        }
        record.rows.insert((tenant, id), "new".to_owned());
        let before = record.rows.range((tenant, 0)..(tenant, id)).next_back();
        if let Some(((_, other), _)) = before.map(|(key, stamp)| (*key, stamp.clone())) {
            let stamp = format!("seen by {id}");
            let touched = session
                .affected(&format!(
                    "UPDATE orders SET stamp = '{stamp}' WHERE tenant_id = {tenant} AND id = {other}"
                ))
                .await?;
            if touched != 1 {
                return Err(Error::Unexpected(format!("row {other} of {tenant} is lost")));
            }
            record.rows.insert((tenant, other), stamp);
        }
        record.longest = record.longest.max(begin.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(random.below(20))).await;
    }
    Ok(record)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_pgbouncer_see_no_failed_statement_and_lose_nothing() {
    let options = RigOptions::new(SHARDS as usize).source("reshard.pooler_ack_timeout", "2s");
    run_within(options, Duration::from_secs(300), |rig| async move {
        application(&rig, 500).await?;
        // Before there is a flag: all lead to the source.
        let mut pooler = Pooler::start(&rig).await?;
        wait_until(STEP, "PgBouncer to lead to the source", || async {
            let Ok(session) = pooler.connect(SHARDS as usize - 1).await else { return Ok(false) };
            let orders: i64 = session.one("SELECT count(*) FROM orders").await?;
            Ok(orders > 0)
        })
        .await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        pooler.registered(&rig.source).await?;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for number in 1..=CLIENTS {
            let mut sessions = Vec::new();
            for shard in 0..SHARDS {
                sessions.push(pooler.connect(shard as usize).await?);
            }
            clients.push(tokio::spawn(client(number, sessions, stop.clone(), done.clone())));
        }
        let more = |count: u64| {
            let (done, wanted) = (done.clone(), done.load(Ordering::Relaxed) + count);
            wait_until(STEP, "transactions through the pooler", move || {
                let enough = done.load(Ordering::Relaxed) >= wanted;
                async move { Ok(enough) }
            })
        };
        more(200).await?;
        migration.cutover(STEP).await?;
        more(200).await?;
        migration.rollback(STEP).await?;
        more(200).await?;

        // An agent that does not answer aborts the switch; clients go on afterwards.
        pooler.hold_agent(true)?;
        migration.verb("reshard_cutover").await?;
        let error = migration.wait("switched", STEP).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("55P03"), "{error}");
        assert!(error.sql().unwrap().full_text().contains(POOLER), "{error}");
        pooler.hold_agent(false)?;
        more(100).await?;
        // One that was killed goes on where the flag is.
        pooler.kill_agent();
        pooler.start_agent(&rig.source).await?;
        migration.cutover(STEP).await?;
        more(200).await?;

        stop.store(true, Ordering::Relaxed);
        let mut rows = BTreeMap::new();
        let mut longest = Duration::ZERO;
        for client in clients {
            let record = client.await.map_err(|e| Error::Unexpected(e.to_string()))?;
            let record =
                record.map_err(|error| Error::Unexpected(format!("{error}; {}", pooler.log())))?;
            longest = longest.max(record.longest);
            rows.extend(record.rows);
        }
        assert_eq!(traffic(&rig.source.connect().await?).await?.epoch, 3);
        let written = rows.len();
        for (number, shard) in rig.shards.iter().enumerate() {
            let query = "SELECT tenant_id, id, stamp FROM orders WHERE owner > 0";
            for row in shard.connect().await?.rows(query).await? {
                let number_of =
                    |n: usize| row[n].as_ref().and_then(|v| v.parse::<i64>().ok()).unwrap();
                let (tenant, id) = (number_of(0), number_of(1));
                assert_eq!(shard_of(tenant, SHARDS), number, "row {id} of {tenant}");
                assert_eq!(rows.remove(&(tenant, id)), row[2], "row {id} of {tenant}");
            }
        }
        assert!(rows.is_empty(), "{} rows are lost", rows.len());
        println!("{written} rows through PgBouncer, longest wait {longest:.0?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flag_is_on_every_shard_and_the_highest_epoch_names_who_is_active() {
    run_within(RigOptions::new(2), Duration::from_secs(300), |rig| async move {
        application(&rig, 500).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        let flag = "SELECT active_cluster || ' ' || state || ' ' || epoch FROM reshard.traffic WHERE name = 'prod'";
        let on_all = |wanted: &'static str| {
            let rig = &rig;
            wait_until(STEP, format!("all servers to say {wanted}"), move || async move {
                for server in rig.servers() {
                    if server.text(flag).await?.as_deref() != Some(wanted) {
                        return Ok(false);
                    }
                }
                Ok(true)
            })
        };
        on_all("prod open 0").await?;
        migration.cutover(STEP).await?;
        on_all("prod_sharded open 1").await?;
        migration.rollback(STEP).await?;
        on_all("prod open 2").await?;
        migration.cutover(STEP).await?;
        // Who looks for the flag when the old primary is gone.
        tokio::task::block_in_place(|| rig.source.stop(Stop::Immediate))?;
        for shard in &rig.shards {
            assert_eq!(shard.text(flag).await?.as_deref(), Some("prod_sharded open 3"));
        }
        Ok(())
    })
    .await;
}
