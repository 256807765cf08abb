//! The arithmetic of dividing a sequence's values among shards. Pure.
//!
//! Numbers are `i128`, so that sums near the limits of `bigint` can't overflow;
//! what goes into SQL is within the sequence's limits.

/// Values of a range at most, where each shard gets one.
const BLOCK: i128 = 1_000_000_000;

/// What a sequence hands out.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Difference between two values; never 0.
    pub increment: i64,
    /// The smallest value.
    pub minimum: i64,
    /// The largest value.
    pub maximum: i64,
    /// Whether it starts again at the end.
    pub cycle: bool,
}

/// What a sequence stands at.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// The value handed out last, or the first one to be.
    pub last: i64,
    /// Whether `last` was handed out.
    pub called: bool,
}

impl Limits {
    fn step(&self) -> i128 {
        i128::from(self.increment)
    }

    fn first(&self) -> i128 {
        i128::from(if self.increment > 0 { self.minimum } else { self.maximum })
    }

    fn last(&self) -> i128 {
        i128::from(if self.increment > 0 { self.maximum } else { self.minimum })
    }

    /// Whether `a` comes before `b`.
    pub fn is_before(&self, a: i128, b: i128) -> bool {
        if self.increment > 0 {
            a < b
        } else {
            a > b
        }
    }

    /// How many values are left from `next` on.
    fn left(&self, next: i128) -> i128 {
        match self.is_before(self.last(), next) {
            true => 0,
            false => (self.last() - next) / self.step() + 1,
        }
    }

    /// The value after a position.
    pub fn after(&self, position: Position) -> i128 {
        match position.called {
            true => i128::from(position.last) + self.step(),
            false => i128::from(position.last),
        }
    }

    /// The first value after all these positions, with a margin: so many values are
    /// left out, but never more than a small part of those that are left. Beyond
    /// the limits where the sequence is exhausted; none without a position.
    pub fn next(&self, positions: impl Iterator<Item = Position>, margin: u32) -> Option<i128> {
        let next =
            positions
                .map(|p| self.after(p))
                .reduce(|a, b| if self.is_before(a, b) { b } else { a })?;
        let margin = i128::from(margin).min(self.left(next) / 64);
        Some(next + margin * self.step())
    }

    /// Whether sequences of this increment that stand at these values never hand out
    /// the same.
    pub fn are_apart(&self, lasts: &[i64]) -> bool {
        let mut classes: Vec<i128> = lasts.iter().map(|last| self.class(*last)).collect();
        classes.sort_unstable();
        classes.windows(2).all(|pair| pair[0] != pair[1])
    }

    fn class(&self, value: i64) -> i128 {
        i128::from(value).rem_euclid(self.step().abs())
    }

    /// Where sequences that stand at these values begin, at `next` or after it, so that
    /// no two hand out the same: each goes on with its own values where they are apart
    /// already; otherwise they share an increment that is a multiple of their number.
    pub fn apart(&self, next: i128, lasts: &[i64]) -> Vec<i128> {
        let (step, size) = (self.step(), self.step().abs());
        if self.are_apart(lasts) {
            let sign = step.signum();
            let wait = |last: &i64| (sign * (self.class(*last) - next)).rem_euclid(size);
            return lasts.iter().map(|last| next + sign * wait(last)).collect();
        }
        let lane = step / lasts.len().max(1) as i128;
        (0..).zip(lasts).map(|(nr, _)| next + nr * lane).collect()
    }

    /// Arguments of `setval` for a lane that begins `lane` values after `next`. An
    /// exhausted sequence fails at its next call with the server's own error, or
    /// begins again where it cycles.
    pub fn setting(&self, next: i128, lane: u32) -> (i128, bool) {
        let offset = i128::from(lane) * self.step();
        let value = next + offset;
        if !self.is_before(self.last(), value) {
            return (value, false);
        }
        match self.cycle {
            true if self.is_before(self.last(), self.first() + offset) => (self.first(), false),
            true => (self.first() + offset, false),
            false => (self.last(), true),
        }
    }
}

/// Whether sequences with these increments, at these values, never hand out the same.
pub fn all_apart(limits: &Limits, increments: &[i64], lasts: &[i64]) -> bool {
    let largest = largest(increments);
    increments.iter().all(|i| *i == largest)
        && Limits { increment: largest, ..*limits }.are_apart(lasts)
}

/// What sequences that are not apart get for limits: an increment that is a multiple of
/// their number. Those that differ were begun with, and are ended. None where it would be
/// too large.
pub fn raised(limits: &Limits, increments: &[i64]) -> Option<Limits> {
    let largest = largest(increments);
    let increment = match increments.iter().all(|i| *i == largest) {
        true => largest.checked_mul(i64::try_from(increments.len()).ok()?)?,
        false => largest,
    };
    Some(Limits { increment, ..*limits })
}

fn largest(increments: &[i64]) -> i64 {
    increments.iter().copied().max_by_key(|i| i.unsigned_abs()).unwrap_or(1)
}

/// What follows `ALTER SEQUENCE` for lane `lane` of `lanes`: every `lanes`-th value.
/// One that cycles begins again in its own lane. None where that is not possible.
pub fn lane(limits: &Limits, lanes: u32, lane: u32) -> Option<String> {
    let increment = limits.increment.checked_mul(i64::from(lanes))?;
    let first = limits.first() + i128::from(lane) * limits.step();
    if !limits.cycle || limits.is_before(limits.last(), first) {
        return Some(format!("INCREMENT BY {increment}"));
    }
    let bound = if limits.increment > 0 { "MINVALUE" } else { "MAXVALUE" };
    Some(format!("INCREMENT BY {increment} {bound} {first} START {first} RESTART {first}"))
}

/// What follows `ALTER SEQUENCE` for range `block` of `blocks`. The first range as
/// large is left to the source. None where too few values are left.
pub fn block(limits: &Limits, next: i128, blocks: u32, block: u32) -> Option<String> {
    let parts = i128::from(blocks) + 1;
    // The numbers of one that cycles come again anyway: all of its range is divided.
    let (from, parts) = if limits.cycle { (limits.first(), parts) } else { (next, 8 * parts) };
    let size = BLOCK.min(limits.left(from) / parts);
    if size < 2 {
        return None;
    }
    let first = from + (i128::from(block) + 1) * size * limits.step();
    let last = first + (size - 1) * limits.step();
    let (low, high) = if limits.increment > 0 { (first, last) } else { (last, first) };
    Some(format!(
        "INCREMENT BY {} MINVALUE {low} MAXVALUE {high} START {first} RESTART {first}",
        limits.increment
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(increment: i64, cycle: bool) -> Limits {
        Limits { increment, minimum: 1, maximum: 100, cycle }
    }

    fn at(last: i64, called: bool) -> Position {
        Position { last, called }
    }

    #[test]
    fn an_unused_sequence_starts_with_its_first_value() {
        assert_eq!(limits(1, false).after(at(1, false)), 1);
        assert_eq!(limits(1, false).after(at(7, true)), 8);
        assert_eq!(limits(-2, false).after(at(7, true)), 5);
    }

    #[test]
    fn the_next_value_is_behind_those_of_all_servers() {
        let all = [at(7, true), at(12, true), at(9, false)];
        assert_eq!(limits(1, false).next(all.into_iter(), 0), Some(13));
        assert_eq!(limits(-1, false).next(all.into_iter(), 0), Some(6));
        assert_eq!(limits(1, false).next(std::iter::empty(), 0), None);
    }

    #[test]
    fn a_margin_takes_a_small_part_of_what_is_left_at_most() {
        let wide = Limits { maximum: i64::MAX, ..limits(3, false) };
        assert_eq!(wide.next([at(1, true)].into_iter(), 1000), Some(4 + 3000));
        assert_eq!(limits(1, false).next([at(1, false)].into_iter(), 1000), Some(2));
        assert_eq!(limits(1, false).next([at(100, true)].into_iter(), 1000), Some(101));
    }

    #[test]
    fn an_exhausted_sequence_fails_at_the_next_call() {
        assert_eq!(limits(1, false).setting(101, 0), (100, true));
        assert_eq!(limits(1, false).setting(99, 3), (100, true));
        assert_eq!(limits(-1, false).setting(0, 0), (1, true));
    }

    #[test]
    fn an_exhausted_cycle_starts_again_in_its_lane() {
        assert_eq!(limits(1, true).setting(101, 2), (3, false));
        assert_eq!(limits(-1, true).setting(0, 1), (99, false));
        assert_eq!(
            lane(&limits(1, true), 4, 2).as_deref(),
            Some("INCREMENT BY 4 MINVALUE 3 START 3 RESTART 3")
        );
        assert_eq!(lane(&limits(-1, false), 4, 2).as_deref(), Some("INCREMENT BY -4"));
    }

    #[test]
    fn sequences_of_several_sources_stay_apart() {
        assert!(limits(1, false).are_apart(&[7]));
        assert!(!limits(1, false).are_apart(&[7, 8]));
        assert!(limits(2, false).are_apart(&[7, 12]));
        assert_eq!(limits(2, false).apart(21, &[7, 12]), [21, 22]);
        assert_eq!(limits(-3, false).apart(20, &[7, 12]), [19, 18]);
        // Not yet apart: the increment was raised to a multiple just now.
        assert_eq!(limits(2, false).apart(21, &[7, 9]), [21, 22]);
        assert_eq!(limits(1, false).apart(21, &[7]), [21]);
    }

    #[test]
    fn increments_are_raised_once_and_to_the_end() {
        let all = limits(1, false);
        let increment = |increments: &[i64]| raised(&all, increments).map(|l| l.increment);
        assert!(!all_apart(&all, &[1, 1], &[7, 12]));
        assert_eq!(increment(&[1, 1]), Some(2));
        assert!(all_apart(&all, &[2, 2], &[7, 8]));
        // One node was lost half-way, whatever the others stand at.
        assert!(!all_apart(&all, &[2, 1], &[7, 12]));
        assert_eq!(increment(&[2, 1]), Some(2));
        assert_eq!(increment(&[i64::MAX, i64::MAX]), None);
    }

    #[test]
    fn limits_of_bigint_do_not_overflow() {
        let all = Limits { increment: 1, minimum: i64::MIN, maximum: i64::MAX, cycle: false };
        assert_eq!(all.setting(i128::from(i64::MAX), 1), (i128::from(i64::MAX), true));
        assert_eq!(lane(&Limits { increment: i64::MAX, ..all }, 2, 0), None);
    }

    #[test]
    fn blocks_do_not_touch() {
        let wide = Limits { maximum: 32_767, ..limits(1, false) };
        // 32,367 values left for eight times three ranges.
        assert_eq!(
            block(&wide, 401, 2, 0).as_deref(),
            Some("INCREMENT BY 1 MINVALUE 1749 MAXVALUE 3096 START 1749 RESTART 1749")
        );
        assert_eq!(
            block(&wide, 401, 2, 1).as_deref(),
            Some("INCREMENT BY 1 MINVALUE 3097 MAXVALUE 4444 START 3097 RESTART 3097")
        );
        assert_eq!(block(&limits(1, false), 95, 2, 0), None);
    }
}
