//! What a run costs: time, CPU seconds of the servers, memory of copy workers.

use std::fmt;
use std::time::{Duration, Instant};

use reshard_scenarios::cluster::process::{cpu_seconds, MemoryWatch};
use reshard_scenarios::{Result, Rig, Server};

/// What one run cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the call to the last row committed.
    pub time: Duration,
    /// CPU seconds of the source, its workers and all its shards included.
    pub source_cpu: f64,
    /// CPU seconds of all shards.
    pub shards_cpu: f64,
    /// The most memory of its own that a copy worker had, in bytes. Where the source has
    /// several shards, the others copy with ordinary backends, which don't count.
    pub worker_memory: u64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s; CPU seconds: source {:.1}, shards {:.1}",
            self.time.as_secs_f64(),
            self.source_cpu,
            self.shards_cpu
        )
    }
}

/// Measures `work` on a rig: the time that it says it took, or else until it ends.
pub async fn measure<F, T>(rig: &Rig, work: F) -> Result<Cost>
where
    F: std::future::Future<Output = Result<T>>,
    T: Took,
{
    let (source, shards) = cpu(rig)?;
    let memory = MemoryWatch::start(&rig.source)?;
    let begin = Instant::now();
    let said = work.await?.took();
    let time = said.unwrap_or_else(|| begin.elapsed());
    let (source_after, shards_after) = cpu(rig)?;
    Ok(Cost {
        time,
        source_cpu: source_after - source,
        shards_cpu: shards_after - shards,
        worker_memory: memory.peak(),
    })
}

/// What a contestant may say about its time.
pub trait Took {
    /// How long it took, where it knows better than its caller.
    fn took(&self) -> Option<Duration>;
}

impl Took for () {
    fn took(&self) -> Option<Duration> {
        None
    }
}

impl Took for Duration {
    fn took(&self) -> Option<Duration> {
        Some(*self)
    }
}

/// CPU seconds so far, of all shards of the source and of all those of the destination.
fn cpu(rig: &Rig) -> Result<(f64, f64)> {
    let servers: Vec<&Server> = rig.servers().collect();
    let seconds = cpu_seconds(&servers)?;
    let (source, shards) = seconds.split_at(rig.sources().len());
    Ok((source.iter().sum(), shards.iter().sum()))
}
