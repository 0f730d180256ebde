//! Errors as exceptions: one class for each party that can be to blame, with what happened, where and what to do in the
//! message, as `host-ctl` prints it.

use host_ctl::{Blame, Error};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(kvlane, KvlaneError, PyException, "Anything that kvlane refuses or that went wrong.");
create_exception!(kvlane, InputError, KvlaneError, "What was asked for cannot be: correct the call.");
create_exception!(kvlane, DeviceError, KvlaneError, "The device of this machine, or of the card.");
create_exception!(kvlane, CardError, KvlaneError, "The card: absent, refusing, draining, or not answering in time.");
create_exception!(kvlane, CardGone, CardError, "The session is over: attach again. What was in flight is not done.");
create_exception!(kvlane, RunError, KvlaneError, "A run that went wrong: store, deadline, data, a full queue.");

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("KvlaneError", py.get_type::<KvlaneError>())?;
    module.add("InputError", py.get_type::<InputError>())?;
    module.add("DeviceError", py.get_type::<DeviceError>())?;
    module.add("CardError", py.get_type::<CardError>())?;
    module.add("CardGone", py.get_type::<CardGone>())?;
    module.add("RunError", py.get_type::<RunError>())
}

/// The exception of an error.
pub(crate) fn raise(error: Error) -> PyErr {
    let text = mailbox::visible(&error.to_string()).into_owned();
    match (&error, error.blame()) {
        (Error::CardGone(_), _) => CardGone::new_err(text),
        (_, Blame::Operator) => InputError::new_err(text),
        (_, Blame::Device) => DeviceError::new_err(text),
        (_, Blame::Peer) => CardError::new_err(text),
        (_, Blame::Run) => RunError::new_err(text),
    }
}

pub(crate) fn input(what: impl ToString) -> PyErr {
    InputError::new_err(what.to_string())
}
