//! `dpu-app`: reads its configuration, runs the data plane, maps errors to exit codes. Prints an error once.
#![forbid(unsafe_code)]

/// A line on standard output. A reader that has heard enough (`| head`) is no error.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)));
    }};
}

mod arguments;
mod config_file;
mod forecast;
mod limits_report;
mod scrubbing;

use std::process::ExitCode;

fn main() -> ExitCode {
    arguments::main()
}
