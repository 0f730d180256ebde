//! A session with the card, for any thread: calls take turns, and none holds the interpreter while it waits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::Importance;
use doca::Selector;
use host_ctl::{Client, Error, Options, RequestId, Route, Transfer};
use mailbox::Tokens;
use pyo3::prelude::*;

use crate::errors::{CardGone, input, raise};
use crate::keys;
use crate::memory::Memory;

/// Longest wait that a caller can ask for: an interpreter that waits hears no signal.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How a request ended. `chunks_done` leading chunks are right whatever the status says; nothing beyond them is.
#[pyclass(frozen, get_all, skip_from_py_object, module = "kvlane")]
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    id: u64,
    operation: String,
    status: String,
    chunks_done: usize,
    chunks_asked: usize,
    wire_bytes: u64,
    restored_bytes: u64,
    card_seconds: f64,
    elapsed_seconds: f64,
    answer: String,
}

#[pymethods]
impl Completion {
    #[getter]
    fn ok(&self) -> bool {
        self.status == mailbox::Status::Ok.name()
    }

    fn __repr__(&self) -> String {
        let Completion { id, operation, status, chunks_done, chunks_asked, .. } = self;
        format!("<Completion {id} {operation}: {status}, {chunks_done} of {chunks_asked} chunks>")
    }
}

impl From<host_ctl::Completion> for Completion {
    fn from(done: host_ctl::Completion) -> Completion {
        Completion {
            id: done.id.number(),
            operation: format!("{:?}", done.operation).to_lowercase(),
            status: done.status.name().to_owned(),
            chunks_done: done.chunks_done,
            chunks_asked: done.chunks_asked,
            wire_bytes: done.wire_bytes,
            restored_bytes: done.restored_bytes,
            card_seconds: done.card.as_secs_f64(),
            elapsed_seconds: done.elapsed.as_secs_f64(),
            answer: done.answer,
        }
    }
}

/// See `kvlane.attach`, which makes one.
#[pyclass(frozen, module = "kvlane")]
#[derive(Debug)]
pub(crate) struct Session {
    client: Mutex<Option<Client>>,
    #[pyo3(get)]
    recipe: String,
    #[pyo3(get)]
    card: String,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, Option<Client>> {
        // A panic in the client left it as it was between two calls; its own checks go on.
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` on the client without the interpreter.
    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&mut Client) -> Result<T, Error> + Send) -> PyResult<T> {
        py.detach(|| self.lock().as_mut().map(call))
            .ok_or_else(|| CardGone::new_err("this session was closed: attach again"))?
            .map_err(raise)
    }
}

#[pymethods]
impl Session {
    #[staticmethod]
    #[pyo3(signature = (memory, *, socket, comch_name, device, recipe, client, namespace, timeout))]
    #[allow(clippy::too_many_arguments)]
    fn attach(
        py: Python<'_>,
        memory: Option<&Memory>,
        socket: Option<String>,
        comch_name: Option<String>,
        device: Option<String>,
        recipe: Option<&str>,
        client: String,
        namespace: Option<String>,
        timeout: f64,
    ) -> PyResult<Session> {
        let route = match (socket, comch_name) {
            (Some(_), Some(_)) => return Err(input("socket and comch_name: name one of them")),
            (Some(path), None) => Route::Socket(path.into()),
            (None, Some(name)) => Route::Comch { name },
            (None, None) => Route::default(),
        };
        let options = Options {
            route,
            client,
            namespace,
            device: device.map_or(Selector::First, Selector::Named),
            recipe: recipe.map(str::parse).transpose().map_err(|error| input(format!("recipe: {error}")))?,
            timeout: seconds("timeout", timeout)?,
            ..Options::default()
        };
        let memory = memory.map(|memory| memory.inner.clone());
        let client = py.detach(|| Client::attach(&options, memory)).map_err(raise)?;
        let (recipe, card) = (client.welcome().recipe.to_string(), client.welcome().card.clone());
        Ok(Session { client: Mutex::new(Some(client)), recipe, card })
    }

    /// Asks how many leading chunks are stored.
    fn lookup(&self, py: Python<'_>, keys: &[u8]) -> PyResult<u64> {
        let keys = keys::parse(keys)?;
        self.with(py, |client| client.post_lookup(&keys)).map(RequestId::number)
    }

    /// Restores chunks into pages: `tokens` (start, end) are counted from the first chunk's first.
    #[pyo3(signature = (keys, pages, *, tokens = None, deadline = None))]
    fn fetch(
        &self,
        py: Python<'_>,
        keys: &[u8],
        pages: Vec<u32>,
        tokens: Option<(u32, u32)>,
        deadline: Option<f64>,
    ) -> PyResult<u64> {
        let (keys, deadline) = (keys::parse(keys)?, deadline.map(|s| seconds("deadline", s)).transpose()?);
        let tokens = tokens.map_or(Tokens::ALL, |(start, end)| Tokens { start, end });
        let transfer = Transfer { tokens, deadline, ..Transfer::new(&keys, &pages) };
        self.with(py, |client| client.post_fetch(&transfer)).map(RequestId::number)
    }

    /// Stores chunks from pages; `importance` says what each is worth, 1 being neutral.
    #[pyo3(signature = (keys, pages, *, importance = None, deadline = None))]
    fn store(
        &self,
        py: Python<'_>,
        keys: &[u8],
        pages: Vec<u32>,
        importance: Option<Vec<f32>>,
        deadline: Option<f64>,
    ) -> PyResult<u64> {
        let importances = importances(&importance.unwrap_or_default())?;
        let (keys, deadline) = (keys::parse(keys)?, deadline.map(|s| seconds("deadline", s)).transpose()?);
        let transfer = Transfer { deadline, importances: &importances, ..Transfer::new(&keys, &pages) };
        self.with(py, |client| client.post_store(&transfer)).map(RequestId::number)
    }

    /// Says what chunks are worth to the card's tiers, stored or not: one factor each, 1 being neutral.
    fn rate(&self, py: Python<'_>, keys: &[u8], importance: Vec<f32>) -> PyResult<u64> {
        let (keys, importances) = (keys::parse(keys)?, importances(&importance)?);
        self.with(py, |client| client.post_rate(&keys, &importances)).map(RequestId::number)
    }

    /// Asks the card for limits, counters and times: the completion's `answer` is JSON.
    fn status(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, Client::post_status).map(RequestId::number)
    }

    /// Gives a request up. It still completes, and its pages are not free before.
    fn cancel(&self, py: Python<'_>, id: u64) -> PyResult<()> {
        self.with(py, |client| client.cancel(RequestId::from_number(id)))
    }

    /// The next completion, or `None`. Never waits.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Completion>> {
        Ok(self.with(py, Client::poll)?.map(Completion::from))
    }

    /// The next completion, waiting for it. `None` when time ran out or nothing is in flight.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<Option<Completion>> {
        let timeout = seconds("timeout", timeout)?;
        Ok(self.with(py, |client| client.wait_any(timeout))?.map(Completion::from))
    }

    /// Requests that have not completed.
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().as_ref().map_or(0, Client::outstanding))
    }

    /// Ends the session. True: the card has let go of the memory, and its pages may be given to somebody else.
    #[pyo3(signature = (timeout = 10.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds("timeout", timeout)?;
        Ok(py.detach(|| self.lock().take().is_none_or(|client| client.leave(timeout))))
    }
}

fn importances(factors: &[f32]) -> PyResult<Vec<Importance>> {
    factors.iter().map(|factor| host_ctl::importance(*factor).map_err(raise)).collect()
}

fn seconds(what: &str, value: f64) -> PyResult<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if duration <= WAIT_MAX => Ok(duration),
        _ => Err(input(format!("{what}: {value} is not between 0 and {} seconds", WAIT_MAX.as_secs()))),
    }
}
