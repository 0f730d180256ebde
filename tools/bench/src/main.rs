//! `bench DIR BUILT NAME...`: makes `summary.md`, `appendix.md`, `results.json` and the plots of the reports
//! `DIR/NAME.json`, in this order; BUILT is the text that says what they ran. Exit code 1 if one of them is missing.
//! `bench --again RESULTS DIR`: makes the pages again by the `results.json` of an earlier run.

use std::path::Path;
use std::process::ExitCode;

use bench::page::{self, BenchmarkOutcome};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, results, directory] = arguments.as_slice()
        && option == "--again"
    {
        return match page::again(Path::new(results), Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {results}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let [directory, built, names @ ..] = arguments.as_slice() else {
        eprintln!("usage: bench DIR BUILT NAME..., or bench --again RESULTS DIR   (scripts/bench.sh calls it)");
        return ExitCode::from(2);
    };
    let directory = Path::new(directory);
    let outcomes: Vec<_> = names.iter().map(|name| BenchmarkOutcome::read(directory, name)).collect();
    if let Err(error) = page::write(&outcomes, built, directory) {
        eprintln!("bench: {}: {error}", directory.display());
        return ExitCode::FAILURE;
    }
    let failed = outcomes.iter().any(|outcome| matches!(outcome, BenchmarkOutcome::Failed { .. }));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
