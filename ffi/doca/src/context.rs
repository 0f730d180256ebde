//! A DOCA context and the operations in flight on it.
//!
//! ```text
//!            new                    a task fails                 all tasks back
//!  (none) ---------> Running ------------------------> Stopping ----------------> Idle
//!                       ^                                                           |
//!                       +------------------------- restart -------------------------+
//! ```
//!
//! An **operation** is what the caller asks for: inflate an area, or move bytes between an area and a list of host
//! runs. It is one DOCA task, or several where a list or a length exceeds what the device takes, and has one
//! completion. A failed task stops the whole context (DOCA Core guide), so neighbours fail with it: the caller finds
//! out who was to blame by submitting suspects alone after [`Context::restart`].

mod operation;
mod transfer;

use std::collections::VecDeque;
use std::fmt;
use std::ptr;
use std::time::{Duration, Instant};

use doca_sys as sys;

use crate::area::Area;
use crate::device::{Device, EngineCaps};
use crate::engine::ProgressEngine;
use crate::error::{Code, Error};
use crate::inventory::{Chain, Inventory};
use crate::task::{self, Fired, Task};

pub use operation::{Completion, CompressedFormat, Depth, OperationKind, OperationOutput, Refused, Source};

/// Longest time that a stopping context may take to return its tasks; engines need microseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// `doca_ctx_states`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextState {
    Idle,
    Starting,
    Running,
    Stopping,
}

impl ContextState {
    /// The caller has a live context.
    pub(crate) fn of(base: *mut sys::doca_ctx) -> Self {
        let mut state = sys::doca_ctx_states::DOCA_CTX_STATE_IDLE;
        // SAFETY: the context is live and `state` a valid place; the getter cannot fail on these.
        let _ = unsafe { call!(doca_ctx_get_state(base, &raw mut state)) };
        match state {
            sys::doca_ctx_states::DOCA_CTX_STATE_RUNNING => Self::Running,
            sys::doca_ctx_states::DOCA_CTX_STATE_STARTING => Self::Starting,
            sys::doca_ctx_states::DOCA_CTX_STATE_STOPPING => Self::Stopping,
            _ => Self::Idle,
        }
    }
}

struct Operation {
    ticket: u64,
    source: Option<Source>,
    destination: Option<Area>,
    tasks_pending: usize,
    outcome: Result<OperationOutput, Error>,
}

struct InFlight {
    operation: usize,
    /// What a transfer moves; an inflation says itself what it wrote.
    bytes: Option<usize>,
    task: Task,
    source: Chain,
    destination: Chain,
}

/// A place of the task table. The generation makes a stale user data word harmless.
struct TaskEntry {
    generation: u32,
    in_flight: Option<InFlight>,
}

enum Raw {
    Compress(*mut sys::doca_compress),
    Dma(*mut sys::doca_dma),
}

/// A decompress or DMA context with its task pool, its buffers and its table of operations in flight.
pub struct Context {
    raw: Raw,
    base: *mut sys::doca_ctx,
    caps: EngineCaps,
    sink: usize,
    fired: Vec<Fired>,
    places: Vec<TaskEntry>,
    places_free: Vec<usize>,
    operations: Vec<Option<Operation>>,
    operations_free: Vec<usize>,
    /// Tasks that the device answered AGAIN to, oldest first.
    waiting: VecDeque<usize>,
    ended: VecDeque<usize>,
    inventory: Inventory,
    engine: ProgressEngine,
    _device: Device,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("kind", &self.kind())
            .field("state", &self.state())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

impl Context {
    /// A started decompress context for the given formats.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` if the device lacks one of the formats, else what the DOCA call answered.
    pub fn decompress(
        engine: &ProgressEngine,
        device: &Device,
        formats: &[CompressedFormat],
        depth: Depth,
    ) -> Result<Self, Error> {
        let unsupported = Error::new("doca_compress_cap_task_decompress_deflate_is_supported", Code::NOT_SUPPORTED);
        let mut caps: Option<EngineCaps> = None;
        for format in formats {
            let own = match format {
                CompressedFormat::Deflate => device.info().inflate,
                CompressedFormat::Lz4Block => device.info().lz4_block,
            };
            let own = own.ok_or(unsupported)?;
            let least = caps.unwrap_or(own);
            caps = Some(EngineCaps {
                bytes_max: own.bytes_max.min(least.bytes_max),
                list_max: own.list_max.min(least.list_max),
            });
        }
        let caps = caps.ok_or(unsupported)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the device is open; `raw` is a valid place.
        unsafe { call!(doca_compress_create(device.raw(), &raw mut raw)) }?;
        // SAFETY: created just above.
        let base = unsafe { sys::doca_compress_as_ctx(raw) };
        // The pools of both task types are sized for the worst mix.
        let tasks = depth.tasks as u32;
        let configure = || formats.iter().try_for_each(|format| task::configure_decompress(raw, *format, tasks));
        Self::start(Raw::Compress(raw), base, caps, configure, depth, 2 * depth.tasks, engine, device)
    }

    /// A started DMA context.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` if the device has no DMA, else what the DOCA call answered.
    pub fn dma(engine: &ProgressEngine, device: &Device, depth: Depth) -> Result<Self, Error> {
        let unsupported = Error::new("doca_dma_cap_task_memcpy_is_supported", Code::NOT_SUPPORTED);
        let caps = device.info().dma.ok_or(unsupported)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the device is open; `raw` is a valid place.
        unsafe { call!(doca_dma_create(device.raw(), &raw mut raw)) }?;
        // SAFETY: created just above.
        let base = unsafe { sys::doca_dma_as_ctx(raw) };
        let configure = || task::configure_dma(raw, depth.tasks as u32);
        let buffers = depth.tasks * 2 * caps.list_max as usize;
        Self::start(Raw::Dma(raw), base, caps, configure, depth, buffers, engine, device)
    }

    #[allow(clippy::too_many_arguments)]
    fn start(
        raw: Raw,
        base: *mut sys::doca_ctx,
        caps: EngineCaps,
        configure: impl FnOnce() -> Result<(), Error>,
        depth: Depth,
        buffers: usize,
        engine: &ProgressEngine,
        device: &Device,
    ) -> Result<Self, Error> {
        let inventory = match Inventory::new(buffers) {
            Ok(inventory) => inventory,
            Err(error) => {
                destroy(&raw);
                return Err(error);
            }
        };
        let context = Self {
            raw,
            base,
            caps,
            sink: task::open_sink(depth.tasks),
            fired: Vec::with_capacity(depth.tasks),
            places: (0..depth.tasks).map(|_| TaskEntry { generation: 0, in_flight: None }).collect(),
            places_free: (0..depth.tasks).rev().collect(),
            operations: (0..depth.operations).map(|_| None).collect(),
            operations_free: (0..depth.operations).rev().collect(),
            waiting: VecDeque::with_capacity(depth.tasks),
            ended: VecDeque::with_capacity(depth.operations),
            inventory,
            engine: engine.clone(),
            _device: device.clone(),
        };
        let user = sys::doca_data { u64_: context.sink as u64 };
        // SAFETY: context and engine are live, the context idle; this is the order the DOCA guide asks for.
        unsafe { call!(doca_pe_connect_ctx(engine.raw(), base)) }?;
        configure()?;
        // SAFETY: idle and connected.
        unsafe { call!(doca_ctx_set_user_data(base, user)).and_then(|()| call!(doca_ctx_start(base))) }?;
        Ok(context)
    }

    #[must_use]
    pub fn kind(&self) -> OperationKind {
        match self.raw {
            Raw::Compress(_) => OperationKind::Decompress,
            Raw::Dma(_) => OperationKind::Dma,
        }
    }

    #[must_use]
    pub fn caps(&self) -> EngineCaps {
        self.caps
    }

    #[must_use]
    pub fn state(&self) -> ContextState {
        ContextState::of(self.base)
    }

    /// Number of operations accepted and not yet returned by [`Self::poll`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.operations.len() - self.operations_free.len()
    }

    /// Whether one more operation of one task would be accepted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.operations_free.is_empty() && !self.places_free.is_empty()
    }

    /// Tasks that a transfer of this many runs and bytes may take; it has to be at most [`Self::tasks_max`], or it
    /// never fits.
    #[must_use]
    pub fn tasks_for(&self, runs: usize, bytes: usize) -> usize {
        // A task ends where its list is full or its bytes are; of the latter any two neighbours are more than one's
        // worth.
        runs.div_ceil(self.caps.list_max as usize) + 2 * (bytes as u64 / self.caps.bytes_max) as usize
    }

    /// Runs of one transfer of this many bytes that always fit, however full their tasks become: at least one.
    #[must_use]
    pub fn runs_max(&self, bytes: usize) -> usize {
        let cut = self.tasks_for(0, bytes);
        (self.places.len().saturating_sub(cut) * self.caps.list_max as usize).max(1)
    }

    /// Tasks in flight at most.
    #[must_use]
    pub fn tasks_max(&self) -> usize {
        self.places.len()
    }

    /// Whether the device had no room for a task: it is offered again by [`Self::poll`], so do not sleep for long.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn room(&self, tasks: usize) -> Result<(), Error> {
        // One that never fits must not wait for room.
        let code = if tasks > self.places.len() { Code::TOO_BIG } else { Code::AGAIN };
        let room = !self.operations_free.is_empty() && self.places_free.len() >= tasks;
        room.then_some(()).ok_or(Error::new("doca_task_submit", code))
    }

    fn open(&mut self, ticket: u64, source: Option<Source>, destination: Option<Area>) -> usize {
        let index = self.operations_free.pop().expect("room was checked");
        let outcome = Ok(OperationOutput { bytes: 0, crc: None });
        self.operations[index] = Some(Operation { ticket, source, destination, tasks_pending: 0, outcome });
        index
    }

    /// Makes one task of an operation and submits it; takes the chains in every case.
    fn launch(
        &mut self,
        operation: usize,
        bytes: Option<usize>,
        source: Chain,
        destination: Chain,
        make: impl FnOnce(u64) -> Result<Task, Error>,
    ) -> Result<(), Error> {
        let place = self.places_free.pop().expect("room was checked");
        let user = u64::from(self.places[place].generation) << 32 | place as u64;
        let made = make(user).and_then(|task| match task.submit() {
            Ok(()) => Ok((task, false)),
            Err(error) if error.is_back_pressure() => Ok((task, true)),
            Err(error) => {
                task.free();
                Err(error)
            }
        });
        match made {
            Ok((task, waits)) => {
                self.places[place].in_flight = Some(InFlight { operation, bytes, task, source, destination });
                if let Some(operation) = self.operations[operation].as_mut() {
                    operation.tasks_pending += 1;
                }
                if waits {
                    self.waiting.push_back(place);
                }
                Ok(())
            }
            Err(error) => {
                self.inventory.put(source);
                self.inventory.put(destination);
                self.places_free.push(place);
                Err(error)
            }
        }
    }

    /// Ends the launch of an operation: with no task in flight it is refused, with some it will fail when they end.
    fn settle(&mut self, index: usize, launched: Result<(), Error>) -> Result<(), Refused> {
        let Err(error) = launched else { return Ok(()) };
        let slot = &mut self.operations[index];
        if let Some(operation) = slot.as_mut()
            && operation.tasks_pending > 0
        {
            operation.outcome = Err(error);
            return Ok(());
        }
        let operation = slot.take().expect("opened by the caller");
        self.operations_free.push(index);
        Err(Refused { error, source: operation.source, destination: operation.destination })
    }

    /// The next operation that has ended. Call [`ProgressEngine::progress`] before, and this until `None`.
    pub fn poll(&mut self) -> Option<Completion> {
        if self.ended.is_empty() {
            self.resubmit();
            self.collect();
        }
        let index = self.ended.pop_front()?;
        let Operation { ticket, source, destination, outcome, .. } = self.operations[index].take()?;
        self.operations_free.push(index);
        Some(Completion { ticket, outcome, source, destination })
    }

    /// Offers tasks again that the device had no room for.
    fn resubmit(&mut self) {
        while let Some(&place) = self.waiting.front() {
            let Some(in_flight) = &self.places[place].in_flight else { break };
            match in_flight.task.submit() {
                Err(error) if error.is_back_pressure() => break,
                submitted => {
                    self.waiting.pop_front();
                    if let Err(error) = submitted {
                        self.end_task(place, Err(error));
                    }
                }
            }
        }
    }

    /// Takes what the callbacks recorded, frees the tasks, and ends operations whose last task that was.
    fn collect(&mut self) {
        let mut fired = std::mem::take(&mut self.fired);
        task::take_fired(self.sink, &mut fired);
        for Fired { user, succeeded } in fired.drain(..) {
            let (place, generation) = ((user & u64::from(u32::MAX)) as usize, (user >> 32) as u32);
            let known =
                self.places.get(place).filter(|p| p.generation == generation).and_then(|p| p.in_flight.as_ref());
            let Some(InFlight { bytes, task, destination, .. }) = known else {
                log::error!("a completion names task {place} of generation {generation}, which is not in flight");
                continue;
            };
            let outcome = match succeeded {
                true => {
                    Ok(OperationOutput { bytes: bytes.unwrap_or_else(|| destination.data_bytes()), crc: task.crc() })
                }
                false => Err(task.status()),
            };
            self.end_task(place, outcome);
        }
        self.fired = fired;
    }

    fn end_task(&mut self, place: usize, outcome: Result<OperationOutput, Error>) {
        let slot = &mut self.places[place];
        let Some(in_flight) = slot.in_flight.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        in_flight.task.free();
        self.inventory.put(in_flight.source);
        self.inventory.put(in_flight.destination);
        self.places_free.push(place);
        let Some(operation) = self.operations[in_flight.operation].as_mut() else { return };
        operation.tasks_pending -= 1;
        match (&mut operation.outcome, outcome) {
            (Ok(total), Ok(part)) => *total = OperationOutput { bytes: total.bytes + part.bytes, crc: part.crc },
            (result @ Ok(_), Err(error)) => *result = Err(error),
            (Err(_), _) => {}
        }
        if operation.tasks_pending == 0 {
            self.ended.push_back(in_flight.operation);
        }
    }

    /// Brings a stopped context back: waits until DOCA has returned every task, starts it again. The completions are
    /// still there for [`Self::poll`]; operations whose tasks were flushed end with an error. Nothing to do if running.
    ///
    /// # Errors
    /// `TIME_OUT` if the device does not return its tasks, else what `doca_ctx_start` answered.
    pub fn restart(&mut self) -> Result<(), Error> {
        if self.state() == ContextState::Running {
            return Ok(());
        }
        self.come_to_idle()?;
        // SAFETY: idle, connected, configured.
        unsafe { call!(doca_ctx_start(self.base)) }
    }

    fn come_to_idle(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.state() != ContextState::Idle {
            while let Some(place) = self.waiting.pop_front() {
                self.end_task(place, Err(Error::new("doca_task_submit", Code::BAD_STATE)));
            }
            let happened = self.engine.progress();
            self.collect();
            if Instant::now() > deadline {
                return Err(Error::new("doca_ctx_stop", Code(9)));
            }
            if !happened {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is live; stopping an idle one is fine (SUCCESS), with tasks in flight it is IN_PROGRESS.
        let _ = unsafe { call!(doca_ctx_stop(self.base)) };
        if let Err(error) = self.come_to_idle() {
            log::error!("{:?} context leaked with its memory: {error}", self.kind());
            // The device may still write: the memory of these operations must never be freed.
            std::mem::forget(std::mem::take(&mut self.operations));
            return;
        }
        destroy(&self.raw);
        task::close_sink(self.sink);
    }
}

fn destroy(raw: &Raw) {
    // SAFETY: created in `decompress` or `dma`, idle, and destroyed only here, once.
    let destroyed = unsafe {
        match *raw {
            Raw::Compress(compress) => call!(doca_compress_destroy(compress)),
            Raw::Dma(dma) => call!(doca_dma_destroy(dma)),
        }
    };
    if let Err(error) = destroyed {
        log::error!("context leaked: {error}");
    }
}
