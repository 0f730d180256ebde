//! Why was this fetch late? What each block, chunk and request waited for, in fixed memory, written by the engine
//! thread.
//!
//! ```text
//!   fetch   seat -> open -> slot -> fetch -> inflate -> dequantize -> write       store   seat -> begin -> slot -> gather
//!           (each: queued until somebody began, worked until it was done)                 -> encode -> commit
//! ```
//! A **span** is one stage of one block (or of one chunk, or of one request): for whom, how long it was queued and how
//! long it was worked on. The last [`SPANS`] are kept, and of each request the slowest, so that a request that is late
//! can say at once what it waited for, also if that goes on: [`RequestTrace::judge`] keeps the last [`LATES`] of those
//! and says them in the log, one a second at most.
//!
//! The clock is the turn's of the engine thread, so a span costs a few stores; the workers time their own work.

use std::fmt;
use std::time::{Duration, Instant};

use heapless::HistoryBuf;
use mailbox::Operation;

use crate::count::answers::Asked;

/// Spans kept: as many as fit an answer of the mailbox.
pub(crate) const SPANS: usize = 256;
/// Late requests kept.
pub(crate) const LATES: usize = 32;
/// Least time between two late requests in the log.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Stage that a block, a chunk or a request is in or waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TraceStage {
    /// A request's next chunk waits for a seat: behind requests of its session before it, or chunks of others.
    Seat,
    /// The store counts the leading keys.
    Lookup,
    Open,
    /// A chunk waits for what another session's request fetches of it.
    Follow,
    /// A chunk's next block waits for a slot.
    Slot,
    Fetch,
    Inflate,
    Dequantize,
    Write,
    /// What was moved is read back and compared (`--verify-dma`).
    Verify,
    Begin,
    Gather,
    Encode,
    Commit,
}

impl TraceStage {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seat => "seat",
            Self::Lookup => "lookup",
            Self::Open => "open",
            Self::Follow => "follow",
            Self::Slot => "slot",
            Self::Fetch => "fetch",
            Self::Inflate => "inflate",
            Self::Dequantize => "dequantize",
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Begin => "begin",
            Self::Gather => "gather",
            Self::Encode => "encode",
            Self::Commit => "commit",
        }
    }

    /// Names what to look at if it is slow.
    #[must_use]
    pub(crate) fn whose(self) -> &'static str {
        match self {
            Self::Seat => "--chunks, other requests",
            Self::Slot => "--slots, other requests",
            Self::Follow => "the session that fetches the same chunk",
            Self::Lookup | Self::Open | Self::Fetch | Self::Begin | Self::Commit => "store",
            Self::Inflate => "inflate engine",
            Self::Dequantize => "dequantize workers",
            Self::Write | Self::Verify | Self::Gather => "DMA engine",
            Self::Encode => "encode workers, store",
        }
    }
}

/// A request, as its host and the log know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asker {
    /// Id of the session.
    pub session: u32,
    /// The host's number of the request.
    pub request: u64,
}

/// Part of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestPart {
    /// `None`: the request as a whole.
    pub chunk: Option<u32>,
    /// `None`: the chunk as a whole.
    pub block: Option<u16>,
}

impl RequestPart {
    pub(crate) const ALL: Self = Self { chunk: None, block: None };

    #[must_use]
    pub(crate) fn chunk(index: u32) -> Self {
        Self { chunk: Some(index), block: None }
    }

    #[must_use]
    pub(crate) fn block(chunk: u32, block: u16) -> Self {
        Self { chunk: Some(chunk), block: Some(block) }
    }
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TraceSpan {
    /// End, milliseconds since the start.
    pub at_ms: u64,
    pub asker: Asker,
    pub piece: RequestPart,
    pub stage: TraceStage,
    pub queued: Duration,
    pub worked: Duration,
    /// The request was answered before it had ended.
    pub unfinished: bool,
}

impl TraceSpan {
    #[must_use]
    pub(crate) fn took(&self) -> Duration {
        self.queued + self.worked
    }
}

impl fmt::Display for TraceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stage.name())?;
        if let Some(chunk) = self.piece.chunk {
            write!(f, " of chunk {chunk}")?;
        }
        if let Some(block) = self.piece.block {
            write!(f, " block {block}")?;
        }
        let (queued, worked) = (self.queued.as_millis(), self.worked.as_millis());
        let so_far = if self.unfinished { " so far" } else { "" };
        match (queued, worked) {
            (queued, 0) => write!(f, " waited {queued} ms{so_far}")?,
            (0, worked) => write!(f, " took {worked} ms{so_far}")?,
            (queued, worked) => write!(f, " waited {queued} ms and took {worked} ms{so_far}")?,
        }
        write!(f, " ({})", self.stage.whose())
    }
}

/// A request that was answered after its deadline, or slower than the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Late {
    pub at_ms: u64,
    pub asker: Asker,
    pub operation: Operation,
    pub took: Duration,
    /// The deadline ended it.
    pub cut: bool,
    pub chunks_done: u32,
    pub chunk_count: u32,
    pub slowest: Option<TraceSpan>,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asker { session, request } = self.asker;
        let what = Asked::of(self.operation).name();
        write!(f, "session {session} request {request}: {what} took {} ms", self.took.as_millis())?;
        if self.cut {
            write!(f, " and was cut by its deadline")?;
        }
        write!(f, ", {} of {} chunks", self.chunks_done, self.chunk_count)?;
        match &self.slowest {
            Some(slowest) => write!(f, "; slowest: {slowest}"),
            None => write!(f, "; it waited for its turn"),
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    started: Instant,
    spans: HistoryBuf<TraceSpan, SPANS>,
    lates: HistoryBuf<Late, LATES>,
    /// Age from which on a request counts as late whatever its deadline; `None`: at no age.
    slow: Option<Duration>,
    said: Option<Instant>,
    unsaid: u64,
}

impl RequestTrace {
    #[must_use]
    pub(crate) fn new(started: Instant, slow: Option<Duration>) -> Self {
        Self { started, spans: HistoryBuf::new(), lates: HistoryBuf::new(), slow, said: None, unsaid: 0 }
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64
    }

    /// Keeps a stage that has ended at `now`.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        asker: Asker,
        piece: RequestPart,
        stage: TraceStage,
        (queued, worked): (Duration, Duration),
    ) -> TraceSpan {
        let span = TraceSpan { at_ms: self.ms(now), asker, piece, stage, queued, worked, unfinished: false };
        self.spans.write(span);
        span
    }

    /// Keeps an answered request if it is late, and logs it, unless another was logged a moment ago.
    pub(crate) fn judge(&mut self, now: Instant, late: Late) {
        if !late.cut && self.slow.is_none_or(|slow| late.took < slow) {
            return;
        }
        self.lates.write(Late { at_ms: self.ms(now), ..late });
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < SAID_EVERY) {
            self.unsaid += 1;
            return;
        }
        self.said = Some(now);
        match std::mem::take(&mut self.unsaid) {
            0 => log::warn!("{late}"),
            unsaid => log::warn!("{late} ({unsaid} more late requests since the last line)"),
        }
    }

    /// Iterates, newest first.
    pub(crate) fn spans(&self) -> impl Iterator<Item = &TraceSpan> {
        let (older, newer) = self.spans.as_slices();
        newer.iter().rev().chain(older.iter().rev())
    }

    /// Iterates, newest first.
    pub(crate) fn lates(&self) -> impl Iterator<Item = &Late> {
        let (older, newer) = self.lates.as_slices();
        newer.iter().rev().chain(older.iter().rev())
    }
}

/// Returns the slower of what a request has waited for so far and one more stage.
#[must_use]
pub(crate) fn slower(so_far: Option<TraceSpan>, span: TraceSpan) -> Option<TraceSpan> {
    match so_far {
        Some(slowest) if slowest.took() >= span.took() => Some(slowest),
        _ => Some(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker { session: 7, request: 12 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn late(took: Duration, cut: bool, slowest: Option<TraceSpan>) -> Late {
        Late { at_ms: 0, asker: ASKER, operation: Operation::Fetch, took, cut, chunks_done: 3, chunk_count: 8, slowest }
    }

    #[test]
    fn the_slowest_stage_is_what_a_late_request_says() {
        let now = Instant::now();
        let mut trace = RequestTrace::new(now, None);
        let mut slowest = None;
        for (block, worked) in [(4, 10), (5, 1100), (6, 300)] {
            let span = trace.add(now, ASKER, RequestPart::block(3, block), TraceStage::Fetch, (ms(2), ms(worked)));
            slowest = slower(slowest, span);
        }
        assert_eq!(
            late(ms(1240), true, slowest).to_string(),
            "session 7 request 12: fetch took 1240 ms and was cut by its deadline, 3 of 8 chunks; slowest: fetch of chunk 3 \
             block 5 waited 2 ms and took 1100 ms (store)"
        );
        let span = TraceSpan {
            unfinished: true,
            worked: ms(0),
            piece: RequestPart::ALL,
            stage: TraceStage::Lookup,
            ..slowest.unwrap()
        };
        assert_eq!(span.to_string(), "lookup waited 2 ms so far (store)");
    }

    /// `cargo test --release -p dpu-app --lib what_a_span_costs -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn what_a_span_costs() {
        const SPANS: u32 = 4_000_000;
        let now = Instant::now();
        let mut trace = RequestTrace::new(now, None);
        let mut slowest = None;
        let since = Instant::now();
        for chunk in 0..SPANS {
            let parts = (Duration::from_nanos(chunk.into()), ms(1));
            let span = trace.add(std::hint::black_box(now), ASKER, RequestPart::chunk(chunk), TraceStage::Fetch, parts);
            slowest = slower(slowest, span);
        }
        let span = since.elapsed() / SPANS;
        let since = Instant::now();
        (0..SPANS).for_each(|_| _ = std::hint::black_box(Instant::now()));
        println!("a span costs {span:?}, a look at the clock {:?}: {slowest:?}", since.elapsed() / SPANS);
    }

    #[test]
    fn the_last_spans_and_late_requests_are_kept_newest_first() {
        let now = Instant::now();
        let mut trace = RequestTrace::new(now, Some(ms(100)));
        for chunk in 0..SPANS as u32 + 9 {
            trace.add(now, ASKER, RequestPart::chunk(chunk), TraceStage::Open, (ms(0), ms(1)));
        }
        let chunks: Vec<u32> = trace.spans().map(|span| span.piece.chunk.unwrap()).collect();
        assert_eq!(chunks, (9..SPANS as u32 + 9).rev().collect::<Vec<u32>>());
        for took in [99, 100, 500] {
            trace.judge(now, late(ms(took), false, None));
        }
        trace.judge(now, late(ms(1), true, None));
        let took: Vec<Duration> = trace.lates().map(|late| late.took).collect();
        assert_eq!(took, [ms(1), ms(500), ms(100)], "slow, or cut");
        assert_eq!(trace.unsaid, 2, "one line a second");
    }
}
