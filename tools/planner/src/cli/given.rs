//! Values of arguments that several commands take.

use kvlane_plan::models::Preset;

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| String::from("a number above 0"))
}

pub(crate) fn preset(name: &str) -> Result<&'static Preset, String> {
    Preset::named(name).ok_or_else(|| String::from("one of llama-3.1-8b, mistral-7b, llama-70b-tp8, mla"))
}
