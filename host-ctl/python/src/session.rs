//! A session with the card, for any thread: calls take turns, and none holds the interpreter while it waits.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::Importance;
use doca::Selector;
use host_ctl::{Client, Error, Options, RequestId, Route, Transfer};
use mailbox::Tokens;
use pyo3::prelude::*;

use crate::errors::{CardGone, input, raise};
use crate::keys;
use crate::memory::Memory;
use crate::watch::Watch;

/// How long a session that is given up waits for the card to let go of what is in flight.
const GIVE_UP: Duration = Duration::from_secs(2);
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

/// A session, or whether the card had let go of its memory when it ended.
#[derive(Debug)]
enum State {
    Open(Box<Client>),
    Closed { let_go: bool },
}

impl State {
    fn open(&mut self) -> Option<&mut Client> {
        match self {
            State::Open(client) => Some(client),
            State::Closed { .. } => None,
        }
    }

    /// Ends the session; what the first call found is what every later one says.
    fn close(&mut self, timeout: Duration) -> bool {
        match std::mem::replace(self, State::Closed { let_go: false }) {
            State::Open(client) => *self = State::Closed { let_go: client.leave(timeout) },
            closed => *self = closed,
        }
        matches!(self, State::Closed { let_go: true })
    }
}

/// See `kvlane.attach`, which makes one.
///
/// It belongs to the process that attached. A forked child has a copy of it that shares page and socket with the
/// parent's: there every call is refused before it touches either, and the copy is never dropped.
#[pyclass(frozen, weakref, module = "kvlane")]
#[derive(Debug)]
pub(crate) struct Session {
    state: Mutex<State>,
    watches: Arc<[Watch]>,
    process: u32,
    /// The socket's descriptor, which a forked child closes (kvlane/__init__.py): else the card would not see the
    /// parent die.
    #[pyo3(get, name = "_descriptor")]
    descriptor: Option<RawFd>,
    #[pyo3(get)]
    recipe: String,
    #[pyo3(get)]
    card: String,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the client left it as it was between two calls; its own checks go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    /// Runs `call` on the client without the interpreter.
    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&mut Client) -> Result<T, Error> + Send) -> PyResult<T> {
        if self.is_inherited() {
            let what = format!("this session is process {}'s: a forked child attaches by itself", self.process);
            return Err(CardGone::new_err(what));
        }
        py.detach(|| self.lock().open().map(call))
            .ok_or_else(|| CardGone::new_err("this session was closed: attach again"))?
            .map_err(raise)
    }

    /// As [`Session::with`], for what names pages: memory that is not where it was registered ends the session first.
    fn with_pages<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut Client) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.look(py)?;
        self.with(py, call)
    }

    /// Looks whether all memory is where it was registered. If not the session is given up: the card is told, and what
    /// it does not let go of in time is never given back.
    fn look(&self, py: Python<'_>) -> PyResult<()> {
        let Some(moved) = self.watches.iter().find_map(|watch| watch.moved(py)) else { return Ok(()) };
        if !self.is_inherited() {
            py.detach(|| self.lock().close(GIVE_UP));
        }
        Err(input(moved))
    }

    /// A completion, unless the memory that it speaks of is gone.
    fn seen(&self, py: Python<'_>, done: Option<host_ctl::Completion>) -> PyResult<Option<Completion>> {
        if done.as_ref().is_some_and(|done| done.operation.takes_pages()) {
            self.look(py)?;
        }
        Ok(done.map(Completion::from))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_inherited() {
            // Page, socket and exports are the parent's, and a good-bye from here would end its session.
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::replace(state, State::Closed { let_go: false }));
        }
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
        let watches = memory.map_or_else(Arc::default, |memory| Arc::clone(&memory.watches));
        if let Some(moved) = watches.iter().find_map(|watch| watch.moved(py)) {
            return Err(input(moved));
        }
        let memory = memory.map(|memory| memory.inner.clone());
        let client = py.detach(|| Client::attach(&options, memory)).map_err(raise)?;
        let (recipe, card) = (client.card_facts().recipe.to_string(), client.card_facts().card.clone());
        let descriptor = client.descriptor().map(|fd| fd.as_raw_fd());
        let (state, process) = (Mutex::new(State::Open(Box::new(client))), std::process::id());
        Ok(Session { state, watches, process, descriptor, recipe, card })
    }

    /// Asks how many leading chunks are stored; with `trailing`, for the greatest n of which that many chunks before it
    /// are, or all if there are fewer.
    #[pyo3(signature = (keys, *, section = 0, trailing = 0))]
    fn lookup(&self, py: Python<'_>, keys: &[u8], section: u16, trailing: usize) -> PyResult<u64> {
        let keys = keys::parse(keys)?;
        self.with(py, |client| client.post_window(&keys, section, trailing)).map(RequestId::number)
    }

    /// Restores chunks of a section into its pages: `tokens` (start, end) are counted from the first chunk's first.
    #[pyo3(signature = (keys, pages, *, tokens = None, deadline = None, section = 0))]
    fn fetch(
        &self,
        py: Python<'_>,
        keys: &[u8],
        pages: Vec<u32>,
        tokens: Option<(u32, u32)>,
        deadline: Option<f64>,
        section: u16,
    ) -> PyResult<u64> {
        let (keys, deadline) = (keys::parse(keys)?, deadline.map(|s| seconds("deadline", s)).transpose()?);
        let tokens = tokens.map_or(Tokens::ALL, |(start, end)| Tokens { start, end });
        let transfer = Transfer { tokens, deadline, section, ..Transfer::new(&keys, &pages) };
        self.with_pages(py, |client| client.post_fetch(&transfer)).map(RequestId::number)
    }

    /// Stores chunks of a section from its pages; `importance` says what each is worth, 1 being neutral.
    #[pyo3(signature = (keys, pages, *, importance = None, deadline = None, section = 0))]
    fn store(
        &self,
        py: Python<'_>,
        keys: &[u8],
        pages: Vec<u32>,
        importance: Option<Vec<f32>>,
        deadline: Option<f64>,
        section: u16,
    ) -> PyResult<u64> {
        let importances = importances(&importance.unwrap_or_default())?;
        let (keys, deadline) = (keys::parse(keys)?, deadline.map(|s| seconds("deadline", s)).transpose()?);
        let transfer = Transfer { deadline, importances: &importances, section, ..Transfer::new(&keys, &pages) };
        self.with_pages(py, |client| client.post_store(&transfer)).map(RequestId::number)
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
        let done = self.with(py, Client::poll)?;
        self.seen(py, done)
    }

    /// The next completion, waiting for it. `None` when time ran out or nothing is in flight.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<Option<Completion>> {
        let timeout = seconds("timeout", timeout)?;
        let done = self.with(py, |client| client.wait_any(timeout))?;
        self.seen(py, done)
    }

    /// Requests that have not completed.
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> usize {
        if self.is_inherited() {
            return 0;
        }
        py.detach(|| self.lock().open().map_or(0, |client| client.outstanding()))
    }

    /// Ends the session. True: the card has let go of the memory, and its pages may be given to somebody else. A forked
    /// child ends nothing: it has no session.
    #[pyo3(signature = (timeout = 10.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds("timeout", timeout)?;
        Ok(!self.is_inherited() && py.detach(|| self.lock().close(timeout)))
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
