//! Reads a range of a table's blocks under the active snapshot, row by row, in
//! this process: no copy of a row is made before it is encoded.
//!
//! Without a row filter the table access method is asked directly, with its ring
//! buffer allowed, so that a copy does not push the application's pages out of
//! shared buffers. With one, the executor runs the query.
use std::ffi::{CStr, CString};
use std::marker::PhantomData;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::{pg_sys, Spi};

use crate::error::{Error, Result};

// Called inside of one guard per row; pgrx's own binding would add a second one.
unsafe extern "C-unwind" {
    fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, attnum: i32);
}

/// A column as it lies in a slot.
#[derive(Debug, Clone, Copy)]
pub struct Attribute {
    /// Position in the slot, from 0.
    pub index: usize,
    /// Its type.
    pub type_oid: pg_sys::Oid,
    /// Its collation.
    pub collation: pg_sys::Oid,
}

/// A table that can't be dropped, truncated or rewritten while this lives:
/// opened with ACCESS SHARE, which is held to the end of the transaction.
pub struct Table {
    relation: pg_sys::Relation,
}

impl Drop for Table {
    fn drop(&mut self) {
        // While an error is on its way, the transaction's abort closes the relation.
        if !std::thread::panicking() {
            unsafe { pg_sys::relation_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}

impl Table {
    /// Opens a table; `None` where it is gone.
    pub fn open(oid: u32) -> Option<Self> {
        let relation = unsafe {
            pg_sys::try_relation_open(pg_sys::Oid::from(oid), pg_sys::AccessShareLock as i32)
        };
        if relation.is_null() {
            None
        } else {
            Some(Self { relation })
        }
    }

    /// The number of its file now: changes with TRUNCATE and every rewrite.
    pub fn filenode(&self) -> u32 {
        unsafe { (*(*self.relation).rd_rel).relfilenode.to_u32() }
    }

    /// The column of that name, as it lies in a slot of the table itself.
    pub fn attribute(&self, name: &str) -> Option<Attribute> {
        let descriptor = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*self.relation).rd_att) };
        let found = descriptor.iter().enumerate().find_map(|(index, attribute)| {
            (!attribute.is_dropped() && attribute.name() == name).then_some(Attribute {
                index,
                type_oid: attribute.atttypid,
                collation: attribute.attcollation,
            })
        });
        found
    }

    fn has_range_scan(&self) -> bool {
        unsafe {
            let am = (*self.relation).rd_tableam;
            !am.is_null()
                && (*am).scan_set_tidrange.is_some()
                && (*am).scan_getnextslot_tidrange.is_some()
        }
    }
}

/// Blocks of a table: `[from, to)`, to the end where `to` is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The first block.
    pub from: u32,
    /// The first block that does not belong any more.
    pub to: Option<u32>,
}

/// The row at which a scan stands.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    slot: *mut pg_sys::TupleTableSlot,
    /// Where its ctid lies among the columns; `None` where the slot knows it itself.
    ctid: Option<usize>,
    scan: PhantomData<&'a ()>,
}

impl Row<'_> {
    /// The value of a column; `None` for null.
    #[inline]
    pub fn datum(&self, index: usize) -> Option<pg_sys::Datum> {
        unsafe {
            if *(*self.slot).tts_isnull.add(index) {
                None
            } else {
                Some(*(*self.slot).tts_values.add(index))
            }
        }
    }

    /// The block that the row lies in.
    #[inline]
    pub fn block(&self) -> u32 {
        let tid = unsafe {
            match self.ctid {
                None => (*self.slot).tts_tid,
                Some(index) => *(*(*self.slot).tts_values.add(index)).cast_mut_ptr(),
            }
        };
        (u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo)
    }
}

enum Source {
    Table {
        scan: pg_sys::TableScanDesc,
        slot: *mut pg_sys::TupleTableSlot,
        next: unsafe extern "C-unwind" fn(
            pg_sys::TableScanDesc,
            pg_sys::ScanDirection::Type,
            *mut pg_sys::TupleTableSlot,
        ) -> bool,
    },
    Query {
        plan: pg_sys::SPIPlanPtr,
        cached: *mut pg_sys::CachedPlan,
        query: *mut pg_sys::QueryDesc,
    },
}

/// A scan that has begun. Ended by [`Scan::end`]; after an error the
/// transaction's abort cleans up.
pub struct Scan {
    source: Source,
    attributes: Vec<Attribute>,
    ctid: Option<usize>,
    natts: i32,
}

impl Scan {
    /// Begins a scan of `columns` over `blocks`, of the rows that `filter` lets
    /// through. The active snapshot must stay active until the end.
    ///
    /// # Errors
    /// 55000 where a column is gone; the server's where the filter is not valid.
    pub fn begin(
        table: &Table,
        name: &str,
        columns: &[String],
        blocks: Blocks,
        filter: Option<&str>,
    ) -> Result<Self> {
        let mut attributes = Vec::with_capacity(columns.len());
        for column in columns {
            attributes.push(table.attribute(column).ok_or_else(|| {
                Error::state(format!("column \"{column}\" of table {name} is gone"))
                    .hint("Don't drop or rename columns of published tables while they are copied.")
            })?);
        }
        if filter.is_some() || !table.has_range_scan() {
            for (index, attribute) in attributes.iter_mut().enumerate() {
                attribute.index = index;
            }
            let ctid = attributes.len();
            let source = begin_query(&range_query(name, columns, blocks, filter))?;
            return Ok(Self { source, attributes, ctid: Some(ctid), natts: ctid as i32 + 1 });
        }
        let natts = attributes.iter().map(|a| a.index as i32 + 1).max().unwrap_or(0);
        Ok(Self { source: begin_table(table, blocks)?, attributes, ctid: None, natts })
    }

    /// Where the columns lie in each row, in the order in which they were named.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The next row, or `None` at the end.
    #[inline]
    pub fn next(&mut self) -> Option<Row<'_>> {
        let natts = self.natts;
        let slot = match self.source {
            Source::Table { scan, slot, next } => unsafe {
                pg_guard_ffi_boundary(|| {
                    if !next(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                        return std::ptr::null_mut();
                    }
                    deform(slot, natts);
                    slot
                })
            },
            Source::Query { query, .. } => unsafe {
                pg_guard_ffi_boundary(|| {
                    let node = (*query).planstate;
                    let Some(next) = (*node).ExecProcNode else {
                        return std::ptr::null_mut();
                    };
                    let slot = next(node);
                    // TupIsNull of src/include/executor/tuptable.h
                    if slot.is_null() || (*slot).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 != 0 {
                        return std::ptr::null_mut();
                    }
                    deform(slot, natts);
                    slot
                })
            },
        };
        if slot.is_null() {
            None
        } else {
            Some(Row { slot, ctid: self.ctid, scan: PhantomData })
        }
    }

    /// Ends the scan and gives its resources back.
    pub fn end(self) {
        match self.source {
            Source::Table { scan, slot, .. } => unsafe {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
                let end = (*(*(*scan).rs_rd).rd_tableam).scan_end;
                if let Some(end) = end {
                    pg_guard_ffi_boundary(|| end(scan));
                }
            },
            Source::Query { plan, cached, query } => unsafe {
                pg_sys::ExecutorFinish(query);
                pg_sys::ExecutorEnd(query);
                pg_sys::FreeQueryDesc(query);
                pg_sys::ReleaseCachedPlan(cached, pg_sys::CurrentResourceOwner);
                pg_sys::SPI_freeplan(plan);
            },
        }
    }
}

/// `slot_getsomeattrs` of src/include/executor/tuptable.h.
#[inline(always)]
unsafe fn deform(slot: *mut pg_sys::TupleTableSlot, natts: i32) {
    unsafe {
        if i32::from((*slot).tts_nvalid) < natts {
            slot_getsomeattrs_int(slot, natts);
        }
    }
}

fn begin_table(table: &Table, blocks: Blocks) -> Result<Source> {
    let am = unsafe { (*table.relation).rd_tableam };
    let (begin, set_range, next) = unsafe {
        match ((*am).scan_begin, (*am).scan_set_tidrange, (*am).scan_getnextslot_tidrange) {
            (Some(begin), Some(set_range), Some(next)) => (begin, set_range, next),
            _ => return Err(Error::internal("table access method without range scans")),
        }
    };
    let mut low = tid(blocks.from, 0);
    let mut high = match blocks.to {
        Some(to) => tid(to.saturating_sub(1), u16::MAX),
        None => tid(pg_sys::InvalidBlockNumber - 1, u16::MAX),
    };
    let flags = pg_sys::ScanOptions::SO_TYPE_TIDRANGESCAN
        | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE
        | pg_sys::ScanOptions::SO_ALLOW_STRAT;
    unsafe {
        let slot = pg_sys::table_slot_create(table.relation, std::ptr::null_mut());
        let snapshot = pg_sys::GetActiveSnapshot();
        let relation = table.relation;
        let scan = pg_guard_ffi_boundary(|| {
            let scan =
                begin(relation, snapshot, 0, std::ptr::null_mut(), std::ptr::null_mut(), flags);
            set_range(scan, &raw mut low, &raw mut high);
            scan
        });
        Ok(Source::Table { scan, slot, next })
    }
}

fn tid(block: u32, offset: u16) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: block as u16 },
        ip_posid: offset,
    }
}

/// The query whose plan is a TID range scan (`TidRangePath` of the planner), as
/// long as no other scan is allowed. Its rows don't know where they lie: `ctid` is
/// their last column.
fn range_query(name: &str, columns: &[String], blocks: Blocks, filter: Option<&str>) -> String {
    use std::fmt::Write as _;
    let columns: String =
        columns.iter().map(|c| format!("\"{}\", ", c.replace('"', "\"\""))).collect();
    let mut sql =
        format!("SELECT {columns}ctid FROM ONLY {name} WHERE ctid >= '({},0)'", blocks.from);
    if let Some(to) = blocks.to {
        // Writing into a String can't fail.
        let _ = write!(sql, " AND ctid < '({to},0)'");
    }
    if let Some(filter) = filter {
        let _ = write!(sql, " AND ({filter})");
    }
    sql
}

fn begin_query(sql: &str) -> Result<Source> {
    let text = CString::new(sql).map_err(|_| Error::internal("query with a NUL byte"))?;
    // Plans of the state queries stay what they are: these end with the transaction.
    const SETTINGS: &CStr = c"SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off; \
        SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off; \
        SET LOCAL enable_tidscan = on; SET LOCAL max_parallel_workers_per_gather = 0; \
        SET LOCAL jit = off; SET LOCAL row_security = off";
    Spi::connect(|_| unsafe {
        if pg_sys::SPI_execute(SETTINGS.as_ptr(), false, 0) < 0 {
            return Err(Error::internal("could not set up the scan"));
        }
        let plan = pg_sys::SPI_prepare(text.as_ptr(), 0, std::ptr::null_mut());
        if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
            return Err(Error::internal("could not plan the scan"));
        }
        let cached = pg_sys::SPI_plan_get_cached_plan(plan);
        if cached.is_null() {
            return Err(Error::internal("the scan has more than one plan"));
        }
        let statement = pgrx::PgList::<pg_sys::PlannedStmt>::from_pg((*cached).stmt_list)
            .get_ptr(0)
            .ok_or_else(|| Error::internal("the scan has no plan"))?;
        Ok((plan, cached, statement))
    })
    .map(|(plan, cached, statement)| unsafe {
        let query = pg_sys::CreateQueryDesc(
            statement,
            text.as_ptr(),
            pg_sys::GetActiveSnapshot(),
            std::ptr::null_mut(),
            pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
        );
        pg_sys::ExecutorStart(query, 0);
        Source::Query { plan, cached, query }
    })
}
