//! Faults in the middle of a cutover, there and back, under writers: whatever ends
//! and wherever, one cluster takes writes afterwards, nobody had to help, and no
//! acknowledged write is lost, doubled or misplaced.

mod moment;
mod stage;

use std::time::Duration;

use reshard_scenarios::{Error, Result, RigOptions};

use self::moment::{Hold, Moment, MOMENTS_BACK, MOMENTS_BOTH, MOMENTS_FORTH};
use self::stage::{Case, Fault, Stage, Way};
use super::common::run_within;

/// How long the network is cut for, in the table.
const CUT: Duration = Duration::from_secs(20);

fn options(rig: RigOptions) -> RigOptions {
    let mut options =
        rig.source("reshard.cutover_timeout", "2s").source("reshard.drain_timeout", "1s");
    for (name, value) in [("wal_retrieve_retry_interval", "200ms"), ("autovacuum", "off")] {
        options = options.source(name, value).shard(name, value);
    }
    options
}

/// Runs the cases, those first that begin where traffic is, and prints a table. Ends
/// with the first that fails: what it leaves would spoil the others.
async fn run_all(stage: &Stage, mut cases: Vec<Case>) -> Result<()> {
    let all = cases.len();
    while !cases.is_empty() {
        let way = stage.next_way().await?;
        let Some(number) = cases.iter().position(|case| case.way == way) else {
            stage.switch(way).await?;
            continue;
        };
        let case = cases.remove(number);
        let outcome = stage.run(&case).await;
        let number = all - cases.len();
        match outcome {
            Ok(row) => println!("{number:<4} {case}  {row}"),
            Err(error) => {
                println!("{number:<4} {case}  FAILED: {error}");
                return Err(Error::Unexpected(format!(
                    "case {number} of {all} failed: {case}: {error}"
                )));
            }
        }
    }
    Ok(())
}

/// Each moment of a cutover and of a rollback, with each of the faults. Needs a
/// library that was built with failpoints. RESHARD_FAULTS takes the cases that contain
/// its text, RESHARD_FAULTS_PART=2/5 the second fifth of those.
async fn table(rig: RigOptions, faults: &'static [Fault]) {
    run_within(options(rig), Duration::from_secs(10_800), move |rig| async move {
        let stage = Stage::set(rig, CUT).await?;
        stage.require_failpoints().await?;
        let mut cases = Vec::new();
        for way in [Way::Forth, Way::Back] {
            let only = if way == Way::Forth { MOMENTS_FORTH } else { MOMENTS_BACK };
            for point in MOMENTS_BOTH.iter().chain(only) {
                for fault in faults {
                    cases.push(Case { way, moment: Moment::Failpoint(point), fault: *fault });
                }
            }
        }
        if let Ok(wanted) = std::env::var("RESHARD_FAULTS") {
            cases.retain(|case| case.to_string().contains(&wanted));
        }
        if let Ok(part) = std::env::var("RESHARD_FAULTS_PART") {
            cases = part_of(cases, &part, faults.len())?;
        }
        println!("{} cases", cases.len());
        run_all(&stage, cases).await
    })
    .await;
}

/// Part `2/5` has each fifth case, of all faults, so that all parts take as long.
fn part_of(cases: Vec<Case>, part: &str, faults: usize) -> Result<Vec<Case>> {
    let numbers =
        part.split_once('/').and_then(|(n, of)| Some((n.parse().ok()?, of.parse().ok()?)));
    let Some((number, of)) = numbers.filter(|(n, of): &(usize, usize)| (1..=*of).contains(n))
    else {
        return Err(Error::Unexpected(format!("RESHARD_FAULTS_PART is \"{part}\", not like 2/5")));
    };
    let every =
        cases.into_iter().enumerate().filter(|(nr, _)| (nr + nr / faults) % of == number - 1);
    Ok(every.map(|(_, case)| case).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour, and needs the library built with failpoints"]
async fn every_fault_at_every_moment_ends_with_one_open_cluster_and_no_lost_write() {
    table(RigOptions::new(2), Fault::OF_ONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour, and needs the library built with failpoints"]
async fn every_fault_at_every_moment_of_two_to_three_ends_with_one_open_cluster() {
    table(RigOptions::several(2, 3), Fault::OF_SEVERAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour, and needs the library built with failpoints"]
async fn every_fault_at_every_moment_where_two_shards_stay_and_two_join_ends_with_one_open_cluster()
{
    table(RigOptions::staying(2, 2), Fault::OF_SEVERAL).await;
}

/// As below, where two shards stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_cutover_where_shards_stay_loses_no_write() {
    run_within(options(RigOptions::staying(2, 2)), Duration::from_secs(300), |rig| async move {
        let stage = Stage::set(rig, Duration::from_secs(4)).await?;
        let case = |way, hold, fault| Case { way, moment: Moment::Held(hold), fault };
        let cases = vec![
            case(Way::Forth, Hold::Lease, Fault::Node),
            case(Way::Forth, Hold::Barrier, Fault::Worker),
            case(Way::Forth, Hold::Commit, Fault::Source),
            case(Way::Forth, Hold::Open, Fault::Node),
            case(Way::Forth, Hold::Open, Fault::Source),
            case(Way::Back, Hold::Lease, Fault::Shard),
            case(Way::Back, Hold::Commit, Fault::Worker),
            case(Way::Back, Hold::Commit, Fault::Node),
        ];
        run_all(&stage, cases).await
    })
    .await;
}

/// The same without failpoints: each moment is held by a lock of another session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_cutover_ends_with_one_open_cluster_and_no_lost_write() {
    run_within(options(RigOptions::new(2)), Duration::from_secs(300), |rig| async move {
        let stage = Stage::set(rig, Duration::from_secs(4)).await?;
        let case = |way, hold, fault| Case { way, moment: Moment::Held(hold), fault };
        let cases = vec![
            case(Way::Forth, Hold::Pause, Fault::Worker),
            case(Way::Forth, Hold::Lease, Fault::Source),
            case(Way::Forth, Hold::Lease, Fault::Shard),
            case(Way::Forth, Hold::Barrier, Fault::Worker),
            case(Way::Forth, Hold::Commit, Fault::Source),
            case(Way::Forth, Hold::Open, Fault::Worker),
            case(Way::Forth, Hold::Open, Fault::Shard),
            case(Way::Forth, Hold::StopFlow, Fault::Source),
            case(Way::Back, Hold::Lease, Fault::Shard),
            case(Way::Back, Hold::Lease, Fault::Network),
            case(Way::Back, Hold::Commit, Fault::Worker),
            case(Way::Back, Hold::StopFlow, Fault::Worker),
        ];
        run_all(&stage, cases).await
    })
    .await;
}
