//! The Grafana dashboard against a real Prometheus that scrapes a real `dpu-app`: every expression has to give numbers.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::*;
use crate::scrape::{Process, dpu_app_on, free_address, say, start, until};
use dpu_app::families;
use host_ctl::{Arrangement, Client, Options, Route};
use serde_json::Value;

const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/grafana/kvlane.json");
const CHUNKS: usize = 8;
/// What Grafana would make of `$__rate_interval` here: several scrapes.
const RATE_INTERVAL: &str = "10s";
const SCRAPE_INTERVAL: &str = "250ms";
const TRAFFIC: Duration = Duration::from_secs(3);

/// All expressions of the dashboard with their panels, as written.
fn expressions() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        panel["targets"].as_array().into_iter().flatten().map(move |target| (title, target["expr"].as_str().unwrap()))
    });
    targets.map(|(title, expression)| (title.to_owned(), expression.to_owned())).collect()
}

/// Words of an expression that are names of our metrics.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    expression.split(ends).filter(|word| word.starts_with("kvlane_"))
}

#[test]
fn it_names_only_what_there_is_and_leaves_nothing_out() {
    let mut shown = BTreeSet::new();
    for (panel, expression) in expressions() {
        for name in names(&expression) {
            let stem = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(families().any(|family| family.name == stem), "{panel}: {name} is no metric");
            shown.insert(stem.to_owned());
        }
    }
    for family in families() {
        assert!(shown.contains(family.name), "{} is on no panel", family.name);
    }
}

/// Stores, fetches, look-ups and misses for a while.
fn traffic(home: &Path) {
    let options = Options {
        route: Route::Socket(home.join("card.sock")),
        recipe: Some("lossless".parse().unwrap()),
        ..Options::default()
    };
    let memory = filled(Arrangement::Vllm, geometry(), CHUNKS, 1);
    let mut host = Client::attach(&options, Some(memory)).unwrap();
    let (over, pages) = (Instant::now() + TRAFFIC, linear(CHUNKS));
    for salt in 0..=u8::MAX {
        let keys = keys(geometry(), "lossless", salt, CHUNKS);
        assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, 0);
        assert_eq!(store(&mut host, &keys, &pages).chunks_done, CHUNKS);
        assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
        assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, CHUNKS);
        std::thread::sleep(TRAFFIC / 60);
        if Instant::now() >= over {
            break;
        }
    }
    host.close(WAIT).unwrap();
}

fn prometheus(home: &Path, target: u16, listen: SocketAddr) -> Option<Process> {
    let config = format!(
        "global:\n  scrape_interval: {SCRAPE_INTERVAL}\n  scrape_timeout: {SCRAPE_INTERVAL}\nscrape_configs:\n- job_name: kvlane\n  \
         static_configs:\n  - targets: ['127.0.0.1:{target}']\n"
    );
    fs::write(home.join("prometheus.yml"), config).unwrap();
    let log = fs::File::create(home.join("prometheus.log")).unwrap();
    let spawned = Command::new("prometheus")
        .arg(format!("--config.file={}", home.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", home.join("tsdb").display()))
        .arg(format!("--web.listen-address={listen}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    match spawned {
        Ok(child) => Some(Process(child)),
        Err(error) => {
            println!("skipped: prometheus: {error}: scripts/setup.sh --test installs it");
            None
        }
    }
}

/// Evaluates an expression now: the values of its series.
fn evaluate(prometheus: SocketAddr, expression: &str) -> Result<Vec<f64>, String> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
    // 1.0: no chunks.
    let page = say(prometheus, format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n").as_bytes());
    let answer: Value = serde_json::from_str(&page.body).map_err(|error| format!("{error}: {page:?}"))?;
    if answer["status"] != "success" {
        return Err(answer["error"].to_string());
    }
    let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
    Ok(answer["data"]["result"].as_array().unwrap().iter().map(value).collect())
}

#[test]
fn every_expression_gives_numbers_in_a_real_prometheus() {
    let home = tempfile::tempdir().unwrap();
    let address = free_address();
    // A store with servers, where there is one to be had: `dir:` has no series for them.
    let server = crate::servers::program().map(|program| crate::servers::Server::start(program, &[]));
    let store = match &server {
        Some(server) => format!("redis://{}", server.address()),
        None => format!("dir:{}", home.path().join("store").display()),
    };
    let mut command = dpu_app_on(&format!("tiers:dram=64M,{store}"), home.path());
    command.args(["--metrics", "0"]);
    let (_dpu, _, port) = start(command);
    let Some(_prometheus) = prometheus(home.path(), port.unwrap(), address) else { return };
    let log = || fs::read_to_string(home.path().join("prometheus.log")).unwrap();
    let up = || std::net::TcpStream::connect(address).is_ok();
    until(|| (up(), log()), |(up, _)| *up);
    let scraped = || evaluate(address, "up{job=\"kvlane\"}").unwrap_or_default();
    until(|| (scraped(), log()), |(up, _)| *up == [1.0]);
    traffic(home.path());

    let mut wrong = Vec::new();
    for (panel, written) in expressions() {
        let expression = written.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*");
        match evaluate(address, &expression) {
            Ok(values) if values.iter().any(|value| value.is_finite()) => {}
            Ok(values) if server.is_none() && written.contains("kvlane_store_node_") => {
                assert!(values.is_empty(), "{values:?}")
            }
            result => wrong.push(format!("{panel}: {written}: {result:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Not only numbers: the right ones.
    for (expression, least) in [
        ("sum(kvlane_chunks_total{result=\"stored\"})", CHUNKS as f64),
        ("sum(rate(kvlane_restored_bytes_total{operation=\"fetch\"}[10s]))", 1.0),
        ("min(rate(kvlane_stage_operations_total[10s]))", 0.1),
        ("histogram_quantile(0.99, sum by (le) (rate(kvlane_request_duration_seconds_bucket[10s])))", 1e-5),
    ] {
        let values = evaluate(address, expression).unwrap();
        assert!(values.len() == 1 && values[0] >= least, "{expression}: {values:?}");
    }
    assert_eq!(evaluate(address, "kvlane_nothing"), Ok(vec![]), "a name that is not there is no number");
}
