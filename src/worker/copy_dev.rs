//! Throw-away driver for development.
use pgrx::prelude::*;

use crate::pg::{dynamic_worker, interrupt, report, runtime, xact};
use crate::state;

#[pg_extern]
fn reshard_dev_plan(task: i64, publication: &str, cluster: &str) {
    let rules = report::or_raise(state::cluster::rules(cluster));
    report::or_raise(crate::copy::plan(task, publication, &rules));
}

#[pg_extern]
fn reshard_dev_parts(task: i64, wave: i32) {
    report::or_raise(crate::copy::plan_parts(task, wave));
}

#[pg_extern]
fn reshard_dev_declare(cluster: &str, shard: i32, conninfo: &str) {
    let endpoint = crate::remote::Endpoint {
        cluster: cluster.to_owned(),
        shard: shard as u32,
        conninfo: report::or_raise(crate::remote::Conninfo::parse(conninfo)),
    };
    report::or_raise(state::cluster::declare(&endpoint));
}

#[pg_extern]
fn reshard_dev_run(task: i64, wave: i32, what: &str) {
    let worker = dynamic_worker::DynamicWorker::start(
        "reshard dev",
        "reshard dev",
        "reshard_copy_dev_main",
        &format!("{} {task} {wave} {what}", dynamic_worker::current_database()),
    );
    if let Some(worker) = worker {
        while worker.status() != dynamic_worker::WorkerStatus::Stopped {
            interrupt::wait_latch(50);
        }
    }
}

#[pg_guard]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn reshard_copy_dev_main(_arg: pg_sys::Datum) {
    interrupt::install_worker_handlers();
    let extra = dynamic_worker::extra();
    let words: Vec<&str> = extra.split(' ').collect();
    let task: i64 = words[1].parse().unwrap_or(0);
    let wave: i32 = words[2].parse().unwrap_or(0);
    dynamic_worker::connect_to_database(words[0].parse().unwrap_or(0));
    let rt = report::or_raise(runtime::build());
    let started = std::time::Instant::now();
    let text = if words[3] == "run" {
        format!("{:?}", runtime::block_on(&rt, crate::copy::run(task, wave), || ()))
    } else {
        let cluster = report::or_raise(xact::transaction(|| {
            state::cluster::load(&state::task::load(task)?.destination)
        }));
        let id: i32 = words[3].parse().unwrap_or(0);
        let result = runtime::block_on(
            &rt,
            async {
                let mut shards = Vec::new();
                for e in &cluster.shards {
                    shards.push(
                        crate::remote::connect(e, crate::remote::Purpose::Control).await?,
                    );
                }
                crate::copy::reset_table(task, id, wave, &shards).await
            },
            || (),
        );
        format!("{result:?}")
    };
    rt.shutdown_background();
    report::or_raise(xact::transaction(|| {
        state::event::write(
            Some(task),
            state::event::Severity::Info,
            "dev",
            &text,
            serde_json::json!({"ms": started.elapsed().as_millis() as u64}),
        )
    }));
}
