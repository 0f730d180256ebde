//! A trace: when which prefix was asked for. Chunks are named by small numbers; equal numbers are equal prefixes.
//!
//! Read from JSON lines as the public Mooncake traces have them (`timestamp` in milliseconds, `hash_ids`: one number
//! for each block of the prompt, the same for the same prefix); other members are passed over.

use std::io::{BufRead, BufReader};
use std::path::Path;

use host_ctl::Error;
use serde_json::Value;

/// One prompt, in chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub at_ms: u64,
    pub chunks: Vec<u64>,
}

/// Requests in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub name: String,
    pub requests: Vec<Prompt>,
}

impl Trace {
    /// Reads a file of JSON lines.
    ///
    /// # Errors
    /// It cannot be read, a line is no request, or time goes back.
    pub fn read(path: &Path) -> Result<Trace, Error> {
        let failed = |source| Error::System { call: "read", path: path.into(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut requests: Vec<Prompt> = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(failed)?;
            if line.trim().is_empty() {
                continue;
            }
            let bad = |what: &str| Error::Input {
                place: format!("{}:{}", path.display(), index + 1),
                what: what.to_owned(),
                fix: r#"a line is {"timestamp":MS,"hash_ids":[N,...]}, in the order of time"#.to_owned(),
            };
            let request = parse(&line).ok_or_else(|| bad("no request"))?;
            if requests.last().is_some_and(|before| before.at_ms > request.at_ms) {
                return Err(bad("time goes back"));
            }
            requests.push(request);
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Trace { name, requests })
    }

    /// Chunks asked for, and different ones among them.
    pub fn chunks(&self) -> (u64, u64) {
        let all = self.requests.iter().flat_map(|request| &request.chunks);
        let different: std::collections::HashSet<_> = all.clone().collect();
        (all.count() as u64, different.len() as u64)
    }
}

fn parse(line: &str) -> Option<Prompt> {
    let value: Value = serde_json::from_str(line).ok()?;
    let at_ms = value.get("timestamp")?.as_f64().filter(|ms| ms.is_finite() && *ms >= 0.0)? as u64;
    let chunks = value.get("hash_ids")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
    Some(Prompt { at_ms, chunks })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &str) -> Result<Trace, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Trace::read(file.path())
    }

    #[test]
    fn public_traces_are_read_and_a_bad_line_is_named() {
        let line = r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}"#;
        let trace = read(&format!("{line}\n\n{line}\n")).unwrap();
        assert_eq!(trace.requests[1], Prompt { at_ms: 27482, chunks: vec![46, 47, 2353] });
        assert_eq!(trace.chunks(), (6, 3));
        for bad in ["{}", "[1]", r#"{"timestamp":-1,"hash_ids":[]}"#, r#"{"timestamp":1,"hash_ids":[-1]}"#] {
            let error = read(&format!("{line}\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains(":2"), "{error}");
        }
        assert!(read(&format!("{line}\n{}\n", line.replace("27482", "1"))).unwrap_err().to_string().contains("back"));
    }
}
