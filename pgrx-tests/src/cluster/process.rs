//! What the processes of a server use, as proc(5) tells it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use super::server::Server;
use crate::error::{Error, Result};

/// How often memory is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Clock ticks a second in `/proc/PID/stat`: USER_HZ is 100 on every Linux.
const TICKS_A_SECOND: f64 = 100.0;
/// How a copy worker calls itself.
const COPY_WORKER: &str = "reshard copy worker";

/// The server's first process.
///
/// # Errors
/// The server does not run.
pub fn postmaster(server: &Server) -> Result<u32> {
    let path = server.data().join("postmaster.pid");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read postmaster.pid"))?;
    text.lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .ok_or_else(|| Error::Unexpected("unreadable postmaster.pid".to_owned()))
}

/// Copy workers that run now.
///
/// # Errors
/// The server does not run.
pub fn copy_workers(server: &Server) -> Result<Vec<u32>> {
    Ok(copy_workers_of(postmaster(server)?))
}

fn copy_workers_of(postmaster: u32) -> Vec<u32> {
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    std::fs::read_to_string(children)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(COPY_WORKER))
        })
        .collect()
}

/// CPU seconds that servers have used so far, in the order of `servers`.
///
/// # Errors
/// A server does not run.
pub fn cpu_seconds(servers: &[&Server]) -> Result<Vec<f64>> {
    let processes = processes();
    servers
        .iter()
        .map(|server| {
            let postmaster = postmaster(server)?;
            Ok(processes
                .iter()
                .filter(|(pid, p)| **pid == postmaster || p.parent == postmaster)
                .map(|(pid, p)| if *pid == postmaster { p.own + p.ended_children } else { p.own })
                .sum())
        })
        .collect()
}

struct Process {
    parent: u32,
    own: f64,
    ended_children: f64,
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name is in parentheses and may hold anything.
            let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
            let number = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok());
            let seconds = |a, b| Some((number(a)? + number(b)?) / TICKS_A_SECOND);
            let parent = number(1)? as u32;
            Some((pid, Process { parent, own: seconds(11, 12)?, ended_children: seconds(13, 14)? }))
        })
        .collect()
}

/// Watches the memory of a server's copy workers until it is dropped.
#[derive(Debug)]
pub struct MemoryWatch {
    peak: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl MemoryWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The server does not run.
    pub fn start(server: &Server) -> Result<Self> {
        let postmaster = postmaster(server)?;
        let peak = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let (to, until) = (Arc::clone(&peak), Arc::clone(&ended));
        std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let largest = copy_workers_of(postmaster).into_iter().filter_map(private_memory);
                to.fetch_max(largest.max().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(TICK);
            }
        });
        Ok(Self { peak, ended })
    }

    /// The most memory of its own that any copy worker had, in bytes; shared
    /// buffers don't count.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn private_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
