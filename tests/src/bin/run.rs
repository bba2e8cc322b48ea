//! The program behind `make run-proxy`.

use std::{env, process::ExitCode};

use causeway_tests::runner;

#[expect(clippy::print_stdout, reason = "the help is what was asked for")]
fn main() -> ExitCode {
    if env::args().len() > 1 {
        println!("{}", runner::HELP);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(runner::run()),
        Err(error) => {
            eprintln!("causeway-run: cannot start: {error}");
            ExitCode::from(2)
        }
    }
}
