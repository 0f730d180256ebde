//! `host-ctl store-check`.

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show, bad, mb};
use host_ctl::{Error, check_store};
use serde_json::{Value, json};
use store::redis::check::{CheckFinding, CheckReport, ServerFacts, Weight};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The store, as dpu-app has it as --store: redis://... or rediss://...
    #[arg(value_name = "URL", env = "KVLANE_STORE", hide_env_values = true)]
    store: String,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let Some(report) = check_store(&arguments.store)? else {
        return Err(bad("URL", "is no redis:// store".to_owned(), "dir: stores are checked by dpu-app scrub"));
    };
    let show = Show::new(&arguments.output);
    show.line(&report.store);
    for server in &report.servers {
        let ServerFacts { address, role, version, maxmemory_policy, maxmemory, used_memory } = server;
        let limit = if *maxmemory == 0 { "no limit".to_owned() } else { mb(*maxmemory) };
        show.line(&format!("  {address} {role}: {version}, {} of {limit}, {maxmemory_policy}", mb(*used_memory)));
    }
    let rate = |rate: Option<f64>| rate.map_or("not measured".to_owned(), |rate| format!("{:.0} MB/s", rate / 1e6));
    let lookup = report.lookup.map_or("not measured".to_owned(), |found| {
        format!("p50 {} us, p99 {} us, max {} us", found.p50_us, found.p99_us, found.max_us)
    });
    show.table(&[
        ("connect", format!("{:.1} ms", report.connect.as_secs_f64() * 1e3)),
        ("look-up", lookup),
        ("read", rate(report.read_bytes_per_s)),
        ("store", rate(report.put_bytes_per_s)),
    ]);
    for CheckFinding { weight, what, fix } in &report.findings {
        let mark = match weight {
            Weight::Good => "good  ",
            Weight::Advice => "advice",
            Weight::Bad => "BAD   ",
        };
        let fix = fix.as_ref().map_or(String::new(), |fix| format!("\n         -> {fix}"));
        show.line(&format!("  {mark} {what}{fix}"));
    }
    let count = |weight| report.findings.iter().filter(|finding| finding.weight == weight).count();
    let (bad, advice) = (count(Weight::Bad), count(Weight::Advice));
    let verdict = match bad {
        0 => format!("good: the store does all that dpu-app needs ({advice} things could be better)"),
        _ => format!("bad: {bad} things that dpu-app needs do not work"),
    };
    show.end(&verdict, &report_json(&report));
    Ok(if report.is_good() { CommandOutcome::Good } else { CommandOutcome::Bad })
}

fn report_json(report: &CheckReport) -> Value {
    let finding = |finding: &CheckFinding| {
        let weight = match finding.weight {
            Weight::Good => "good",
            Weight::Advice => "advice",
            Weight::Bad => "bad",
        };
        json!({ "weight": weight, "what": finding.what, "fix": finding.fix })
    };
    let server = |server: &ServerFacts| {
        json!({
            "address": server.address, "role": server.role, "version": server.version,
            "maxmemory_policy": server.maxmemory_policy, "maxmemory_bytes": server.maxmemory,
            "used_memory_bytes": server.used_memory,
        })
    };
    json!({
        "command": "store-check", "ok": report.is_good(), "store": report.store,
        "servers": report.servers.iter().map(server).collect::<Vec<_>>(),
        "connect_us": report.connect.as_micros() as u64,
        "lookup_p50_us": report.lookup.map(|found| found.p50_us),
        "lookup_p99_us": report.lookup.map(|found| found.p99_us),
        "lookup_max_us": report.lookup.map(|found| found.max_us),
        "read_bytes_per_s": report.read_bytes_per_s,
        "put_bytes_per_s": report.put_bytes_per_s,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}
