//! Whether a JSON text says any name of an object twice. Parsers differ in which of the two they believe, so a file
//! that does is not believed at all.

use std::collections::HashSet;
use std::fmt;

use mailbox::quoted;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// JSON in which every name is said once. Holds nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

impl<'de> Visitor<'de> for Look {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<Unique>()?;
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("duplicate name {}", quoted(&name))));
            }
        }
        Ok(Unique)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
        while items.next_element::<Unique>()?.is_some() {}
        Ok(Unique)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_said_twice_is_named_at_any_depth() {
        let look = |text: &str| serde_json::from_str::<Unique>(text).map_err(|error| error.to_string());
        for good in [r#"{"a":{"a":[1,-1,0.5,null,true,"a"]},"b":{"a":{}}}"#, "{}", "[]"] {
            assert!(look(good).is_ok(), "{good}");
        }
        for (bad, name) in [
            (r#"{"kv":1,"kv":2}"#, "\"kv\""),
            (r#"{"kv":1,"\u006bv":2}"#, "\"kv\""),
            (r#"{"x":[{"in":1,"in":1}]}"#, "\"in\""),
            (r#"{"\u001b[2J":1,"\u001b[2J":1}"#, "\"\\u{1b}[2J\""),
        ] {
            let error = look(bad).unwrap_err();
            assert!(error.starts_with(&format!("duplicate name {name}")), "{error}");
        }
    }
}
