//! Imports of what a host has exported, on a thread of their own: an import asks the host's side, a driver or another
//! process, and whoever does not answer there must not hold the engine thread. It is part of an attach, and may
//! allocate.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use doca::{Device, Remote};
use mailbox::attach::{Attachment, PAGE_REGION, Reason, Refuse, RegionExport};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An attach and its imported exports: the page and the regions.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) attachment: Attachment,
    pub(crate) exports: Result<(Remote, Vec<Remote>), Refuse>,
}

/// An attach whose exports are being imported.
#[derive(Debug)]
pub(crate) struct Importing {
    /// Descriptor that is readable once the import is over.
    done: Arc<EventFd>,
    imported: Receiver<Imported>,
}

impl Importing {
    /// Begins an import; nothing new is imported after `until`.
    ///
    /// # Errors
    /// Fails if no descriptor or no thread is left.
    pub(crate) fn begin(device: &Device, attachment: Attachment, until: Instant) -> std::io::Result<Self> {
        let done = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (tell, imported) = mpsc::channel();
        let (device, bell) = (device.clone(), Arc::clone(&done));
        thread::Builder::new().name(String::from("import")).spawn(move || {
            let exports = import(&device, &attachment, until);
            // Nobody listens any more if the attach took too long.
            let _ = tell.send(Imported { attachment, exports });
            let _ = bell.write(1);
        })?;
        Ok(Self { done, imported })
    }

    /// Takes the result; `None`: it goes on.
    pub(crate) fn take(&self) -> Option<Imported> {
        self.imported.try_recv().ok()
    }
}

impl AsFd for Importing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Imports what a host has exported and checks it against what it said.
fn import(device: &Device, attachment: &Attachment, until: Instant) -> Result<(Remote, Vec<Remote>), Refuse> {
    let one = |export: &RegionExport, region: u64| {
        let refusal = Refuse::new(Reason::Region, 0, region);
        if Instant::now() >= until {
            return Err(refusal);
        }
        Remote::import(device, &export.blob)
            .inspect_err(|error| log::warn!("{}: {error}", attachment.client))
            .ok()
            .filter(|remote| (remote.address(), remote.bytes()) == (export.base, export.bytes))
            .ok_or(refusal)
    };
    let page = one(&attachment.page, PAGE_REGION.into())?;
    let regions = attachment.regions.iter().enumerate().map(|(number, export)| one(export, number as u64));
    Ok((page, regions.collect::<Result<_, _>>()?))
}
