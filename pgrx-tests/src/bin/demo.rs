//! `make demo`: a live database of 1 GB onto four shards and back, on this machine.

use std::process::ExitCode;

use reshard_scenarios::demo;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    // Servers and their folder go with the future, whichever way it ends.
    let outcome = tokio::select! {
        outcome = demo::run() => outcome,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted; cleaning up");
            return ExitCode::from(130);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo failed: {error}");
            ExitCode::FAILURE
        }
    }
}
