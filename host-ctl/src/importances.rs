//! Files of importances: `{"chunks": [1.5, 0.25, ...]}`, one number for each whole chunk of a prompt, 1 being neutral.

use std::path::Path;

use block::Importance;
use serde_json::Value;

use crate::error::Error;

/// The importances in a file.
///
/// # Errors
/// Not readable, not of that form, or a number that is no importance: which, and what would be one.
pub fn load_importances(path: &Path) -> Result<Vec<Importance>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::system("read", path))?;
    let form = "give JSON like {\"chunks\": [1.5, 0.25]}";
    let wrong = |what: String, fix: &str| Error::input(path.display(), what, fix);
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string(), form))?;
    let chunks = value["chunks"].as_array().ok_or_else(|| wrong("no list \"chunks\"".to_owned(), form))?;
    let importance = |(index, value): (usize, &Value)| {
        let factor = value.as_f64().ok_or_else(|| wrong(format!("chunk {index} has {value}"), form))?;
        importance(factor as f32)
    };
    chunks.iter().enumerate().map(importance).collect()
}

/// A factor that somebody gave.
///
/// # Errors
/// Out of range.
pub fn importance(factor: f32) -> Result<Importance, Error> {
    Importance::of(factor).ok_or_else(|| {
        let fix = format!("give a factor from {} to {}, 1 being neutral", Importance::LEAST, Importance::MOST);
        Error::input("importance", factor, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_importances_is_read_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("importances.json");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            load_importances(&path).map_err(|error| error.to_string())
        };
        let found = load(r#"{"chunks": [1, 2.5, 0.25], "of": "attention"}"#).unwrap();
        assert_eq!(found.iter().map(|i| i.factor()).collect::<Vec<_>>(), [1.0, 2.5, 0.25]);
        for (text, part) in
            [("{", "JSON"), ("{}", "chunks"), (r#"{"chunks": ["x"]}"#, "chunk 0"), (r#"{"chunks": [0]}"#, "factor")]
        {
            let error = load(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
