//! Whether lent memory is still where it was: its owner may resize or replace it, which nothing in Python can forbid to
//! all.

use std::fmt;

use pyo3::prelude::*;

/// One region of a registered memory, and how its owner says where it lies now.
pub(crate) struct Watch {
    /// Place in the list that was registered.
    pub(crate) region: usize,
    pub(crate) address: usize,
    pub(crate) bytes: usize,
    /// Gives (address, bytes) of now.
    pub(crate) look: Py<PyAny>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Watch { region, address, bytes, .. } = self;
        write!(f, "Watch {{ region: {region}, address: {address:#x}, bytes: {bytes} }}")
    }
}

impl Watch {
    /// What has become of the region, if it is not where it was.
    pub(crate) fn moved(&self, py: Python<'_>) -> Option<String> {
        let Watch { region, address, bytes, look } = self;
        let what = match look.call0(py).and_then(|now| now.extract::<(usize, usize)>(py)) {
            Ok((now, left)) if now == *address && left >= *bytes => return None,
            Ok((now, left)) if now == *address => format!("it has {left} bytes now, and had {bytes}"),
            Ok(_) => "it lies elsewhere now".to_owned(),
            Err(error) => format!("it does not say where it lies: {error}"),
        };
        Some(format!(
            "buffer {region} was resized or replaced after it was registered ({what}): the session is over, register and attach again"
        ))
    }
}
