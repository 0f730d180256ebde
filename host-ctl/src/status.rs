//! What the card says of itself: JSON text that this side shows as it comes. Known groups become tables, unknown ones
//! are listed like them, missing ones are left out, so that host and card may be of different builds.

use std::fmt::Write as _;

use mailbox::visible;
use serde_json::{Map, Value};

use crate::error::Error;

/// A status answer.
#[derive(Clone, Debug, PartialEq)]
pub struct CardStatus {
    value: Value,
}

/// What one stage did between two answers.
#[derive(Clone, Debug, PartialEq)]
pub struct StageDelta {
    pub name: String,
    pub jobs: u64,
    pub busy_ms: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Pipeline order, for printing. What the card has beside these comes after them.
const STAGES: [&str; 7] = ["fetch", "inflate", "dequantize", "write", "gather", "encode", "put"];
/// Longest list that is printed in full.
const ROWS_MAX: usize = 64;

impl CardStatus {
    /// Reads an answer.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn parse(text: &str) -> Result<CardStatus, Error> {
        match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Ok(CardStatus { value }),
            Ok(_) => Err(Error::Answer { what: "status: the answer is no JSON object".to_owned() }),
            Err(error) => Err(Error::Answer { what: format!("status: the answer is no JSON: {error}") }),
        }
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Chunks that were proven bad and taken out of the store, since the card started.
    pub(crate) fn chunks_taken_out(&self) -> Option<u64> {
        self.value.pointer("/store/corrupt")?.as_u64()
    }

    fn stages(&self) -> Vec<(&str, &Map<String, Value>)> {
        let Some(stages) = self.value.get("stages").and_then(Value::as_object) else { return Vec::new() };
        let place = |name: &str| STAGES.iter().position(|stage| *stage == name).unwrap_or(STAGES.len());
        let mut stages: Vec<_> =
            stages.iter().filter_map(|(name, stage)| Some((name.as_str(), stage.as_object()?))).collect();
        stages.sort_by_key(|(name, _)| (place(name), name.to_string()));
        stages
    }

    fn uptime_s(&self) -> Option<f64> {
        self.value.get("card")?.get("uptime_s")?.as_f64()
    }

    /// What the stages did since `before`. A card that started anew in between counts from its start.
    pub fn since(&self, before: &CardStatus) -> Vec<StageDelta> {
        let number = |stage: Option<&Map<String, Value>>, name: &str| {
            stage.and_then(|stage| stage.get(name)).and_then(Value::as_f64).unwrap_or(0.0)
        };
        let old = before.stages();
        self.stages()
            .into_iter()
            .map(|(name, stage)| {
                let old = old.iter().find(|(old, _)| *old == name).map(|(_, stage)| *stage);
                let delta = |field| {
                    let (now, then) = (number(Some(stage), field), number(old, field));
                    if now >= then { now - then } else { now }
                };
                StageDelta {
                    name: name.to_owned(),
                    jobs: delta("jobs") as u64,
                    busy_ms: delta("busy_ms"),
                    bytes_in: delta("bytes_in") as u64,
                    bytes_out: delta("bytes_out") as u64,
                }
            })
            .filter(|stage| stage.jobs > 0)
            .collect()
    }

    /// Formats the status for people. `before` and the seconds since then turn the stages' totals into what they do
    /// now.
    pub fn table(&self, before: Option<(&CardStatus, f64)>) -> String {
        let mut out = String::new();
        let Some(groups) = self.value.as_object() else { return out };
        if let Some(card) = groups.get("card") {
            let _ = writeln!(out, "card       {}", line(card));
        }
        self.stage_table(before, &mut out);
        for (name, group) in groups.iter().filter(|(name, _)| !matches!(name.as_str(), "card" | "stages")) {
            match group {
                Value::Null => {}
                Value::Array(rows) if rows.is_empty() => {}
                Value::Array(rows) => {
                    let _ = writeln!(out, "{name}");
                    let first = rows.len().saturating_sub(ROWS_MAX);
                    if first > 0 {
                        let _ = writeln!(out, "  ({first} older ones left out)");
                    }
                    rows[first..].iter().for_each(|row| {
                        let _ = writeln!(out, "  {}", line(row));
                    });
                }
                Value::Object(words) => {
                    let _ = writeln!(out, "{name}");
                    let width = words.keys().map(String::len).max().unwrap_or(0);
                    for (name, value) in words {
                        let _ = writeln!(out, "  {name:<width$}  {}", line(value));
                    }
                }
                scalar => {
                    let _ = writeln!(out, "{name:<10} {}", line(scalar));
                }
            }
        }
        out
    }

    fn stage_table(&self, before: Option<(&CardStatus, f64)>, out: &mut String) {
        let rows = match before {
            Some((before, _)) => self.since(before),
            None => self.since(&CardStatus { value: Value::Null }),
        };
        if rows.is_empty() {
            if !self.stages().is_empty() {
                let _ = writeln!(out, "stages     idle");
            }
            return;
        }
        // Busy time over wall time: 2.0 is two workers, or two tasks of an engine, all the time.
        let seconds = before.map(|(_, seconds)| seconds).or(self.uptime_s()).filter(|&seconds| seconds > 0.0);
        let _ = writeln!(out, "stage           jobs   busy ms    busy      MB in     MB out");
        for StageDelta { name, jobs, busy_ms, bytes_in, bytes_out } in rows {
            let busy = seconds.map_or("-".to_owned(), |seconds| format!("{:.2}", busy_ms / 1000.0 / seconds));
            let (mb_in, mb_out) = (bytes_in as f64 / 1e6, bytes_out as f64 / 1e6);
            let _ = writeln!(out, "{name:<11} {jobs:>8} {busy_ms:>9.1} {busy:>7} {mb_in:>10.1} {mb_out:>10.1}");
        }
    }
}

/// A value on one line: objects as `name value, name value`.
fn line(value: &Value) -> String {
    match value {
        Value::String(text) => visible(text).into_owned(),
        Value::Object(words) => words
            .iter()
            .map(|(name, value)| format!("{} {}", visible(name), line(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Array(items) => items.iter().map(line).collect::<Vec<_>>().join(" "),
        scalar => scalar.to_string(),
    }
}

/// Lower bounds of the buckets of a tier's scores, and chunks in them; the first has none, and is named by half its
/// upper.
pub fn tier_scores(tier: &Value) -> Vec<(f64, u64)> {
    let counts = tier.get("scores").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let middle = (counts.len() / 2) as f64;
    let bucket = |(index, count): (usize, &Value)| ((index as f64 - middle).exp2(), count.as_u64().unwrap_or(0));
    counts.iter().enumerate().map(bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        r#"{"stages":{"write":{"jobs":1,"busy_ms":5.0,"bytes_in":1,"bytes_out":2},"fetch":{"jobs":4}}}"#;
    const AFTER: &str = r#"{"card":{"version":"0.1","uptime_s":10,"state":"steady"},
        "stages":{"write":{"jobs":3,"busy_ms":25.5,"bytes_in":2000001,"bytes_out":4000002},
            "fetch":{"jobs":4},"new":{"jobs":1}},
        "limits":{"slots":"16","ring_bytes":123},"sessions":[{"id":1,"client":"x"}],"events":[],"extra":7}"#;

    #[test]
    fn stages_are_subtracted_and_ordered_and_idle_ones_left_out() {
        let (before, after) = (CardStatus::parse(BEFORE).unwrap(), CardStatus::parse(AFTER).unwrap());
        let rows = after.since(&before);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["write", "new"]);
        assert_eq!((rows[0].jobs, rows[0].busy_ms, rows[0].bytes_out), (2, 20.5, 4_000_000));
        // A restarted card is not negative.
        assert_eq!(before.since(&after)[0].jobs, 1);
    }

    #[test]
    fn the_table_shows_what_is_there_and_survives_what_is_not() {
        let table = CardStatus::parse(AFTER).unwrap().table(None);
        for text in ["version 0.1", "write", "ring_bytes  123", "id 1, client x", "extra      7"] {
            assert!(
                table.contains(text) || text == "id 1, client x" && table.contains("client x, id 1"),
                "{text}:\n{table}"
            );
        }
        assert_eq!(CardStatus::parse("{}").unwrap().table(None), "");
        for odd in [r#"{"stages":[]}"#, r#"{"stages":{"fetch":3}}"#, r#"{"card":null}"#] {
            let _ = CardStatus::parse(odd).unwrap().table(None);
        }
    }

    #[test]
    fn what_is_no_object_is_the_cards_fault() {
        for bad in ["", "[]", "{", "7"] {
            assert_eq!(CardStatus::parse(bad).unwrap_err().exit_code(), 4, "{bad}");
        }
    }
}
