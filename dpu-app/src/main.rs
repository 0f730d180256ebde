//! `dpu-app`: reads its configuration, runs the data plane, maps errors to exit codes. Prints an error once.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dpu_app::main()
}
