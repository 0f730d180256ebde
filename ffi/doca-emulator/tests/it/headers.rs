//! Claims about our C headers, as a C compiler sees them.

#![cfg(not(miri))]

use std::fs;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = "
#include <doca_buf_inventory.h>
doca_error_t by_addr(struct doca_buf_inventory *i, struct doca_mmap *m, void *a, struct doca_buf **b)
{
    return doca_buf_inventory_buf_get_by_addr(i, m, a, 8, b);
}
doca_error_t by_data(struct doca_buf_inventory *i, struct doca_mmap *m, void *a, struct doca_buf **b)
{
    return doca_buf_inventory_buf_get_by_data(i, m, a, 8, b);
}
";

#[test]
fn by_addr_and_by_data_are_inlines_over_by_args() {
    let directory = tempfile::tempdir().expect("a directory");
    let (source, object) = (directory.path().join("inline.c"), directory.path().join("inline.o"));
    fs::write(&source, PROGRAM).expect("a source file");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Werror", "-DDOCA_ALLOW_EXPERIMENTAL_API", "-c", "-o"]).arg(&object).arg(&source);
    assert!(compiler.arg("-I").arg(include).status().expect("a C compiler").success());
    let symbols = Command::new("nm").arg("--undefined-only").arg(&object).output().expect("nm");
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let wanted: Vec<&str> = symbols.split_ascii_whitespace().filter(|word| word.starts_with("doca")).collect();
    assert_eq!(wanted, ["doca_buf_inventory_buf_get_by_args"]);
}
