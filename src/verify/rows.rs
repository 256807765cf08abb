//! The statements that read one table on one server: sums of hashes of its rows, the
//! hashes themselves, and the rows of single keys. Pure texts.
//!
//! A row counts with two 64-bit hashes of its text, which are summed up: the sums are
//! the same whatever the order, and a row that is there twice counts twice.
use crate::remote::quote::literal;
use crate::verify::shape::{hash, KeyColumn, Shape};

/// Seed of the second hash.
const SEED: i64 = 0x2545_F491_4F6C_DD1D;
/// Characters of a row without a key that are shown.
pub(super) const SHOWN: usize = 2_000;

/// A table on one server, as far as it is compared.
#[derive(Debug, Clone)]
pub(super) struct Rows<'a> {
    /// Its name, quoted.
    pub(super) relation: String,
    /// How it is compared.
    pub(super) shape: &'a Shape,
    /// The user's row filter, where only rows that it lets through are meant.
    pub(super) filter: Option<&'a str>,
    /// The rows that are meant, where the shard has others that don't move.
    pub(super) moving: Option<String>,
    /// Which of them: the chunk's, over a row `t`.
    pub(super) range: Option<String>,
    /// Whether a row `t` belongs to this shard of its own cluster.
    pub(super) placed: Option<String>,
    /// The shard of the other cluster that a row `t` belongs to.
    pub(super) target: Option<String>,
}

impl Rows<'_> {
    /// `FROM ... WHERE` with all conditions that are true of every row.
    fn scan(&self, more: Option<&str>) -> String {
        let filter = self.filter.map(|f| format!("({f})"));
        let moving = self.moving.as_deref().map(|m| format!("({m})"));
        let all: Vec<&str> = [filter.as_deref(), moving.as_deref(), self.range.as_deref(), more]
            .into_iter()
            .flatten()
            .collect();
        let condition = match all.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", all.join(" AND ")),
        };
        format!("FROM ONLY {} AS t{condition}", self.relation)
    }

    fn placed(&self) -> &str {
        self.placed.as_deref().unwrap_or("true")
    }

    /// Each row with its hashes. `OFFSET 0` keeps PostgreSQL from making the text of a
    /// row once for each of them.
    fn hashed(&self, with_key: bool) -> String {
        let key = match (self.shape.key_hash(), with_key) {
            (Some(hash), true) => hash,
            _ => "NULL::pg_catalog.int8".to_owned(),
        };
        format!(
            "SELECT {} AS h1, {} AS h2, s.k, s.placed FROM (SELECT {} AS r, {key} AS k, {} AS placed {} OFFSET 0) AS s",
            hash("s.r", 0),
            hash("s.r", SEED),
            self.shape.row_text(),
            self.placed(),
            self.scan(None),
        )
    }

    /// Number and sums of all rows: slice, rows, sum, sum, rows in the wrong place.
    /// `slices` is a power of two.
    pub(super) fn digest(&self, slices: i64) -> String {
        let slice = match slices {
            1 => "0::pg_catalog.int8".to_owned(),
            _ => format!("(coalesce(h.k, h.h1) & {})", slices - 1),
        };
        format!(
            "SELECT {slice}, count(*), sum(h.h1)::text, sum(h.h2)::text, \
             count(*) FILTER (WHERE h.placed IS NOT TRUE) FROM ({}) AS h GROUP BY 1",
            self.hashed(slices > 1)
        )
    }

    /// Each row of a slice: hash of its key or of all of it, both hashes, place.
    pub(super) fn list(&self, slices: i64, slice: i64) -> String {
        let condition = match slices {
            1 => String::new(),
            _ => format!(" WHERE (coalesce(h.k, h.h1) & {}) = {slice}", slices - 1),
        };
        format!(
            "SELECT coalesce(h.k, h.h1), h.h1, h.h2, h.placed IS TRUE FROM ({}) AS h{condition}",
            self.hashed(true)
        )
    }

    /// The keys whose hashes are in `$1`: hash, texts of the key, what is shown of it.
    pub(super) fn keys(&self) -> String {
        match (&self.shape.key, self.shape.key_hash()) {
            (Some(key), Some(key_hash)) => {
                let names: Vec<String> = (1..=key.len()).map(|n| format!("k{n}")).collect();
                let columns: Vec<String> = key
                    .iter()
                    .zip(&names)
                    .map(|(k, name)| format!("{} AS {name}", k.column.reference()))
                    .collect();
                let texts: Vec<String> =
                    names.iter().map(|name| format!("CAST(s.{name} AS text)")).collect();
                let shown: Vec<String> = key
                    .iter()
                    .zip(&names)
                    .map(|(k, name)| format!("{}, s.{name}", literal(&k.column.name)))
                    .collect();
                format!(
                    "SELECT s.k, ARRAY[{}]::text[], pg_catalog.jsonb_build_object({})::text \
                       FROM (SELECT {key_hash} AS k, {} {} OFFSET 0) AS s \
                      WHERE s.k = ANY ($1::pg_catalog.int8[])",
                    texts.join(", "),
                    shown.join(", "),
                    columns.join(", "),
                    self.scan(None)
                )
            }
            _ => format!(
                "SELECT DISTINCT ON (s.k) s.k, '{{}}'::text[], \
                        (SELECT pg_catalog.left(pg_catalog.to_jsonb(x)::text, {}) \
                           FROM ONLY {} AS x WHERE x.ctid = s.c) \
                   FROM (SELECT {} AS k, t.ctid AS c {} OFFSET 0) AS s \
                  WHERE s.k = ANY ($1::pg_catalog.int8[])",
                SHOWN + 1,
                self.relation,
                hash(&self.shape.row_text(), 0),
                self.scan(None)
            ),
        }
    }

    /// All rows of single keys (`$1` their numbers, then a list of texts for each column
    /// of the key), or of single hashes (`$1`), by the shard that they belong to:
    /// number or hash, shard, rows, rows in the wrong place, sums of hashes, and a sum
    /// that is another one when a row was written anew, with whatever values.
    pub(super) fn read(&self) -> String {
        let target = self.target.as_deref().unwrap_or("NULL::pg_catalog.int4");
        let row = format!(
            "SELECT {} AS r, {target} AS target, {} AS placed, \
                    pg_catalog.concat(t.xmin, '/', t.ctid) AS version",
            self.shape.row_text(),
            self.placed()
        );
        let sums = format!(
            "count(*), count(*) FILTER (WHERE s.placed IS NOT TRUE), sum({})::text, sum({})::text, sum({})::text",
            hash("s.r", 0),
            hash("s.r", SEED),
            hash("s.version", 0)
        );
        match &self.shape.key {
            Some(key) => format!(
                "SELECT k.nr, s.target, {sums} FROM {} CROSS JOIN LATERAL ({row} {} OFFSET 0) AS s GROUP BY 1, 2",
                wanted(key),
                self.scan(Some(&is_wanted(key)))
            ),
            None => format!(
                "SELECT {0}, s.target, {sums} FROM ({row} {1} OFFSET 0) AS s \
                  WHERE {0} = ANY ($1::pg_catalog.int8[]) GROUP BY 1, 2",
                hash("s.r", 0),
                self.scan(None)
            ),
        }
    }

    /// The hash of each column of the rows of single keys, as in [`Rows::read`]; none
    /// for a table without a key.
    pub(super) fn values(&self) -> Option<String> {
        let key = self.shape.key.as_ref()?;
        let hashes: Vec<String> = self.shape.columns.iter().map(|c| c.hash()).collect();
        Some(format!(
            "SELECT DISTINCT ON (k.nr) k.nr, s.hashes FROM {} \
             CROSS JOIN LATERAL (SELECT ARRAY[{}]::pg_catalog.int8[] AS hashes {} OFFSET 0) AS s",
            wanted(key),
            hashes.join(", "),
            self.scan(Some(&is_wanted(key)))
        ))
    }
}

fn wanted(key: &[KeyColumn]) -> String {
    let lists: Vec<String> = (2..key.len() + 2).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<String> = (1..=key.len()).map(|n| format!("k{n}")).collect();
    format!("unnest($1::pg_catalog.int8[], {}) AS k (nr, {})", lists.join(", "), names.join(", "))
}

fn is_wanted(key: &[KeyColumn]) -> String {
    let all: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(n, k)| format!("{} = CAST(k.k{} AS {})", k.column.reference(), n + 1, k.cast))
        .collect();
    all.join(" AND ")
}

/// Rows `t` whose key is above one and up to another.
pub(super) fn range(
    key: &[KeyColumn],
    after: Option<&[String]>,
    to: Option<&[String]>,
) -> Option<String> {
    let one = |operator: &str, bound: &[String]| {
        let columns: Vec<String> = key.iter().map(|k| k.column.reference()).collect();
        let values: Vec<String> = key
            .iter()
            .zip(bound)
            .map(|(k, text)| format!("CAST({} AS {})", literal(text), k.cast))
            .collect();
        match (columns.as_slice(), values.as_slice()) {
            ([column], [value]) => format!("{column} {operator} {value}"),
            _ => format!("ROW({}) {operator} ROW({})", columns.join(", "), values.join(", ")),
        }
    };
    let bounds: Vec<String> =
        [after.map(|b| one(">", b)), to.map(|b| one("<=", b))].into_iter().flatten().collect();
    match bounds.is_empty() {
        true => None,
        false => Some(bounds.join(" AND ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::verify::shape::tests::shape;

    fn rows(shape: &Shape) -> Rows<'_> {
        Rows {
            relation: "\"s\".\"T\"".into(),
            shape,
            filter: Some("id > 0"),
            moving: None,
            range: None,
            placed: None,
            target: None,
        }
    }

    #[test]
    fn ranges_leave_out_the_lower_bound_and_hold_the_upper_one() {
        let shape = shape(Some(&["a"]));
        let key = shape.key.as_ref().unwrap();
        let (low, high) = (vec!["1".to_owned()], vec!["it's".to_owned()]);
        assert_eq!(
            range(key, Some(&low), Some(&high)).unwrap(),
            "t.\"a\" > CAST('1' AS bigint) AND t.\"a\" <= CAST('it''s' AS bigint)"
        );
        assert_eq!(range(key, None, None), None);
    }

    #[test]
    fn keys_of_several_columns_are_compared_as_rows() {
        let shape = shape(Some(&["a", "b"]));
        let to = vec!["1".to_owned(), "2".to_owned()];
        assert_eq!(
            range(shape.key.as_ref().unwrap(), None, Some(&to)).unwrap(),
            "ROW(t.\"a\", t.\"b\") <= ROW(CAST('1' AS bigint), CAST('2' AS bigint))"
        );
    }

    #[test]
    fn the_users_filter_is_part_of_every_statement() {
        let (keyed, bare) = (shape(Some(&["id"])), shape(None));
        for shape in [&keyed, &bare] {
            let rows = rows(shape);
            for sql in [rows.digest(1), rows.digest(8), rows.list(1, 0), rows.keys(), rows.read()] {
                assert!(sql.contains("WHERE (id > 0)"), "{sql}");
            }
        }
        assert!(rows(&bare).values().is_none());
    }
}
