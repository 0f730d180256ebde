//! Debug mode: what destinations hold until they are written, and who looks.

use crate::core::job::{EngineJob, Segment};
use crate::ffi::{Fault, complain};
use crate::tools::debug::{self, POISON};

/// Debug mode: fills a destination of this process's memory, whose bytes nobody has a right to expect anything of.
pub(crate) fn poison(job: &mut EngineJob) {
    let (sources, destinations) = job.lists();
    let is_apart =
        |d: &Segment| sources.iter().all(|s| s.addr + s.len as u64 <= d.addr || d.addr + d.len as u64 <= s.addr);
    let is_ours = destinations.iter().all(|d| d.region().is_own() && debug::is_mapped(d.addr, d.len) && is_apart(d));
    if is_ours {
        for segment in destinations {
            let first: *mut u8 = std::ptr::with_exposed_provenance_mut(segment.addr as usize);
            // SAFETY: registered memory of this process, mapped as just seen, that the application gave the task to
            // write to.
            unsafe { first.write_bytes(POISON, segment.len) };
        }
    }
    job.is_poisoned = is_ours;
}

/// Debug mode: looks at a task's memory before the engine does.
pub(crate) fn inspect(sources: &[Segment], destinations: &[Segment], is_poisoned: bool) -> Result<(), Fault> {
    if let Some(gone) =
        sources.iter().chain(destinations).find(|s| s.region().is_own() && !debug::is_mapped(s.addr, s.len))
    {
        complain(&format!("debug: {} bytes at {:#x} of a task in flight are not there any more", gone.len, gone.addr));
        return Err(Fault::DOCA_ERROR_IO_FAILED);
    }
    for segment in destinations.iter().filter(|_| is_poisoned) {
        let first: *const u8 = std::ptr::with_exposed_provenance(segment.addr as usize);
        // SAFETY: memory of this process, mapped as just seen. Should somebody write to it now, as they must not, a
        // byte is one thing or the other.
        let is_touched = (0..segment.len).any(|at| unsafe { first.add(at).read_volatile() } != POISON);
        if is_touched {
            complain(&format!(
                "debug: a destination at {:#x} was written to while its task was in flight",
                segment.addr
            ));
        }
    }
    Ok(())
}
