//! Settings of the server (`reshard.*`). Choices of one run are options of the
//! verb that starts it instead.
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// What a cutover does about transactions that don't end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum DrainAction {
    /// It gives up.
    #[name = c"abort"]
    Abort,
    /// It ends their sessions, and gives up where that does not help.
    #[name = c"terminate"]
    Terminate,
}

/// Copy workers of one task at a time.
pub static MAX_COPY_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(4);
/// Size of a part in MB of the source table.
pub static COPY_PART_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64);
/// Tries of one part before its task fails.
pub static COPY_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(10);
/// Milliseconds before a part is tried again; doubled at each try.
pub static COPY_RETRY_DELAY: GucSetting<i32> = GucSetting::<i32>::new(500);
/// kB a second that all copy workers together may read; 0 is no limit.
pub static COPY_RATE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// Memory in kB that one copy worker may use for rows on their way.
pub static COPY_BUFFER: GucSetting<i32> = GucSetting::<i32>::new(32 * 1024);
/// MB of tables that are copied under one snapshot; 0 is no limit.
pub static WAVE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);
/// Chunks that one comparison reads at a time, each in a session on every shard.
pub static MAX_VERIFY_SESSIONS: GucSetting<i32> = GucSetting::<i32>::new(2);
/// Size in MB of the chunks that tables are compared in.
pub static VERIFY_CHUNK_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16);
/// kB a second that one comparison may read on the source; 0 is no limit.
pub static VERIFY_RATE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// kB a second of tables in which rows that have moved away are looked for; 0 is no limit.
pub static REMOVAL_RATE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// Sessions for rows, keys and indexes of one task on one shard.
pub static MAX_SHARD_SESSIONS: GucSetting<i32> = GucSetting::<i32>::new(10);
/// Schema statements that run at the same time on one shard.
pub static MAX_INDEX_BUILDS: GucSetting<i32> = GucSetting::<i32>::new(2);
/// kB of lag on each flow below which the destination counts as caught up.
pub static CUTOVER_LAG_THRESHOLD: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// Milliseconds that writers may be held by the whole switch before it is aborted.
pub static CUTOVER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
/// Milliseconds that the fence waits for open writing transactions.
pub static DRAIN_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
/// What happens to transactions that are still open then.
pub static DRAIN_ACTION: GucSetting<DrainAction> =
    GucSetting::<DrainAction>::new(DrainAction::Abort);
/// Values of a sequence that are left out at a switch.
pub static SEQUENCE_MARGIN: GucSetting<i32> = GucSetting::<i32>::new(1_000);
/// MB of WAL that a slot may keep before a warning is written.
pub static SLOT_WAL_WARNING: GucSetting<i32> = GucSetting::<i32>::new(1_024);
/// Milliseconds that a cutover waits for registered poolers.
pub static POOLER_ACK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
/// Milliseconds between the announcement of a pause and the fence.
pub static PAUSE_GRACE: GucSetting<i32> = GucSetting::<i32>::new(20);
/// Whether the library was built with failpoints.
#[cfg(feature = "failpoints")]
static FAILPOINTS: GucSetting<bool> = GucSetting::<bool>::new(true);
/// Milliseconds that DDL of ours waits for a lock before it lets others go first.
pub static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(500);

/// Whether DDL of a session on tables of running migrations is forbidden, or
/// written down. Our own sessions turn it off.
static DDL_GUARD: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Whether UPDATE and DELETE pass over rows that have moved away from a shard that stays,
/// and don't fail.
static SKIP_MOVED_ROWS: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Registers all settings. Called once, from `_PG_init`.
pub fn register() {
    int(
        c"reshard.max_copy_workers",
        c"Sets the number of copy workers of one task.",
        &MAX_COPY_WORKERS,
        (1, 64),
        GucFlags::default(),
    );
    int(
        c"reshard.copy_part_size",
        c"Sets the size of the parts that tables are copied in.",
        &COPY_PART_SIZE,
        (1, 1_048_576),
        GucFlags::UNIT_MB,
    );
    int(
        c"reshard.copy_attempts",
        c"Sets how often a part is tried before its task fails.",
        &COPY_ATTEMPTS,
        (1, 1_000),
        GucFlags::default(),
    );
    int(
        c"reshard.copy_retry_delay",
        c"Sets the time before a part is tried again; it doubles at each try.",
        &COPY_RETRY_DELAY,
        (1, 3_600_000),
        GucFlags::UNIT_MS,
    );
    int(
        c"reshard.copy_rate_limit",
        c"Limits what all copy workers together read in a second; 0 is no limit.",
        &COPY_RATE_LIMIT,
        (0, i32::MAX),
        GucFlags::UNIT_KB,
    );
    int(
        c"reshard.removal_rate_limit",
        c"Limits how fast rows that have moved away are deleted from a shard of both clusters; 0 is no limit.",
        &REMOVAL_RATE_LIMIT,
        (0, i32::MAX),
        GucFlags::UNIT_KB,
    );
    int(
        c"reshard.copy_buffer",
        c"Sets the memory of one copy worker for rows on their way.",
        &COPY_BUFFER,
        (1024, 1_048_576),
        GucFlags::UNIT_KB,
    );
    int(
        c"reshard.wave_size",
        c"Limits the size of the tables that are copied under one snapshot; 0 is no limit.",
        &WAVE_SIZE,
        (0, i32::MAX),
        GucFlags::UNIT_MB,
    );
    int(
        c"reshard.max_shard_sessions",
        c"Limits the sessions of one task on one shard that copy rows and build indexes.",
        &MAX_SHARD_SESSIONS,
        (2, 1_000),
        GucFlags::default(),
    );
    int(
        c"reshard.max_verify_sessions",
        c"Sets how many chunks one comparison reads at a time, each in a session on every shard.",
        &MAX_VERIFY_SESSIONS,
        (1, 64),
        GucFlags::default(),
    );
    int(
        c"reshard.verify_chunk_size",
        c"Sets the size of the chunks that tables are compared in.",
        &VERIFY_CHUNK_SIZE,
        (1, 65_536),
        GucFlags::UNIT_MB,
    );
    int(
        c"reshard.verify_rate_limit",
        c"Limits what one comparison reads on the source in a second; 0 is no limit.",
        &VERIFY_RATE_LIMIT,
        (0, i32::MAX),
        GucFlags::UNIT_KB,
    );
    int(
        c"reshard.max_index_builds",
        c"Sets how many schema statements run at the same time on one shard.",
        &MAX_INDEX_BUILDS,
        (1, 64),
        GucFlags::default(),
    );
    int(
        c"reshard.cutover_lag_threshold",
        c"Sets the lag of each flow below which the destination counts as caught up.",
        &CUTOVER_LAG_THRESHOLD,
        (0, i32::MAX),
        GucFlags::UNIT_KB,
    );
    int(
        c"reshard.cutover_timeout",
        c"Sets how long a cutover may hold writers before it is aborted.",
        &CUTOVER_TIMEOUT,
        (100, 3_600_000),
        GucFlags::UNIT_MS,
    );
    int(
        c"reshard.drain_timeout",
        c"Sets how long a cutover waits for open writing transactions.",
        &DRAIN_TIMEOUT,
        (10, 3_600_000),
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_enum_guc(
        c"reshard.drain_action",
        c"Sets what a cutover does about writing transactions that don't end in time.",
        c"",
        &DRAIN_ACTION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    int(
        c"reshard.sequence_margin",
        c"Sets how many values of each sequence are left out at a switch.",
        &SEQUENCE_MARGIN,
        (0, i32::MAX),
        GucFlags::default(),
    );
    int(
        c"reshard.slot_wal_warning",
        c"Sets how much WAL a slot may keep before a warning is written; 0 is no limit.",
        &SLOT_WAL_WARNING,
        (0, i32::MAX),
        GucFlags::UNIT_MB,
    );
    int(
        c"reshard.pooler_ack_timeout",
        c"Sets how long a cutover waits for registered poolers.",
        &POOLER_ACK_TIMEOUT,
        (10, 3_600_000),
        GucFlags::UNIT_MS,
    );
    int(
        c"reshard.pause_grace",
        c"Sets the time between the announcement of a pause and the fence.",
        &PAUSE_GRACE,
        (0, 60_000),
        GucFlags::UNIT_MS,
    );
    #[cfg(feature = "failpoints")]
    GucRegistry::define_bool_guc(
        c"reshard.failpoints",
        c"Shows that the library was built to be made to fail.",
        c"",
        &FAILPOINTS,
        GucContext::Internal,
        GucFlags::default(),
    );
    int(
        c"reshard.lock_timeout",
        c"Sets how long DDL of reshard waits for a lock before it lets others go first.",
        &LOCK_TIMEOUT,
        (1, 60_000),
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"reshard.ddl_guard",
        c"Forbids DDL on tables of running migrations, or writes it down.",
        c"",
        &DDL_GUARD,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"reshard.skip_moved_rows",
        c"Lets UPDATE and DELETE pass over rows that have moved away from a shard of both clusters.",
        c"Otherwise they fail. For clients that send one statement to all shards.",
        &SKIP_MOVED_ROWS,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// Copy workers of one task at a time: each has a session on every shard, and
/// one is left for keys and indexes.
pub fn copy_workers(nodes: u32) -> i32 {
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX).max(1);
    MAX_COPY_WORKERS.get().min((MAX_SHARD_SESSIONS.get() - 1) / nodes).max(1)
}

fn int(
    name: &'static std::ffi::CStr,
    description: &'static std::ffi::CStr,
    setting: &'static GucSetting<i32>,
    (min, max): (i32, i32),
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(
        name,
        description,
        c"",
        setting,
        min,
        max,
        GucContext::Sighup,
        flags,
    );
}
