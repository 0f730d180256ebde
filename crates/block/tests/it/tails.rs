//! Tails of chunk files: pinned bytes, and nothing wrong gets through.

use block::ChunkKey;
use block::tail::{Place, TRAILER_BYTES, TailError, aligned, measure, parse, tail_bytes, write};
use proptest::prelude::*;

/// A stride of flips: miri takes fewer.
const STEP: usize = if cfg!(miri) { 37 } else { 1 };

const MANIFEST: [u8; 5] = *b"names";
/// The second block arrived first.
const PLACES: [Place; 2] = [Place { offset: 8192, bytes: 4096 }, Place { offset: 0, bytes: 5000 }];
const START: u64 = 12288;

fn key() -> ChunkKey {
    ChunkKey::new(std::array::from_fn(|at| at as u8))
}

fn tail(places: &[Place]) -> Vec<u8> {
    let mut bytes = vec![0xff; tail_bytes(places.len(), MANIFEST.len())];
    assert_eq!(write(&key(), places, &MANIFEST, &mut bytes), bytes.len());
    bytes
}

/// Parses the tail of a file with blocks up to `start`.
fn read(tail: &[u8], start: u64) -> Result<block::tail::Tail, TailError> {
    parse(tail, start + tail.len() as u64, &mut [Place::default(); 2])
}

#[test]
fn the_bytes_of_a_tail_are_pinned() {
    let bytes = tail(&PLACES);
    assert_eq!(bytes.len(), 2 * 16 + 5 + 64);
    assert_eq!(bytes[..16], [0, 32, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 136, 19, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[32..37], MANIFEST);
    assert_eq!(&bytes[37..61], b"kvlntail\x01\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0");
    assert_eq!(bytes[61..93], *key().bytes());
    assert_eq!(bytes[93..97], [0; 4]);
    assert_eq!(bytes[97..], crc32fast::hash(&bytes[..97]).to_le_bytes());
    assert_eq!([0, 1, 4096, 4097].map(aligned), [0, 4096, 4096, 8192]);
}

#[test]
fn a_tail_is_found_at_the_end_of_a_longer_window() {
    let mut window = vec![7; 100];
    window.extend(tail(&PLACES));
    let file_bytes = START + (window.len() - 100) as u64;
    let mut places = [Place::default(); 3];
    assert_eq!(measure(&window[window.len() - TRAILER_BYTES..], file_bytes), Ok(window.len() - 100));
    let found = parse(&window, file_bytes, &mut places).unwrap();
    assert_eq!((found.key, found.blocks, found.start), (key(), 2, START));
    assert_eq!(window[found.manifest_at..][..found.manifest_bytes], MANIFEST);
    assert_eq!(places[..2], PLACES);
    let few = parse(&window, file_bytes, &mut places[..1]);
    assert_eq!(few, Err(TailError::Large { blocks: 2, max: 1 }));
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error() {
    let good = tail(&PLACES);
    assert!(read(&good, START).is_ok());
    for bit in (0..good.len() * 8).step_by(STEP) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bytes, START).is_err(), "bit {bit}");
    }
    for cut in (1..good.len()).step_by(STEP) {
        assert!(read(&good[cut..], START).is_err(), "{cut} bytes cut off in front");
        assert!(read(&good[..cut], START).is_err(), "{cut} bytes left");
    }
}

#[test]
fn a_trailer_of_another_version_is_foreign_if_its_checksum_holds() {
    let ours = tail(&PLACES);
    let trailer = ours.len() - TRAILER_BYTES;
    for (at, what) in [(8, "a trailer version"), (20, "a word of the trailer"), (56, "a word of the trailer")] {
        let mut theirs = ours.clone();
        theirs[trailer + at] = 2;
        assert!(matches!(read(&theirs, START), Err(TailError::Corrupt { .. })), "byte {at}: the checksum is ours");
        let end = theirs.len() - 4;
        let sum = crc32fast::hash(&theirs[..end]).to_le_bytes();
        theirs[end..].copy_from_slice(&sum);
        assert_eq!(read(&theirs, START), Err(TailError::Foreign { what, value: 2 }));
    }
}

#[test]
fn places_that_cannot_be_are_refused_even_under_a_good_checksum() {
    let [one, other] = PLACES;
    let wrong = [
        [Place { offset: 8193, ..one }, other],
        [Place { offset: START, ..one }, other],
        [Place { offset: u64::MAX - 4095, ..one }, other],
        [Place { bytes: 0, ..one }, other],
        [Place { bytes: u32::MAX, ..one }, other],
        [Place { bytes: 4096, ..other }, one],
    ];
    for places in wrong {
        assert!(matches!(read(&tail(&places), START), Err(TailError::Corrupt { .. })), "{places:?}");
    }
    for start in [0, START - 4096, START + 1, START + 4096] {
        assert!(read(&tail(&PLACES), start).is_err(), "blocks up to {start}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 16 } else { 4096 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_words_in_a_trailer_are_an_error_not_a_panic(
        words in prop::collection::vec((0_usize..16, any::<u32>()), 1..4),
        sealed: bool,
    ) {
        let mut bytes = tail(&PLACES);
        let (good, at) = (bytes.clone(), bytes.len() - TRAILER_BYTES);
        words.iter().for_each(|&(word, value)| bytes[at + word * 4..][..4].copy_from_slice(&value.to_le_bytes()));
        if sealed {
            let end = bytes.len() - 4;
            let crc = crc32fast::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
        }
        let told = bytes[at + 24..at + 56] != good[at + 24..at + 56];
        prop_assert!(read(&bytes, START).is_err() || bytes == good || sealed && told);
    }
}
