//! Safe wrapper over the part of DOCA that a data plane needs: device, memory, progress engine,
//! decompress, DMA and Comch.
//!
//! What it guarantees: no use of memory that an engine owns (an [`Area`] moves into its task and comes back with the
//! [`Completion`]; a [`Loan`] keeps its part of a [`Slab`] from being written), no pointer as DOCA user data (a task
//! carries its place in a table and that place's generation), no unwinding through C (callbacks record one word and
//! return), parents that outlive their children, and a stopped context restarted as one operation
//! ([`Context::restart`]).
//!
//! What it refuses: threads. A [`ProgressEngine`] and its contexts belong to the thread that made them; areas, regions,
//! devices and Comch clients may move between threads.
//!
//! The same source compiles against the emulator and the SDK (`doca-sys` decides); names follow the DOCA programming
//! guide, without the prefix.

#[macro_use]
mod error;
mod area;
pub mod comch;
mod context;
mod device;
mod engine;
mod inventory;
mod mapping;
mod representor;
mod slab;
mod task;
pub mod version;

pub use area::{AREA_ALIGNMENT, Area, Arena, HUGE_PAGE_BYTES};
pub use context::{
    Completion, CompressedFormat, Context, ContextState, Depth, OperationKind, OperationOutput, Refused, Source,
};
pub use device::{Device, DeviceInfo, EngineCaps, Selector};
pub use doca_sys::FLAVOUR;
pub use engine::ProgressEngine;
pub use error::{Code, Error};
pub use mapping::{Access, Dmabuf, Export, Mapping, Remote, RemoteRun};
pub use representor::{Representor, RepresentorInfo};
pub use slab::{Loan, Slab};
