//! Requests are checked and wait here; none of it blocks.

use std::time::Instant;

use block::{ChunkKey, Importance};
use mailbox::{Operation, Tokens, chunks_max};

use super::{Client, JOBS_MAX, RequestId, Transfer};
use crate::error::Error;
use crate::job::{ClientJob, JobSpec};

impl Client {
    /// Asks how many leading chunks are stored. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, or no chunks.
    pub fn post_lookup(&mut self, keys: &[ChunkKey]) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Lookup, &Transfer::new(keys, &[]))
    }

    /// Says what chunks are worth, one importance each, whether they are stored or not. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, no chunks, or another number of importances.
    pub fn post_rate(&mut self, keys: &[ChunkKey], importances: &[Importance]) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Rate, &Transfer { importances, ..Transfer::new(keys, &[]) })
    }

    /// Restores chunks into pages.
    ///
    /// # Errors
    /// Full, gone, or a transfer that does not fit the layout.
    pub fn post_fetch(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Fetch, transfer)
    }

    /// Stores chunks from pages.
    ///
    /// # Errors
    /// As for a fetch.
    pub fn post_store(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Store, transfer)
    }

    /// Asks for an answer and nothing else.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_ping(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Ping)
    }

    /// Asks for limits, counters and times as JSON text.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_status(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Status)
    }

    /// Asks what requests waited for lately, as JSON text. A card from before it answers `Unsupported`.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_trace(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Trace)
    }

    /// Asks the card to finish what runs and to take nothing new.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_drain(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Drain)
    }

    /// Asks the card to take requests again after a drain.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_resume(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Resume)
    }

    /// Asks the card to end after its answers.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_stop(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Stop)
    }

    fn post_control(&mut self, operation: Operation) -> Result<RequestId, Error> {
        self.enqueue(JobSpec {
            operation,
            keys: Box::new([]),
            pages: Box::new([]),
            importances: Box::new([]),
            tokens: Tokens::ALL,
            target: 0,
            deadline: None,
            again: false,
            chunk_tokens: 1,
            part_chunks: 1,
        })
    }

    fn post_chunks(&mut self, operation: Operation, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        let Transfer { keys, pages, tokens, deadline, importances, again } = *transfer;
        let name = format!("{operation:?}").to_lowercase();
        let wrong = |what: String| Err(Error::input(&name, what, "correct the request"));
        if keys.is_empty() {
            return wrong("no chunks".to_owned());
        }
        let may_be_unsaid = operation != Operation::Rate && importances.is_empty();
        if importances.len() != keys.len() && !may_be_unsaid {
            return wrong(format!("{} importances for {} chunks", importances.len(), keys.len()));
        }
        let (mut chunk_tokens, mut pages_per_chunk) = (1, 0);
        if operation.takes_pages() {
            let Some(layout) = &self.layout else {
                return wrong("this session has no memory".to_owned());
            };
            chunk_tokens = u32::from(layout.geometry().chunk_tokens);
            pages_per_chunk = layout.pages_per_chunk();
            let (expected, limit) = (keys.len() * pages_per_chunk, layout.form().page_count);
            if pages.len() != expected {
                return wrong(format!("{} page numbers for {} chunks, expected {expected}", pages.len(), keys.len()));
            }
            if let Some(page) = pages.iter().find(|&&page| page >= limit) {
                return wrong(format!("page {page}, the layout has {limit}"));
            }
            let all = keys.len() as u64 * u64::from(chunk_tokens);
            let last = all - u64::from(chunk_tokens);
            let end = if tokens.end == u32::MAX { all } else { u64::from(tokens.end) };
            let fits = tokens.start < chunk_tokens && u64::from(tokens.start) < end && end > last && end <= all;
            if tokens != Tokens::ALL && !fits {
                let Tokens { start, end } = tokens;
                return wrong(format!(
                    "tokens {start}..{end} do not start in the first of {} chunks and end in the last",
                    keys.len()
                ));
            }
        }
        let part_chunks = self.part_chunks.min(chunks_max(pages_per_chunk)).min(self.card_facts.chunks_max as usize);
        self.enqueue(JobSpec {
            operation,
            keys: keys.into(),
            pages: pages.into(),
            importances: importances.into(),
            tokens,
            target: 0,
            deadline,
            again,
            chunk_tokens,
            part_chunks: part_chunks.max(1),
        })
    }

    fn enqueue(&mut self, ask: JobSpec) -> Result<RequestId, Error> {
        if let Some(gone) = self.gone {
            return Err(gone.into());
        }
        if self.jobs.len() + self.ready.len() >= JOBS_MAX {
            return Err(Error::Full { limit: JOBS_MAX });
        }
        let id = self.fresh_id();
        self.jobs.push_back(ClientJob::new(id, ask, Instant::now()));
        self.pump()?;
        Ok(RequestId(id))
    }
}
