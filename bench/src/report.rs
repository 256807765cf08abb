//! Medians, ratios and spreads, for people.

use std::time::Duration;

use crate::contest::{Growth, Results, FLOOR, NATIVE, PGCOPYDB, PIPES, RESHARD};
use crate::data::Loaded;
use crate::meter::Cost;

/// The table of a contest from so many shards of the source.
pub fn contest(nodes: usize, results: &Results, loaded: &Loaded) {
    let ours = median(results.get(RESHARD).map_or(&[], Vec::as_slice));
    println!("\n== {nodes} -> {}, medians", crate::SHARDS);
    println!(
        "{:<36} {:>8} {:>8} {:>8} {:>10} {:>9} {:>9} {:>12}",
        "", "seconds", "fastest", "slowest", "its time/", "source", "shards", "worker"
    );
    println!(
        "{:<36} {:>8} {:>8} {:>8} {:>10} {:>9} {:>9} {:>12}",
        "", "", "", "", "reshard's", "CPU s", "CPU s", "memory MB"
    );
    for name in [FLOOR, RESHARD, PIPES, PGCOPYDB, NATIVE] {
        let Some(costs) = results.get(name) else { continue };
        let time = median(costs);
        println!(
            "{name:<36} {time:>8.2} {:>8.2} {:>8.2} {:>10.2} {:>9.1} {:>9.1} {:>12}",
            least(costs),
            most(costs),
            time / ours,
            middle(costs.iter().map(|c| c.source_cpu).collect()),
            middle(costs.iter().map(|c| c.shards_cpu).collect()),
            memory(costs)
        );
    }
    if let Some(floor) = results.get(FLOOR) {
        println!("reshard's time / the floor's: {:.2}", ours / median(floor));
    }
    println!("reshard: {:.0} MB of tables a second", loaded.bytes as f64 / 1e6 / ours);
}

/// The tables of growth.
pub fn growth(growth: &Growth) {
    let base = |rows: &[(usize, Vec<Cost>)], number: usize| {
        rows.iter().find(|(n, _)| *n == number).map_or(f64::NAN, |(_, costs)| median(costs))
    };
    println!("\n== More shards, {} workers, without the omni table, medians", crate::WORKERS);
    for ((number, costs), (_, floor)) in growth.shards.iter().zip(&growth.floor) {
        println!(
            "1 -> {number:<3} {:>8.2} s   {:>5.2} of 1 -> {fours}   worker memory {} MB   \
             floor {:>6.2} s   {:>5.2} of its 1 -> {fours}",
            median(costs),
            median(costs) / base(&growth.shards, crate::SHARDS),
            memory(costs),
            median(floor),
            median(floor) / base(&growth.floor, crate::SHARDS),
            fours = crate::SHARDS,
        );
    }
    println!("\n== More workers, 1 -> {}, medians", crate::SHARDS);
    for (number, costs) in &growth.workers {
        println!(
            "{number} workers {:>8.2} s   {:>5.2} of one worker's",
            median(costs),
            median(costs) / base(&growth.workers, 1)
        );
    }
}

fn memory(costs: &[Cost]) -> String {
    match costs.iter().map(|c| c.worker_memory).max() {
        None | Some(0) => "-".to_owned(),
        Some(bytes) => format!("{:.0}", bytes as f64 / 1e6),
    }
}

fn seconds(costs: &[Cost]) -> Vec<f64> {
    costs.iter().map(|c| c.time).map(|t: Duration| t.as_secs_f64()).collect()
}

fn median(costs: &[Cost]) -> f64 {
    middle(seconds(costs))
}

fn least(costs: &[Cost]) -> f64 {
    seconds(costs).into_iter().fold(f64::INFINITY, f64::min)
}

fn most(costs: &[Cost]) -> f64 {
    seconds(costs).into_iter().fold(0.0, f64::max)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
