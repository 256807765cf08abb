//! Compares one chunk of one table: by sums first, then, where these are not the same,
//! row by row, until each row is known to be equal or not, or keeps changing.
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::future::try_join_all;

use crate::cluster::ShardNo;
use crate::error::Result;
use crate::state::flow::Flow;
use crate::state::verification::{Difference, Findings, Kind, KEPT};
use crate::verify::reading::{self, Digest, Digests, Item, Party, Reading};
use crate::verify::shape::Shape;
use crate::verify::timeline::Timeline;
use crate::verify::verdict::{judge, judge_place, Readings, Verdict};

/// Rows whose hashes are held in memory at a time.
const SLICE: i64 = 250_000;
/// Rows that are looked at one by one at a time.
const BATCH: usize = 200;
/// How often rows are read again before they count as in flux.
const ROUNDS: u32 = 12;
/// Pause before they are read again; doubles at each round, up to a second.
const PAUSE: Duration = Duration::from_millis(10);
/// Rounds in which rows must differ that no flow brings to the other side, and the
/// pause between these.
const STREAK: u32 = 4;
const UNFLOWN_PAUSE: Duration = Duration::from_millis(500);

/// Sides that must hold the same rows.
pub(super) struct Comparison<'a> {
    /// Where they are written.
    pub(super) publishers: Vec<Party<'a>>,
    /// Where they must be, too.
    pub(super) subscribers: Vec<Party<'a>>,
    /// What brings them there; none between copies of one table in one cluster.
    pub(super) flows: &'a [Flow],
    /// Each subscriber has a part of the rows, not all.
    pub(super) spread: bool,
    /// How the table is compared.
    pub(super) shape: &'a Shape,
    /// Knows what is live, and waits for flows.
    pub(super) timeline: &'a Timeline<'a>,
}

impl Comparison<'_> {
    /// Compares, where the sums that the servers gave first are not the same.
    ///
    /// # Errors
    /// The servers'; 40001 where traffic was switched meanwhile; 55P03 where changes don't
    /// arrive.
    pub(super) async fn run(
        &self,
        publishers: &[Digests],
        subscribers: &[Digests],
        found: &mut Findings,
    ) -> Result<()> {
        let (here, there) = (reading::total(publishers), reading::total(subscribers));
        if is_equal(here.get(&0), there.get(&0)) {
            return Ok(());
        }
        let most = [&here, &there].into_iter().filter_map(|d| d.get(&0)).map(|d| d.rows).max();
        let slices = slices(most.unwrap_or(0));
        for slice in self.bad_slices(slices).await? {
            let mut hashes =
                reading::candidates(&self.publishers, &self.subscribers, slices, slice).await?;
            if hashes.len() > BATCH {
                // Most of them are under way: fewer are left once they have arrived.
                self.timeline.catch_up(self.flows).await?;
                hashes =
                    reading::candidates(&self.publishers, &self.subscribers, slices, slice).await?;
            }
            for batch in hashes.chunks(BATCH) {
                self.settle(batch, found).await?;
            }
        }
        Ok(())
    }

    async fn digests(&self, parties: &[Party<'_>], slices: i64) -> Result<Vec<Digests>> {
        try_join_all(parties.iter().map(|party| reading::digests(party, slices))).await
    }

    async fn bad_slices(&self, slices: i64) -> Result<Vec<i64>> {
        if slices == 1 {
            return Ok(vec![0]);
        }
        let (publishers, subscribers) = futures::try_join!(
            self.digests(&self.publishers, slices),
            self.digests(&self.subscribers, slices)
        )?;
        let (here, there) = (reading::total(&publishers), reading::total(&subscribers));
        Ok((0..slices).filter(|slice| !is_equal(here.get(slice), there.get(slice))).collect())
    }

    /// Looks at single rows until all is known of them.
    async fn settle(&self, hashes: &[i64], found: &mut Findings) -> Result<()> {
        let all: Vec<&Party<'_>> = self.publishers.iter().chain(&self.subscribers).collect();
        let items = reading::items(&all, hashes).await?;
        let mut open: Vec<&Item> = items.iter().collect();
        let mut streaks: HashMap<i64, u32> = HashMap::new();
        let mut known: Vec<(&Item, Vec<Located>)> = Vec::new();
        let mut before = self.look(&open).await?;
        let mut last: BTreeMap<i64, Vec<(Located, Verdict)>> = BTreeMap::new();
        for round in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            self.pause(round).await?;
            let after = self.look(&open).await?;
            self.timeline.refuse_switched()?;
            let mut still_open = Vec::new();
            for item in open {
                let verdicts = self.judge(item, &before, &after);
                let differs = differing(&verdicts);
                let is_known = verdicts.iter().all(|(_, v)| *v != Verdict::Open);
                let streak = streaks.entry(item.id).or_default();
                *streak = if is_known && !differs.is_empty() { *streak + 1 } else { 0 };
                let enough = !self.flows.is_empty() || *streak >= STREAK;
                if is_known && (differs.is_empty() || enough) {
                    known.push((item, differs));
                } else {
                    last.insert(item.id, verdicts);
                    still_open.push(item);
                }
            }
            open = still_open;
            before = after;
        }
        let (mut differ, mut in_flux) = (Vec::new(), Vec::new());
        for (item, places) in known {
            differ.extend(places.into_iter().map(|place| (item, place)));
        }
        for item in open {
            for (place, verdict) in last.remove(&item.id).unwrap_or_default() {
                match verdict {
                    Verdict::Differs(_) if !self.flows.is_empty() => differ.push((item, place)),
                    Verdict::Equal => {}
                    _ => in_flux.push((item, Located { kind: Kind::InFlux, ..place })),
                }
            }
        }
        found.differences += differ.len() as i64;
        found.in_flux += in_flux.len() as i64;
        if (found.kept.len() as i64) < KEPT {
            let columns = self.columns(&differ).await?;
            for (item, place) in differ.into_iter().chain(in_flux) {
                let columns = columns.get(&(item.id, place.shard)).cloned();
                found.kept.push(self.difference(item, &place, columns));
            }
        }
        Ok(())
    }

    async fn pause(&self, round: u32) -> Result<()> {
        if self.flows.is_empty() {
            tokio::time::sleep(UNFLOWN_PAUSE).await;
            return Ok(());
        }
        if round > 0 {
            tokio::time::sleep((PAUSE * 2_u32.pow(round.min(8))).min(Duration::from_secs(1))).await;
        }
        self.timeline.catch_up(self.flows).await
    }

    /// Reads the subscribers, then the publishers.
    async fn look(&self, items: &[&Item]) -> Result<(Reading, Reading)> {
        if items.is_empty() {
            return Ok((Reading::default(), Reading::default()));
        }
        let subscriber = reading::read(&self.subscribers, items, true).await?;
        let publisher = reading::read(&self.publishers, items, false).await?;
        Ok((publisher, subscriber))
    }

    fn judge(
        &self,
        item: &Item,
        before: &(Reading, Reading),
        after: &(Reading, Reading),
    ) -> Vec<(Located, Verdict)> {
        let unique =
            self.shape.key.is_some() && self.publishers.len() == 1 && !self.flows.is_empty();
        let mut out = Vec::new();
        for party in &self.subscribers {
            let shard = party.server.shard;
            let target = self.spread.then_some(shard.0);
            let publisher = Readings {
                before: before.0.group(item.id, target),
                after: after.0.group(item.id, target),
            };
            let subscriber = Readings {
                before: before.1.group(item.id, Some(shard.0)),
                after: after.1.group(item.id, Some(shard.0)),
            };
            let verdict = judge(publisher, subscriber, unique);
            out.push((Located::new(verdict, false, Some(shard)), verdict));
        }
        for party in &self.publishers {
            let shard = party.server.shard;
            let stray = Readings {
                before: before.0.stray(item.id, shard.0),
                after: after.0.stray(item.id, shard.0),
            };
            let verdict = judge_place(stray);
            if verdict != Verdict::Equal {
                out.push((Located::new(verdict, true, Some(shard)), verdict));
            }
        }
        if self.spread {
            // A row that no shard takes is missing everywhere.
            let nowhere = Readings {
                before: before.0.group(item.id, None),
                after: after.0.group(item.id, None),
            };
            if nowhere.after.rows > 0 {
                let verdict = judge(nowhere, Readings::default(), false);
                out.push((Located::new(verdict, false, None), verdict));
            }
        }
        out
    }

    /// Which columns differ, of rows that both sides have.
    async fn columns(
        &self,
        differ: &[(&Item, Located)],
    ) -> Result<HashMap<(i64, Option<ShardNo>), Vec<String>>> {
        let different: Vec<(&Item, ShardNo)> = differ
            .iter()
            .filter(|(_, place)| place.kind == Kind::Different)
            .filter_map(|(item, place)| Some((*item, place.shard?)))
            .collect();
        let mut out = HashMap::new();
        if different.is_empty() || self.shape.key.is_none() {
            return Ok(out);
        }
        let items: Vec<&Item> = different.iter().map(|(item, _)| *item).collect();
        let here = reading::values(&self.publishers, &items).await?;
        let there = reading::values(&self.subscribers, &items).await?;
        for (item, shard) in different {
            let mine = here.iter().find(|((id, _), _)| *id == item.id).map(|(_, hashes)| hashes);
            let (Some(mine), Some(other)) = (mine, there.get(&(item.id, shard))) else { continue };
            let names = self
                .shape
                .columns
                .iter()
                .zip(mine.iter().zip(other))
                .filter(|(_, (mine, other))| mine != other)
                .map(|(column, _)| column.name.clone())
                .collect();
            out.insert((item.id, Some(shard)), names);
        }
        Ok(out)
    }

    fn difference(&self, item: &Item, place: &Located, columns: Option<Vec<String>>) -> Difference {
        let parties = if place.at_publisher { &self.publishers } else { &self.subscribers };
        Difference {
            kind: place.kind,
            cluster: parties.first().map_or_else(String::new, |p| p.server.cluster.clone()),
            shard: place.shard.map(ShardNo::as_i32),
            key: item.shown.clone(),
            columns: columns.filter(|c| !c.is_empty()),
        }
    }
}

/// Where rows differ, and how.
#[derive(Debug, Clone, Copy)]
struct Located {
    kind: Kind,
    at_publisher: bool,
    shard: Option<ShardNo>,
}

impl Located {
    fn new(verdict: Verdict, at_publisher: bool, shard: Option<ShardNo>) -> Self {
        let kind = match verdict {
            Verdict::Differs(kind) => kind,
            Verdict::Equal | Verdict::Open => Kind::InFlux,
        };
        Self { kind, at_publisher, shard }
    }
}

fn differing(verdicts: &[(Located, Verdict)]) -> Vec<Located> {
    verdicts
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Differs(_)))
        .map(|(place, _)| *place)
        .collect()
}

/// Whether both sides have the same rows, all in their places.
fn is_equal(here: Option<&Digest>, there: Option<&Digest>) -> bool {
    let (here, there) = (here.copied().unwrap_or_default(), there.copied().unwrap_or_default());
    here == there && here.misplaced == 0
}

/// The number of slices, a power of two, in which that many rows are listed.
fn slices(rows: i64) -> i64 {
    let wanted = u64::try_from(rows / SLICE + 1).unwrap_or(1).next_power_of_two();
    i64::try_from(wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_powers_of_two_that_fit_into_memory() {
        assert_eq!(slices(0), 1);
        assert_eq!(slices(SLICE - 1), 1);
        assert_eq!(slices(SLICE), 2);
        assert_eq!(slices(5 * SLICE), 8);
    }

    #[test]
    fn a_misplaced_row_is_never_equal() {
        let digest = Digest { rows: 1, sums: (1, 1), misplaced: 1 };
        assert!(!is_equal(Some(&digest), Some(&digest)));
        assert!(is_equal(None, Some(&Digest::default())));
    }
}
