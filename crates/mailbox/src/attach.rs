//! The words of the attach channel: how a host introduces itself, its memory and its layout, and what the card answers.
//!
//! ```text
//! host                                       card
//!  Hello, Region (page), Region..., Layout..., Commit  ->      collected by `Intake`
//!                        Section, Layout..., ^                of each section after the first
//!                                     <-  Welcome | Refuse
//!  Doorbell  <->  Doorbell                                     either way, afterwards
//!  Bye       <->  Bye
//! ```
//! One message each, at most [`ATTACH_MESSAGE_MAX`] bytes, on a channel that keeps messages whole. Encoded into and
//! decoded from byte slices without allocation; every field is checked on decode. The 16-byte head and the body of
//! `Refuse` are the same in every version, so that two versions can at least tell each other apart. Byte tables:
//! docs/mailbox.md.

mod answer;
mod bases;
mod error;
mod hello;
mod intake;
mod message;
mod region;
mod section;
#[cfg(test)]
mod tests;

pub use answer::{Farewell, Reason, Refuse, Welcome};
pub use bases::{Bases, LayoutPart, RawBases, layout_parts};
pub use error::AttachError;
pub use hello::Hello;
pub use intake::{Attachment, Intake, IntakeState, RegionExport};
pub use message::{Commit, Message};
pub use region::Region;
pub use section::SectionShape;

/// Default name of dpu-app's service, where services have names (DOCA Comch).
pub const SERVICE_NAME: &str = "kvlane";
/// Largest message. A DOCA Comch channel carries about 4 KB.
pub const ATTACH_MESSAGE_MAX: usize = 4000;
/// KV regions of one session, beside the page.
pub const REGIONS_MAX: usize = 256;
/// Largest export blob.
pub const EXPORT_BYTES_MAX: usize = 1024;
/// Longest client, card or recipe name.
pub const NAME_BYTES_MAX: usize = 64;
/// Region index of the page itself.
pub const PAGE_REGION: u16 = u16::MAX;
/// Bases that one layout message carries.
pub const BASES_PER_MESSAGE: usize = (ATTACH_MESSAGE_MAX - HEAD_BYTES - LAYOUT_BYTES) / BASE_BYTES;

const ATTACH_MAGIC: u32 = u32::from_le_bytes(*b"kvat");
const HEAD_BYTES: usize = 16;
const HELLO_BYTES: usize = 32;
const REGION_BYTES: usize = 24;
const LAYOUT_BYTES: usize = 40;
const BASE_BYTES: usize = 16;
const SECTION_BYTES: usize = 16;
const COMMIT_BYTES: usize = 8;
const WELCOME_BYTES: usize = 40;
const REFUSE_BYTES: usize = 24;
const BYE_BYTES: usize = 8;
const _: () = assert!(HEAD_BYTES + HELLO_BYTES + 2 * NAME_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(NAME_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(HEAD_BYTES + REGION_BYTES + EXPORT_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(HEAD_BYTES + WELCOME_BYTES + 2 * NAME_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(BASES_PER_MESSAGE >= 128 && REGIONS_MAX < PAGE_REGION as usize);
