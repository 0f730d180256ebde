//! `kvlane-plan`: parses, calls the library, prints once, and maps errors to exit codes.
#![forbid(unsafe_code)]

/// A line on standard output. A reader that has heard enough (`| head`) is no error.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)));
    }};
}

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
