//! The configuration file: pairs, then a section for each cluster with a connection
//! string for each shard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;

/// What the agent has to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// What `reshard.poolers` calls this pooler.
    pub name: String,
    /// The row of `reshard.traffic`: the name of the source cluster.
    pub traffic: String,
    /// Where the flag is read and acknowledged; without it, shard 0 of the source.
    pub coordinator: Option<String>,
    /// Connection string of PgBouncer's console.
    pub admin: String,
    /// The file that PgBouncer includes.
    pub databases: PathBuf,
    /// What the names of PgBouncer's databases begin with.
    pub prefix: String,
    /// Pause between two looks at the flag.
    pub poll: Duration,
    /// Connection strings of each cluster's shards, by number.
    pub clusters: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Config(format!("{}: {error}", path.display())))?;
        Config::parse(&text)
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Config, Error> {
        let mut settings = BTreeMap::new();
        let mut clusters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut section = None;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = Some(name.to_owned());
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
                .ok_or_else(|| Error::Config(format!("neither a pair nor a section: {line}")))?;
            match &section {
                None => {
                    settings.insert(key.to_owned(), value.to_owned());
                }
                Some(cluster) => {
                    let shards = clusters.entry(cluster.clone()).or_default();
                    if key.parse() != Ok(shards.len()) {
                        return Err(Error::Config(format!(
                            "shards of [{cluster}] must be numbered from 0 without a gap"
                        )));
                    }
                    shards.push(value.to_owned());
                }
            }
        }
        let coordinator = settings.remove("coordinator");
        let mut take = |key: &str| {
            settings.remove(key).ok_or_else(|| Error::Config(format!("\"{key}\" is missing")))
        };
        let config = Config {
            name: take("name")?,
            traffic: take("traffic")?,
            coordinator,
            admin: take("admin")?,
            databases: take("databases")?.into(),
            prefix: take("prefix")?,
            poll: Duration::from_millis(
                take("poll_ms")?.parse().map_err(|_| Error::Config("bad poll_ms".to_owned()))?,
            ),
            clusters,
        };
        if let Some(unknown) = settings.keys().next() {
            return Err(Error::Config(format!("unknown setting \"{unknown}\"")));
        }
        match config.clusters.contains_key(&config.traffic) {
            true => Ok(config),
            false => Err(Error::Config(format!("there is no section [{}]", config.traffic))),
        }
    }

    /// Where the migration is started: that shard of the source says `paused`.
    pub fn coordinator(&self) -> &str {
        let first = || self.clusters.get(&self.traffic).and_then(|shards| shards.first());
        self.coordinator.as_ref().or_else(first).map_or("", String::as_str)
    }

    /// Where all shards of the other clusters are: they know the flag too.
    pub fn shards(&self) -> impl Iterator<Item = &str> {
        self.clusters
            .iter()
            .filter(|(name, _)| **name != self.traffic)
            .flat_map(|(_, shards)| shards)
            .map(String::as_str)
    }

    /// PgBouncer's databases while `active` takes the writes: as many as the largest
    /// cluster has shards. A cluster of one shard takes them all.
    pub fn databases(&self, active: &str) -> Result<String, Error> {
        let shards = self
            .clusters
            .get(active)
            .ok_or_else(|| Error::Config(format!("there is no section [{active}]")))?;
        let most = self.clusters.values().map(Vec::len).max().unwrap_or(0);
        if shards.len() != 1 && shards.len() != most {
            return Err(Error::Config(format!(
                "cluster \"{active}\" has {} shards, but there are {most} databases",
                shards.len()
            )));
        }
        let mut text = format!("; written by reshard-pgbouncer: cluster {active}\n[databases]\n");
        for (number, shard) in shards.iter().cycle().take(most).enumerate() {
            text.push_str(&format!("{}{number} = {shard}\n", self.prefix));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_example_is_read_and_leads_all_databases_to_the_active_cluster() {
        let config = Config::parse(include_str!("../agent.conf")).unwrap();
        assert_eq!(config.poll, Duration::from_millis(10));
        assert!(config.coordinator().contains("user=pooler"));
        let without: Vec<&str> = include_str!("../agent.conf")
            .lines()
            .filter(|line| !line.starts_with("coordinator"))
            .collect();
        let without = Config::parse(&without.join("\n")).unwrap();
        assert!(without.coordinator().contains("10.0.0.1 port=5432 dbname=app user=app"));
        let before = config.databases("prod").unwrap();
        assert!(
            before.contains("app_0 = host=10.0.0.1") && before.contains("app_1 = host=10.0.0.1")
        );
        let after = config.databases("prod_sharded").unwrap();
        assert!(after.contains("app_0 = host=10.0.0.2") && after.contains("app_1 = host=10.0.0.3"));
        assert!(config.databases("other").is_err());
    }

    #[test]
    fn mistakes_are_named() {
        let text = include_str!("../agent.conf");
        let error = |text: String| Config::parse(&text).unwrap_err().to_string();
        assert!(error(text.replace("name = pgbouncer-1", "")).contains("\"name\" is missing"));
        assert!(error(text.replace("prefix", "prefixes")).contains("prefix"));
        assert!(error(text.replace("\n1 =", "\n2 =")).contains("without a gap"));
        assert!(error(text.replace("[prod]", "[other]")).contains("[prod]"));
    }
}
