//! SQL on the local database, through SPI, inside of the current transaction.
//!
//! Rows come back as JSON objects and are read with serde, so that a state row
//! is one struct and no column is picked apart by hand.
use pgrx::datum::DatumWithOid;
use pgrx::spi::SpiTupleTable;
use pgrx::{FromDatum, IntoDatum, JsonB, Spi};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A parameter of a statement.
#[derive(Debug, Clone)]
pub enum Arg<'a> {
    /// `bigint`
    I64(i64),
    /// `bigint`, maybe null
    OptI64(Option<i64>),
    /// `integer`
    I32(i32),
    /// `boolean`
    Bool(bool),
    /// `double precision`
    F64(f64),
    /// `double precision`, maybe null
    OptF64(Option<f64>),
    /// `text`
    Text(&'a str),
    /// `text`, maybe null
    OptText(Option<&'a str>),
    /// `text[]`
    Texts(Vec<String>),
    /// `jsonb`
    Json(serde_json::Value),
}

impl Arg<'_> {
    fn datum(&self) -> DatumWithOid<'_> {
        match self {
            Arg::I64(v) => (*v).into(),
            Arg::OptI64(v) => (*v).into(),
            Arg::I32(v) => (*v).into(),
            Arg::Bool(v) => (*v).into(),
            Arg::F64(v) => (*v).into(),
            Arg::OptF64(v) => (*v).into(),
            Arg::Text(v) => (*v).into(),
            Arg::OptText(v) => (*v).into(),
            Arg::Texts(v) => v.clone().into(),
            Arg::Json(v) => JsonB(v.clone()).into(),
        }
    }
}

/// Runs a statement and returns the number of rows it touched.
///
/// # Errors
/// SPI's own; an ERROR of the server is raised, not returned.
pub fn execute(sql: &str, args: &[Arg<'_>]) -> Result<u64> {
    let datums: Vec<DatumWithOid<'_>> = args.iter().map(Arg::datum).collect();
    Spi::connect_mut(|client| Ok(client.update(sql, None, &datums)?.len() as u64))
}

/// Runs a statement without parameters.
///
/// # Errors
/// As [`execute`].
pub fn run(sql: &str) -> Result<()> {
    execute(sql, &[]).map(|_| ())
}

/// Runs a statement and hands its rows to `read`.
///
/// A statement that only reads goes through SPI's read-only way: the other one
/// gives the transaction a number, which makes it one that others wait for, and
/// whose commit writes WAL.
fn query<T>(
    sql: &str,
    args: &[Arg<'_>],
    limit: Option<i64>,
    read: impl FnOnce(SpiTupleTable<'_>) -> Result<T>,
) -> Result<T> {
    let datums: Vec<DatumWithOid<'_>> = args.iter().map(Arg::datum).collect();
    if sql.starts_with("SELECT") && !sql.contains("FOR UPDATE") {
        Spi::connect(|client| read(client.select(sql, limit, &datums)?))
    } else {
        Spi::connect_mut(|client| read(client.update(sql, limit, &datums)?))
    }
}

/// All rows of `SELECT to_jsonb(...)`-shaped queries: each row's first column
/// must be `jsonb`; statements that write are allowed (`RETURNING to_jsonb(t)`).
///
/// # Errors
/// As [`execute`], or a row that does not fit `T`.
pub fn rows<T: DeserializeOwned>(sql: &str, args: &[Arg<'_>]) -> Result<Vec<T>> {
    query(sql, args, None, |table| {
        let mut out = Vec::with_capacity(table.len());
        for row in table {
            let json: JsonB = row.get(1)?.ok_or_else(|| Error::internal("a state row is null"))?;
            out.push(serde_json::from_value(json.0)?);
        }
        Ok(out)
    })
}

/// The first row of [`rows`], if any.
///
/// # Errors
/// As [`rows`].
pub fn row<T: DeserializeOwned>(sql: &str, args: &[Arg<'_>]) -> Result<Option<T>> {
    Ok(rows(sql, args)?.into_iter().next())
}

/// The first column of the first row; none without a row or where it is null.
fn first<T: FromDatum + IntoDatum>(sql: &str, args: &[Arg<'_>]) -> Result<Option<T>> {
    query(sql, args, Some(1), |table| match table.is_empty() {
        true => Ok(None),
        false => Ok(table.first().get_one::<T>()?),
    })
}

/// The first column of the first row as `text`; none without a row or where it is null.
///
/// # Errors
/// As [`execute`].
pub fn text(sql: &str, args: &[Arg<'_>]) -> Result<Option<String>> {
    first(sql, args)
}

/// The first column of the first row as `bigint`.
///
/// # Errors
/// As [`execute`].
pub fn bigint(sql: &str, args: &[Arg<'_>]) -> Result<Option<i64>> {
    first(sql, args)
}

/// The first column of the first row as `boolean`; false without a row.
///
/// # Errors
/// As [`execute`].
pub fn truth(sql: &str, args: &[Arg<'_>]) -> Result<bool> {
    Ok(first(sql, args)?.unwrap_or(false))
}
