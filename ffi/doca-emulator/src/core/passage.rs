//! The way to the memory of a task's buffers, open while somebody copies.

use std::sync::atomic::Ordering;

use crate::core::job::{EngineJob, Segment};
use crate::ffi::Fault;
use crate::memory::copy::{self, Copier, Piece};
use crate::memory::region::Reach;

/// Copies what a producer sends out of its buffers.
pub(crate) fn gather(copier: &mut Copier, job: &EngineJob) -> Result<Vec<u8>, Fault> {
    let (sources, _) = job.lists();
    let _passage = Passage::open(sources)?;
    let mut list = Vec::new();
    // SAFETY: the passage keeps the regions reachable until the end of this function.
    unsafe { pieces(&mut list, sources) };
    let mut bytes = vec![0; copy::total(&list)];
    let room = bytes.len();
    // SAFETY: as above.
    unsafe { copier.copy(&list, &[Piece::here(&mut bytes)], room, &mut []) }?;
    Ok(bytes)
}

/// Copies what came for a consumer into its buffers; the bytes, or `TOO_BIG`.
pub(crate) fn scatter(copier: &mut Copier, job: &EngineJob, bytes: &[u8]) -> Result<usize, Fault> {
    let (_, destinations) = job.lists();
    let _passage = Passage::open(destinations)?;
    let mut list = Vec::new();
    // SAFETY: the passage keeps the regions reachable until the end of this function.
    unsafe { pieces(&mut list, destinations) };
    if bytes.len() > copy::total(&list) {
        return Err(Fault::DOCA_ERROR_TOO_BIG);
    }
    let mut source = bytes.to_vec();
    // SAFETY: as above.
    unsafe { copier.copy(&[Piece::here(&mut source)], &list, bytes.len(), &mut []) }?;
    Ok(bytes.len())
}

/// # Safety
/// The pieces are gone before the passage of their segments closes.
pub(crate) unsafe fn pieces(list: &mut Vec<Piece>, segments: &[Segment]) {
    list.clear();
    for segment in segments {
        // SAFETY: the caller's word.
        list.push(unsafe { Piece::of(segment.region(), segment.addr, segment.len) });
    }
}

/// Leave to use the regions of a list: exporters in this process are kept from stopping, those elsewhere were alive
/// when it opened.
pub(crate) struct Passage<'a> {
    entered: &'a [Segment],
}

impl<'a> Passage<'a> {
    pub(crate) fn open(segments: &'a [Segment]) -> Result<Passage<'a>, Fault> {
        let mut passage = Passage { entered: &[] };
        for (index, segment) in segments.iter().enumerate() {
            if segment.is_owner {
                if segment.region().is_gone.load(Ordering::Relaxed) {
                    return Err(Fault::DOCA_ERROR_IO_FAILED);
                }
                match &segment.region().reach {
                    Reach::Own => {}
                    Reach::Neighbour(exporter) => exporter.gate.enter()?,
                    Reach::Foreign(foreign) if foreign.is_alive() => {}
                    Reach::Foreign(_) => return Err(Fault::DOCA_ERROR_IO_FAILED),
                }
            }
            passage.entered = &segments[..=index];
        }
        Ok(passage)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        for segment in self.entered.iter().filter(|segment| segment.is_owner) {
            if let Reach::Neighbour(exporter) = &segment.region().reach {
                exporter.gate.leave();
            }
        }
    }
}
