//! `make bench-cutover`: the pause of many switches, as clients see it.

use std::process::ExitCode;

use reshard_scenarios::pause;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    // Servers and their folder go with the future, whichever way it ends.
    let outcome = tokio::select! {
        outcome = pause::bench() => outcome,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-cutover: {error}");
            ExitCode::FAILURE
        }
    }
}
