//! Requests are checked and wait here; none of it blocks.

use std::time::Instant;

use block::{ChunkKey, Importance};
use mailbox::{Operation, SECTIONS_MAX, Tokens, chunks_max};

use super::{Client, JOBS_MAX, RequestId, Transfer};
use crate::error::Error;
use crate::job::{ClientJob, JobSpec};

impl Client {
    /// Asks how many leading chunks are stored. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, or no chunks.
    pub fn post_lookup(&mut self, keys: &[ChunkKey]) -> Result<RequestId, Error> {
        self.post_window(keys, 0, 0)
    }

    /// Asks for the greatest n of which the `trailing` chunks before it, of this section, are stored, or all if there
    /// are fewer: what a sliding window needs, or, with 1, a saved state. 0: all, as [`Client::post_lookup`]. A session
    /// without memory may name any section. A card from before it answers `Unsupported`.
    ///
    /// # Errors
    /// Full, gone, no chunks, no such section, or more trailing chunks than the card takes at once.
    pub fn post_window(&mut self, keys: &[ChunkKey], section: u16, trailing: usize) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Lookup, &Transfer { section, ..Transfer::new(keys, &[]) }, trailing)
    }

    /// Says what chunks are worth, one importance each, whether they are stored or not. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, no chunks, or another number of importances.
    pub fn post_rate(&mut self, keys: &[ChunkKey], importances: &[Importance]) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Rate, &Transfer { importances, ..Transfer::new(keys, &[]) }, 0)
    }

    /// Restores chunks into pages.
    ///
    /// # Errors
    /// Full, gone, or a transfer that does not fit the layout.
    pub fn post_fetch(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Fetch, transfer, 0)
    }

    /// Stores chunks from pages.
    ///
    /// # Errors
    /// As for a fetch.
    pub fn post_store(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Store, transfer, 0)
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
            section: 0,
            trailing: 0,
            chunk_tokens: 1,
            part_chunks: 1,
        })
    }

    fn post_chunks(
        &mut self,
        operation: Operation,
        transfer: &Transfer<'_>,
        trailing: usize,
    ) -> Result<RequestId, Error> {
        let Transfer { keys, pages, tokens, deadline, importances, again, section } = *transfer;
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
        if operation.takes_pages() && self.layouts.is_empty() {
            return wrong("this session has no memory".to_owned());
        }
        let sections = if self.layouts.is_empty() { SECTIONS_MAX } else { self.layouts.len() };
        if usize::from(section) >= sections {
            return wrong(format!("section {section} of {sections}"));
        }
        if operation.takes_pages() {
            let layout = &self.layouts[usize::from(section)];
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
        // A window over all chunks is what a look-up without one asks for.
        let trailing = if trailing < keys.len() { trailing } else { 0 };
        if trailing >= part_chunks.max(1) && keys.len() > part_chunks {
            return wrong(format!("{trailing} trailing chunks, fewer than {part_chunks} can be asked for at once"));
        }
        self.enqueue(JobSpec {
            operation,
            keys: keys.into(),
            pages: pages.into(),
            importances: importances.into(),
            tokens,
            target: 0,
            deadline,
            again,
            // A session without memory has no sections.
            section: if self.layouts.is_empty() { 0 } else { section },
            trailing,
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
