//! What can be said about rows of one key from reading them on both sides while both
//! are written to. Pure.
//!
//! A round reads the subscriber, then the publisher, then waits until all that had been
//! committed on the publisher by then is applied on the subscriber, then reads the
//! subscriber and the publisher again. A row that is written anew, with whatever values,
//! is another version of it, which its transaction and its place in the table tell.
//!
//! - The subscriber's last reading is what the publisher had at one of its readings: equal.
//! - Neither side has written between its readings, and they are not the same: they
//!   differ. Between the two readings of the subscriber it passed through the state that
//!   the publisher had at its first one; since it did not change, that state would be
//!   its own.
//! - The subscriber has not written, has one row, and the key is unique: the same holds,
//!   whatever the publisher did afterwards.
//! - Otherwise nothing can be said yet.
use std::ops::AddAssign;

use crate::state::verification::Kind;

/// The rows of one key, or of one hash, that belong to one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// How many.
    pub(super) rows: i64,
    /// How many of them lie on a shard that they don't belong to.
    pub(super) misplaced: i64,
    /// Sums of their hashes.
    pub(super) sums: (i128, i128),
    /// Sum of the hashes of their versions.
    pub(super) versions: i128,
}

impl AddAssign for Group {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.misplaced += other.misplaced;
        self.sums.0 += other.sums.0;
        self.sums.1 += other.sums.1;
        self.versions += other.versions;
    }
}

impl Group {
    /// Whether both hold the same rows, whenever these were written.
    pub(super) fn equals(&self, other: &Self) -> bool {
        (self.rows, self.sums) == (other.rows, other.sums)
    }
}

/// What is known of the rows of one key on one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The shard has what it must have.
    Equal,
    /// It has not.
    Differs(Kind),
    /// They were written meanwhile.
    Open,
}

/// A side's readings before and after the wait.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Readings {
    pub(super) before: Group,
    pub(super) after: Group,
}

impl Readings {
    fn is_quiet(&self) -> bool {
        self.before == self.after
    }
}

/// Judges one round. `unique`: no two rows of the publisher have this key, and the
/// subscriber was waited for.
pub(super) fn judge(publisher: Readings, subscriber: Readings, unique: bool) -> Verdict {
    let found = subscriber.after;
    if found.misplaced == 0 && (found.equals(&publisher.before) || found.equals(&publisher.after)) {
        return Verdict::Equal;
    }
    let known =
        subscriber.is_quiet() && (publisher.is_quiet() || unique && subscriber.after.rows == 1);
    match known {
        true => Verdict::Differs(kind(&publisher.before, &found)),
        false => Verdict::Open,
    }
}

/// Judges rows that lie on a shard of their own cluster that they don't belong to.
pub(super) fn judge_place(readings: Readings) -> Verdict {
    if readings.after.misplaced == 0 {
        return Verdict::Equal;
    }
    match readings.is_quiet() {
        true => Verdict::Differs(Kind::Misplaced),
        false => Verdict::Open,
    }
}

fn kind(expected: &Group, found: &Group) -> Kind {
    if found.misplaced > 0 {
        return Kind::Misplaced;
    }
    match found.rows.cmp(&expected.rows) {
        std::cmp::Ordering::Less => Kind::Missing,
        std::cmp::Ordering::Greater => Kind::Extra,
        std::cmp::Ordering::Equal => Kind::Different,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: i128, version: i128) -> Group {
        Group { rows: 1, misplaced: 0, sums: (value, value), versions: version }
    }

    fn readings(before: Group, after: Group) -> Readings {
        Readings { before, after }
    }

    fn quiet(group: Group) -> Readings {
        readings(group, group)
    }

    const NONE: Group = Group { rows: 0, misplaced: 0, sums: (0, 0), versions: 0 };

    #[test]
    fn equal_values_are_equal_whenever_they_were_written() {
        assert_eq!(judge(quiet(row(5, 1)), quiet(row(5, 2)), true), Verdict::Equal);
        assert_eq!(
            judge(readings(row(5, 1), row(6, 2)), readings(row(4, 1), row(6, 9)), true),
            Verdict::Equal
        );
        assert_eq!(judge(quiet(NONE), quiet(NONE), false), Verdict::Equal);
    }

    #[test]
    fn quiet_sides_that_differ_differ_for_sure() {
        let differs = |p, s| judge(quiet(p), quiet(s), false);
        assert_eq!(differs(row(5, 1), row(6, 2)), Verdict::Differs(Kind::Different));
        assert_eq!(differs(row(5, 1), NONE), Verdict::Differs(Kind::Missing));
        assert_eq!(differs(NONE, row(5, 1)), Verdict::Differs(Kind::Extra));
    }

    #[test]
    fn a_row_that_is_written_on_both_sides_is_not_judged() {
        let p = readings(row(1, 1), row(2, 2));
        let s = readings(row(3, 7), row(4, 8));
        assert_eq!(judge(p, s, true), Verdict::Open);
        // Away and back again: another version of the same values.
        let p = readings(row(1, 1), row(1, 3));
        assert_eq!(judge(p, readings(row(9, 1), row(8, 2)), true), Verdict::Open);
    }

    #[test]
    fn a_stuck_row_is_found_however_hot_its_source_is() {
        let p = readings(row(1, 1), row(2, 2));
        assert_eq!(judge(p, quiet(row(9, 7)), true), Verdict::Differs(Kind::Different));
        assert_eq!(judge(p, quiet(row(9, 7)), false), Verdict::Open);
        // It may have been inserted and deleted again on the way.
        assert_eq!(judge(p, quiet(NONE), true), Verdict::Open);
    }

    #[test]
    fn rows_on_a_wrong_shard_are_misplaced() {
        let astray = Group { misplaced: 1, ..row(5, 1) };
        assert_eq!(judge(quiet(NONE), quiet(astray), true), Verdict::Differs(Kind::Misplaced));
        assert_eq!(judge_place(quiet(astray)), Verdict::Differs(Kind::Misplaced));
        assert_eq!(judge_place(readings(astray, row(5, 1))), Verdict::Equal);
        assert_eq!(judge_place(readings(astray, Group { versions: 2, ..astray })), Verdict::Open);
    }

    #[test]
    fn duplicates_are_counted() {
        let twice = Group { rows: 2, sums: (10, 10), ..row(5, 1) };
        assert_eq!(judge(quiet(twice), quiet(row(5, 1)), false), Verdict::Differs(Kind::Missing));
        assert_eq!(judge(quiet(row(5, 1)), quiet(twice), false), Verdict::Differs(Kind::Extra));
    }
}
