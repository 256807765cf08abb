//! Mapping keys to shards, for sharding keys that are placed by list or range.
use std::collections::HashMap;

use pgrx::prelude::*;

use crate::api::argument::given;
use crate::api::{admin, shards};
use crate::cluster::Method;
use crate::error::{Error, Kind, Result};
use crate::pg::order;
use crate::pg::report::or_raise;
use crate::remote::quote::literal;
use crate::state::cluster;
use crate::state::mapping::{self, KeyType, Mapping, What};

/// Maps single keys to a shard; null stands for rows without a key.
///
/// # Errors
/// 22023 for a shard that is not declared, a key that can't be read as a value of the
/// column's type or is mapped elsewhere; 42704 where the column is no sharding key by list;
/// 55000 while a migration uses the cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_map_values(
    cluster: Option<&str>,
    column_name: Option<&str>,
    key_values: Option<Vec<Option<String>>>,
    shard: Option<i32>,
) {
    let column = Column::by(cluster, column_name, &[Method::List]);
    let what = values(given(key_values, "key_values"));
    or_raise(map(column, what, given(shard, "shard")));
}

/// Takes mappings of single keys back.
///
/// # Errors
/// 42704 where the column is no sharding key by list; 55000 while a migration uses the
/// cluster.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_unmap_values(
    cluster: Option<&str>,
    column_name: Option<&str>,
    key_values: Option<Vec<Option<String>>>,
) {
    let column = Column::by(cluster, column_name, &[Method::List]);
    or_raise(unmap(column, values(given(key_values, "key_values"))));
}

/// Maps the keys from `lower` up to, but not with, `upper` to a shard; null is no bound.
///
/// # Errors
/// As [`reshard_map_values`]; 22023 for a range that holds nothing or overlaps another.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_map_range(
    cluster: Option<&str>,
    column_name: Option<&str>,
    lower: Option<String>,
    upper: Option<String>,
    shard: Option<i32>,
) {
    let column = Column::by(cluster, column_name, &[Method::Range]);
    or_raise(map(column, range(lower, upper), given(shard, "shard")));
}

/// Takes the mapping of a range back.
///
/// # Errors
/// As [`reshard_unmap_values`].
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_unmap_range(
    cluster: Option<&str>,
    column_name: Option<&str>,
    lower: Option<String>,
    upper: Option<String>,
) {
    let column = Column::by(cluster, column_name, &[Method::Range]);
    or_raise(unmap(column, range(lower, upper)));
}

/// Says which shard has all keys that nothing else is said about, null among them.
///
/// # Errors
/// As [`reshard_map_values`].
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_map_default(cluster: Option<&str>, column_name: Option<&str>, shard: Option<i32>) {
    let column = Column::by(cluster, column_name, &[Method::List, Method::Range]);
    or_raise(map(column, vec![What::Default], given(shard, "shard")));
}

/// Takes the default back: other keys have no shard.
///
/// # Errors
/// As [`reshard_unmap_values`].
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn reshard_unmap_default(cluster: Option<&str>, column_name: Option<&str>) {
    let column = Column::by(cluster, column_name, &[Method::List, Method::Range]);
    or_raise(unmap(column, vec![What::Default]));
}

/// The column that keys are mapped of.
#[derive(Clone, Copy)]
struct Column<'a> {
    cluster: &'a str,
    name: &'a str,
    /// It must be a sharding key by one of these.
    methods: &'a [Method],
}

impl<'a> Column<'a> {
    fn by(cluster: Option<&'a str>, name: Option<&'a str>, methods: &'a [Method]) -> Self {
        Self { cluster: given(cluster, "cluster"), name: given(name, "column_name"), methods }
    }
}

fn values(keys: Vec<Option<String>>) -> Vec<What> {
    keys.into_iter().map(|key| key.map_or(What::Null, |value| What::Value { value })).collect()
}

fn range(lower_bound: Option<String>, upper_bound: Option<String>) -> Vec<What> {
    vec![What::Range { lower_bound, upper_bound }]
}

fn map(column: Column<'_>, what: Vec<What>, shard: i32) -> Result<()> {
    let Column { cluster: name, name: column, methods } = column;
    admin::require()?;
    shards::refuse_while_used(name)?;
    let shard = declared(name, shard)?;
    let method = method_of(name, column, methods)?;
    let types = mapping::types(name, column)?;
    if what.is_empty() {
        return Err(Error::argument("no key is given").hint("Give an array of keys, '{a,b}'."));
    }
    let mut all = mapping::load(name, column)?;
    let mut known: HashMap<What, u32> = all.iter().map(|m| (m.what.clone(), m.shard)).collect();
    let before = all.len();
    for what in readable(column, &types, what)? {
        match known.get(&what) {
            Some(existing) if *existing == shard => {}
            Some(existing) => return Err(mapped_already(&what, *existing)),
            None => {
                known.insert(what.clone(), shard);
                all.push(Mapping { what, shard });
            }
        }
    }
    check(&types, method, &all)?;
    mapping::insert(name, column, &all[before..])?;
    if all.len() == before {
        notice!("they are mapped to shard {shard} of cluster \"{name}\" already");
    }
    Ok(())
}

fn unmap(column: Column<'_>, what: Vec<What>) -> Result<()> {
    let Column { cluster: name, name: column, methods } = column;
    admin::require()?;
    shards::refuse_while_used(name)?;
    method_of(name, column, methods)?;
    let types = mapping::types(name, column)?;
    for what in what {
        // As it was typed when the column had no type, or several; then as its type has it.
        let as_typed = mapping::delete(name, column, &what)?;
        let as_kept = match kept(&types, &what)? {
            Some(kept) if kept != what => mapping::delete(name, column, &kept)?,
            _ => false,
        };
        if !as_typed && !as_kept {
            notice!("{} of column \"{column}\" is not mapped", shown(&what));
        }
    }
    Ok(())
}

/// The form that is kept where the column has one type; none where it has not, or the texts
/// can't be read as that.
fn kept(types: &[KeyType], what: &What) -> Result<Option<What>> {
    let [key_type] = types else { return Ok(None) };
    let read = mapping::read(&texts_of(what), key_type.oid)?;
    if read.iter().any(|r| r.error.is_some()) {
        return Ok(None);
    }
    Ok(Some(in_form(what.clone(), &mut read.into_iter().filter_map(|r| r.key))))
}

/// The number of a declared shard.
fn declared(name: &str, shard: i32) -> Result<u32> {
    let shards: Vec<u32> = cluster::endpoints(name)?.iter().map(|e| e.shard).collect();
    match u32::try_from(shard) {
        Ok(number) if shards.contains(&number) => Ok(number),
        _ => Err(Error::argument(format!("cluster \"{name}\" has no shard {shard}"))
            .detail(match shards.as_slice() {
                [] => "No shard of it is declared.".to_owned(),
                numbers => {
                    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                    format!("Its shards are {}.", numbers.join(", "))
                }
            })
            .hint(format!(
                "Declare it first: SELECT reshard_add_shard({}, {shard}, 'host=... dbname=...');",
                literal(name)
            ))),
    }
}

/// How a column is placed, which must be one of these methods.
fn method_of(name: &str, column: &str, wanted: &[Method]) -> Result<Method> {
    let rules = cluster::rules(name)?;
    let of_column = || rules.iter().filter(|r| r.key().single() == Some(column));
    if let Some(rule) = of_column().find(|r| wanted.contains(&r.method)) {
        return Ok(rule.method);
    }
    let method = wanted.first().map_or("list", |m| m.as_str());
    let error = Error::missing(format!(
        "column \"{column}\" is no sharding key of cluster \"{name}\" by {method}{}",
        if wanted.len() > 1 { " or range" } else { "" }
    ));
    Err(match of_column().next() {
        Some(other) => error
            .detail(format!("It is one by {}.", other.method.as_str()))
            .hint("Keys are mapped one by one with method list, by ranges with method range."),
        None => error.hint(format!(
            "Declare it first: SELECT reshard_set_sharding_key({}, {}, '{method}');",
            literal(name),
            literal(column)
        )),
    })
}

/// Keys as they are kept: where the column has one type, in a form that is read in the
/// same way everywhere. Of several types one at least must be able to read them.
fn readable(column: &str, types: &[KeyType], what: Vec<What>) -> Result<Vec<What>> {
    let texts: Vec<&str> = what.iter().flat_map(texts_of).collect();
    let mut first = None;
    for key_type in types {
        let read = mapping::read(&texts, key_type.oid)?;
        let wrong = texts.iter().zip(&read).find_map(|(t, r)| Some((*t, r.error.as_ref()?)));
        match wrong {
            Some((text, error)) => {
                first.get_or_insert_with(|| unreadable(column, text, &key_type.name, error));
            }
            None if types.len() > 1 => return Ok(what),
            None => {
                let mut keys = read.into_iter().filter_map(|r| r.key);
                return Ok(what.into_iter().map(|w| in_form(w, &mut keys)).collect());
            }
        }
    }
    match first {
        Some(error) => Err(error),
        None => Ok(what),
    }
}

fn unreadable(column: &str, text: &str, type_name: &str, error: &str) -> Error {
    Error::argument(format!("{} can't be read as a value of column \"{column}\"", literal(text)))
        .detail(format!("The column is of type {type_name}: {error}."))
        .hint("Give keys as the column's type writes them.")
}

fn texts_of(what: &What) -> Vec<&str> {
    match what {
        What::Value { value } => vec![value],
        What::Range { lower_bound, upper_bound } => {
            lower_bound.iter().chain(upper_bound).map(String::as_str).collect()
        }
        What::Null | What::Default => Vec::new(),
    }
}

/// The same with texts of another form, in the order of [`texts_of`].
fn in_form(what: What, keys: &mut impl Iterator<Item = String>) -> What {
    let mut next = |text: String| keys.next().unwrap_or(text);
    match what {
        What::Value { value } => What::Value { value: next(value) },
        What::Range { lower_bound, upper_bound } => What::Range {
            lower_bound: lower_bound.map(&mut next),
            upper_bound: upper_bound.map(&mut next),
        },
        other => other,
    }
}

/// Mappings don't contradict each other. Of several types that the column has, one at least
/// must find nothing wrong; preflight looks at the published ones.
fn check(types: &[KeyType], method: Method, all: &[Mapping]) -> Result<()> {
    let map = mapping::map_of(method, all);
    let texts: Vec<&str> = all.iter().flat_map(|m| texts_of(&m.what)).collect();
    let mut first = None;
    for key_type in types {
        if mapping::read(&texts, key_type.oid)?.iter().any(|r| r.error.is_some()) {
            continue;
        }
        match order::check(&map, key_type.oid, key_type.collation) {
            Ok(()) => return Ok(()),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

fn mapped_already(what: &What, shard: u32) -> Error {
    let verb = match what {
        What::Value { .. } | What::Null => "reshard_unmap_values",
        What::Range { .. } => "reshard_unmap_range",
        What::Default => "reshard_unmap_default",
    };
    Error::new(Kind::DuplicateObject, format!("{} is mapped to shard {shard} already", shown(what)))
        .hint(format!("Take that back first, with {verb}()."))
}

fn shown(what: &What) -> String {
    let bound = |b: &Option<String>| b.as_ref().map_or("unbounded".to_owned(), |b| literal(b));
    match what {
        What::Value { value } => format!("key {}", literal(value)),
        What::Null => "key NULL".to_owned(),
        What::Range { lower_bound, upper_bound } => {
            format!("range [{}, {})", bound(lower_bound), bound(upper_bound))
        }
        What::Default => "the default".to_owned(),
    }
}
