//! Amounts, stages and geometries, for people and for machines.

use std::time::Duration;

use host_ctl::command::Show;
use host_ctl::{Amounts, StageDelta};
use serde_json::{Value, json};

/// What each stage did.
pub(crate) fn show_stages(show: &Show, stages: &[StageDelta], elapsed: Duration) {
    if stages.is_empty() {
        return;
    }
    show.line("stage           jobs   busy ms    busy      MB in     MB out");
    for StageDelta { name, jobs, busy_ms, bytes_in, bytes_out } in stages {
        let busy = busy_ms / 1000.0 / elapsed.as_secs_f64().max(1e-9);
        let (mb_in, mb_out) = (*bytes_in as f64 / 1e6, *bytes_out as f64 / 1e6);
        show.line(&format!("{name:<11} {jobs:>8} {busy_ms:>9.1} {busy:>7.2} {mb_in:>10.1} {mb_out:>10.1}"));
    }
}

pub(crate) fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

pub(crate) fn amounts_json(amounts: &Amounts) -> Value {
    json!({
        "raw_bytes": amounts.raw_bytes,
        "wire_bytes": amounts.wire_bytes,
        "ratio": amounts.ratio(),
        "seconds": amounts.elapsed.as_secs_f64(),
        "raw_mb_s": amounts.raw_mb_s(),
    })
}

pub(crate) fn stages_json(stages: &[StageDelta]) -> Value {
    let stage = |stage: &StageDelta| {
        let StageDelta { name, jobs, busy_ms, bytes_in, bytes_out } = stage;
        (name.clone(), json!({ "jobs": jobs, "busy_ms": busy_ms, "bytes_in": bytes_in, "bytes_out": bytes_out }))
    };
    Value::Object(stages.iter().map(stage).collect())
}

pub(crate) fn geometry_json(geometry: &block::Geometry) -> Value {
    json!({
        "layers": geometry.layers,
        "heads": geometry.heads,
        "head_size": geometry.head_size,
        "chunk_tokens": geometry.chunk_tokens,
        "element": geometry.element.name(),
        "planes": geometry.planes.kinds().len(),
    })
}

pub(crate) fn geometry_text(geometry: &block::Geometry) -> String {
    let block::Geometry { layers, heads, head_size, chunk_tokens, element, planes } = geometry;
    let kept = match planes {
        block::Planes::KeysAndValues => "KV heads",
        block::Planes::One => "heads of one plane",
    };
    format!("{layers} layers x {heads} {kept} x {head_size} {element}, chunks of {chunk_tokens} tokens")
}
