//! Start-up check of the decompress engine with a known block: the engine must inflate it, and its CRC-32 must be the
//! one that the stored format uses (IEEE 802.3, reflected). Hardware documentation names neither polynomial nor order.

use std::time::{Duration, Instant};

use doca::{Arena, Code, CompressedFormat, Context, ContextState, Device, Error, ProgressEngine};

/// "kvlane kvlane kvlane 123456789" in raw Deflate (RFC 1951, fixed Huffman codes, one match).
const WIRE: &[u8] = &[
    0xcb, 0x2e, 0xcb, 0x49, 0xcc, 0x4b, 0x55, 0xc8, 0x46, 0xa1, 0x0c, 0x8d, 0x8c, 0x4d, 0x4c, 0xcd, 0xcc, 0x2d, 0x2c,
    0x01,
];
const CODES: &[u8] = b"kvlane kvlane kvlane 123456789";
const CODES_CRC: u32 = 0x0ce0_55f7;

/// The engine needs microseconds; a card that needs this long is not there.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An engine that fails this often on a block that is known to be good is of no use.
const TRIES: usize = 5;

/// `true` if the engine's CRC-32 can stand for ours. An engine that fails now and then is met later, too; here it has
/// a bounded number of tries.
///
/// # Errors
/// What the engine answered last, or `UNEXPECTED` if it inflated something else.
pub(crate) fn inflates_a_known_block(
    engine: &ProgressEngine,
    device: &Device,
    context: &mut Context,
) -> Result<bool, Error> {
    let mut tries = 1;
    loop {
        match try_a_known_block(engine, device, context) {
            Err(error) if tries < TRIES => {
                log::warn!("start-up check of the inflate engine: {error}: try {tries} of {TRIES}");
                tries += 1;
                if context.state() != ContextState::Running {
                    context.restart()?;
                }
            }
            result => return result,
        }
    }
}

fn try_a_known_block(engine: &ProgressEngine, device: &Device, context: &mut Context) -> Result<bool, Error> {
    let unexpected = |call| Error { call, code: Code::UNEXPECTED };
    let mut arena = Arena::allocate(device, 4096)?;
    let (Some(mut source), Some(destination)) = (arena.carve(1024), arena.carve(1024)) else {
        return Err(unexpected("doca_mmap_set_memrange"));
    };
    source[..WIRE.len()].copy_from_slice(WIRE);
    context
        .inflate(0, CompressedFormat::Deflate, source, 0..WIRE.len(), destination)
        .map_err(|refused| refused.error)?;
    let deadline = Instant::now() + TIMEOUT;
    let completion = loop {
        if let Some(completion) = context.poll() {
            break completion;
        }
        if !engine.progress() {
            std::thread::yield_now();
        }
        if Instant::now() > deadline {
            return Err(Error { call: "doca_pe_progress", code: Code(9) });
        }
    };
    let outcome = completion.outcome?;
    let inflated = completion.destination.as_deref().is_some_and(|codes| &codes[..CODES.len()] == CODES);
    if outcome.bytes != CODES.len() || !inflated {
        return Err(unexpected("doca_compress_task_decompress_deflate"));
    }
    Ok(outcome.crc == Some(CODES_CRC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_block_is_what_it_says() {
        let mut codes = [0; CODES.len()];
        block::codec::decompress(block::Codec::Deflate, WIRE, &mut codes).unwrap();
        assert_eq!(codes, CODES);
        assert_eq!(crc32fast::hash(CODES), CODES_CRC);
    }
}
