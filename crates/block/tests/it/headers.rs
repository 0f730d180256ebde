//! Headers and manifests believe nothing: random bytes are errors, and so is every single flipped bit.

use block::{
    ChunkKey, Codec, ElementType, Geometry, Granularity, HEADER_BYTES, Header, HeaderError, Importance, Kind,
    MANIFEST_BYTES_MAX, Manifest, ManifestError, Part, Plan, Planes, Transform, align64, manifest_bytes,
    wire_bytes_max,
};
use proptest::prelude::*;

fn geometry() -> Geometry {
    Geometry::new(4, 2, 3, 8, ElementType::Bf16).unwrap()
}

fn part() -> Part {
    Part { kind: Kind::V, first_layer: 2, layers: 2, first_token: 0, tokens: 8 }
}

fn key() -> ChunkKey {
    ChunkKey::new(std::array::from_fn(|i| i as u8))
}

/// A good header, its peaks and scales.
fn good(transform: Transform, codec: Codec) -> (Header, Vec<u8>) {
    let granularity = if transform.quantizes() { Granularity::TokenHead } else { Granularity::None };
    let mut scales = vec![0x3f; part().scale_bytes(&geometry(), granularity)];
    for (layer, peak) in scales.iter_mut().take(2).enumerate() {
        *peak = transform.peak(Kind::V, 2 + layer as u16).unwrap_or(0);
    }
    let codes = transform.codes_bytes(part().elements(&geometry()), 2) as u32;
    let mut header = Header {
        key: key(),
        geometry: geometry(),
        part: part(),
        block_index: 3,
        transform,
        codec,
        granularity,
        scale_bytes: scales.len() as u32,
        codes_bytes: codes,
        payload_bytes: if codec == Codec::Raw { codes } else { codes / 2 },
        codes_crc: 0x1234_5678,
        head_crc: 0,
    };
    header.seal(&scales);
    (header, scales)
}

fn wire(header: &Header, scales: &[u8]) -> Vec<u8> {
    let mut wire = vec![0; header.wire_bytes()];
    header.encode(&mut wire);
    wire[header.scales_range()].copy_from_slice(scales);
    wire
}

fn open(wire: &[u8]) -> Result<Header, HeaderError> {
    Header::open(wire, &key(), &geometry(), 3, &part())
}

/// Every bit; under miri, which is slow, a sample.
const STEP: usize = if cfg!(miri) { 97 } else { 1 };

const TRANSFORMS: [Transform; 5] =
    [Transform::None, Transform::Lossless, Transform::Q5, Transform::Q4P, Transform::CacheGen];

#[test]
fn the_bytes_of_a_header_are_pinned() {
    let (header, scales) = good(Transform::Q5, Codec::Deflate);
    let wire = wire(&header, &scales);
    let expected: Vec<(usize, &[u8])> = vec![
        (0, b"KVLB"),
        (4, &[1, 0, 128, 0]),
        (40, &[4, 0, 2, 0, 3, 0, 8, 0, 1, 0, 0, 0]),
        (52, &[3, 0, 1, 2]),
        (56, &[2, 0, 2, 0, 0, 0, 8, 0]),
        (64, &[2, 15, 1, 0]),
        (68, &[66, 0, 0, 0]),
        (72, &[96, 0, 0, 0]),
        (76, &[48, 0, 0, 0]),
        (80, &[0x78, 0x56, 0x34, 0x12]),
        (84, &[0; 40]),
    ];
    for (at, bytes) in expected {
        assert_eq!(&wire[at..at + bytes.len()], bytes, "at {at}");
    }
    assert_eq!(&wire[8..40], key().bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&wire[..124]);
    sum.update(&[0; 4]);
    sum.update(&scales);
    assert_eq!(wire[124..128], sum.finalize().to_le_bytes());
    assert_eq!(header.scales_range(), 128..194);
    assert_eq!(header.payload_range(), 256..304);
}

/// Byte 49 was reserved and zero: a reader from before it takes these blocks for another version's, and keeps them.
#[test]
fn the_bytes_of_a_header_of_one_opaque_plane_are_pinned() {
    let (_, scales) = good(Transform::Lossless, Codec::Deflate);
    let geometry = Geometry::new(4, 1, 1200, 8, ElementType::U16).unwrap().with_planes(Planes::One);
    let part = Part { kind: Kind::Kv, ..part() };
    let mut header = Header {
        geometry,
        part,
        codes_bytes: part.tile_bytes(&geometry) as u32,
        payload_bytes: 100,
        ..good(Transform::Lossless, Codec::Deflate).0
    };
    header.seal(&scales);
    let wire = wire(&header, &scales);
    assert_eq!(wire[40..56], [4, 0, 1, 0, 0xb0, 4, 8, 0, 7, 1, 0, 0, 3, 0, 2, 0]);
    assert_eq!(wire[124..128], [62, 160, 149, 143]);
    assert_eq!(Header::open(&wire, &key(), &geometry, 3, &part), Ok(header));
    let hostile = [
        Header { part: Part { kind: Kind::K, ..part }, ..header },
        Header { part: Part { kind: Kind::V, ..part }, ..header },
        Header { geometry: geometry.with_planes(Planes::KeysAndValues), ..header },
        Header { geometry: Geometry { heads: 2, ..geometry }, ..header },
        Header {
            geometry: Geometry { element: ElementType::U8, ..geometry },
            codes_bytes: header.codes_bytes / 2,
            ..header
        },
    ];
    for mut header in hostile {
        header.seal(&scales);
        let mut bytes = [0; HEADER_BYTES];
        header.encode(&mut bytes);
        let error = Header::parse(&bytes).expect_err("it does not fit itself");
        assert!(!error.is_damage(), "{header:?}: {error}");
    }
}

#[test]
fn a_good_block_is_opened_and_another_one_is_not() {
    for transform in TRANSFORMS {
        for codec in Codec::ALL {
            let (header, scales) = good(transform, codec);
            let wire = wire(&header, &scales);
            assert_eq!(open(&wire), Ok(header));
            let mut other = *key().bytes();
            other[31] ^= 1;
            let other = ChunkKey::new(other);
            assert_eq!(Header::open(&wire, &other, &geometry(), 3, &part()), Err(HeaderError::OtherKey));
            assert_eq!(Header::open(&wire, &key(), &geometry(), 2, &part()), Err(HeaderError::OtherPart));
            let wider = Geometry { heads: 3, ..geometry() };
            assert_eq!(Header::open(&wire, &key(), &wider, 3, &part()), Err(HeaderError::OtherGeometry));
            let short = &wire[..wire.len() - 1];
            assert!(matches!(open(short), Err(HeaderError::WireBytes { .. })));
        }
    }
}

#[test]
fn every_flipped_bit_of_header_and_scales_is_an_error() {
    for transform in TRANSFORMS {
        let (header, scales) = good(transform, Codec::Raw);
        let good = wire(&header, &scales);
        for bit in (0..header.scales_range().end * 8).step_by(STEP) {
            let mut wire = good.clone();
            wire[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&wire).is_err(), "{transform}: bit {bit}");
        }
    }
}

#[test]
fn a_peak_that_is_not_the_transforms_is_refused_even_under_a_good_checksum() {
    for (transform, peak) in
        [(Transform::Q5, 14), (Transform::Q4P, 8), (Transform::CacheGen, 0), (Transform::CacheGen, 128)]
    {
        let (mut header, mut scales) = good(transform, Codec::Deflate);
        scales[1] = peak;
        header.seal(&scales);
        assert_eq!(open(&wire(&header, &scales)), Err(HeaderError::Level { layer: 1, peak }));
    }
}

/// Writes the CRC that other versions have, too, where they have it.
fn reseal(wire: &mut [u8]) {
    let scales = u32::from_le_bytes(wire[68..72].try_into().unwrap()) as usize;
    wire[124..128].fill(0);
    let sum = crc32fast::hash(&wire[..128 + scales]).to_le_bytes();
    wire[124..128].copy_from_slice(&sum);
}

#[test]
fn what_is_not_understood_under_a_good_checksum_is_no_damage() {
    let (header, scales) = good(Transform::Q5, Codec::Deflate);
    let ours = wire(&header, &scales);
    let news: [(usize, u8, &str); 14] = [
        (4, 2, "a block version"),
        (5, 1, "a block version"),
        (6, 64, "words of a block header"),
        // A layer's one plane, or a plane of one that has K and V; an element, planes and a byte that we do not know.
        (48, 9, "words of a block header"),
        (49, 1, "words of a block header"),
        (49, 2, "words of a block header"),
        (50, 1, "words of a block header"),
        (54, 2, "words of a block header"),
        (54, 7, "words of a block header"),
        // Opaque elements that are quantized.
        (48, 7, "a transform"),
        (55, 9, "a granularity"),
        (64, 77, "a transform"),
        (66, 3, "a codec"),
        (100, 1, "words of a block header"),
    ];
    for (at, value, kind) in news {
        let mut theirs = ours.clone();
        theirs[at] = value;
        let error = open(&theirs).expect_err("without the checksum");
        assert!(error.is_damage(), "byte {at}: {error}");
        reseal(&mut theirs);
        let error = open(&theirs).expect_err("not understood");
        assert!(!error.is_damage(), "byte {at}: {error}");
        assert_eq!(error.kind(), kind);
    }
    // Somebody else's block is not the one that was stored here.
    let mut theirs = ours.clone();
    theirs[8] ^= 1;
    reseal(&mut theirs);
    assert!(open(&theirs).expect_err("another key").is_damage());
    for cut in [0, 4, 127, 128, 150, ours.len() - 1] {
        assert!(open(&ours[..cut]).expect_err("cut off").is_damage(), "{cut} bytes");
    }
}

#[test]
fn a_manifest_that_is_not_understood_is_no_damage_and_a_wrong_one_is() {
    let mut ours = [0; 80];
    manifest().encode(&mut ours);
    for (at, value) in [(4, 2), (6, 96), (40, 0), (52, 9), (56, 5), (57, 200), (65, 255)] {
        let mut theirs = ours;
        theirs[at] = value;
        assert!(Manifest::parse(&theirs).expect_err("without the checksum").is_damage(), "byte {at}");
        theirs[60..64].fill(0);
        let sum = crc32fast::hash(&theirs).to_le_bytes();
        theirs[60..64].copy_from_slice(&sum);
        let error = Manifest::parse(&theirs).expect_err("not understood");
        assert!(!error.is_damage(), "byte {at}: {error}");
    }
}

#[test]
fn lengths_that_do_not_follow_from_the_part_are_refused_even_under_a_good_checksum() {
    let (base, scales) = good(Transform::Q5, Codec::Deflate);
    let wrong = [
        Header { scale_bytes: base.scale_bytes + 1, ..base },
        Header { scale_bytes: u32::MAX, ..base },
        Header { codes_bytes: base.codes_bytes - 1, ..base },
        Header { codes_bytes: u32::MAX, ..base },
        Header { payload_bytes: base.codes_bytes, ..base },
        Header { payload_bytes: 0, ..base },
        Header { payload_bytes: u32::MAX, ..base },
        Header { codec: Codec::Raw, ..base },
        Header { granularity: Granularity::None, ..base },
        Header { granularity: Granularity::Channel, ..base },
        Header { transform: Transform::Lossless, ..base },
        Header { block_index: 1024, ..base },
        Header { part: Part { layers: 3, ..part() }, ..base },
        Header { part: Part { layers: 0, ..part() }, ..base },
        Header { part: Part { first_token: u16::MAX, ..part() }, ..base },
        Header { geometry: Geometry { layers: 0, ..geometry() }, ..base },
    ];
    for mut header in wrong {
        header.seal(&scales);
        let mut bytes = [0; HEADER_BYTES];
        header.encode(&mut bytes);
        assert!(Header::parse(&bytes).is_err(), "{header:?}");
    }
}

fn manifest() -> Manifest {
    let plan = Plan { layers_per_block: 2, tokens_per_block: 8 };
    Manifest::new(key(), geometry(), plan, &[200, 129, 224, 192]).unwrap()
}

#[test]
fn the_bytes_of_a_manifest_are_pinned() {
    let manifest = manifest();
    let mut bytes = [0xff; MANIFEST_BYTES_MAX];
    assert_eq!(manifest.encode(&mut bytes), 80);
    assert_eq!(manifest_bytes(4), 80);
    assert_eq!(&bytes[..8], b"KVLM\x01\0\x40\0");
    assert_eq!(&bytes[8..40], key().bytes());
    assert_eq!(bytes[40..52], geometry().encode());
    assert_eq!(bytes[52..60], [2, 0, 8, 0, 4, 0, 0, 0]);
    assert_eq!(bytes[64..80], [200, 0, 0, 0, 129, 0, 0, 0, 224, 0, 0, 0, 192, 0, 0, 0]);
    let read = Manifest::parse(&bytes).unwrap();
    assert_eq!((read.key(), read.geometry(), read.lengths()), (&key(), &geometry(), manifest.lengths()));
    assert_eq!(read.plan(), manifest.plan());
    assert_eq!(read.importance(), Importance::NEUTRAL);
}

#[test]
fn an_importance_changes_two_bytes_of_a_manifest_and_its_crc() {
    let (mut plain, mut rated) = ([0; 80], [0; 80]);
    manifest().encode(&mut plain);
    manifest().with_importance(Importance::of(2.5).unwrap()).encode(&mut rated);
    assert_eq!(rated[58..60], [0x80, 2]);
    assert_eq!(Manifest::parse(&rated).unwrap().importance().factor(), 2.5);
    rated[58..64].copy_from_slice(&plain[58..64]);
    assert_eq!(rated, plain);
}

#[test]
fn every_flipped_bit_of_a_manifest_is_an_error() {
    let mut good = [0; 80];
    manifest().encode(&mut good);
    for bit in (0..good.len() * 8).step_by(STEP) {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::parse(&bytes).is_err(), "bit {bit}");
    }
    for len in (0..good.len()).step_by(STEP) {
        assert!(Manifest::parse(&good[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn a_manifest_with_a_hole_or_an_impossible_length_is_refused() {
    let plan = Plan { layers_per_block: 2, tokens_per_block: 8 };
    let new = |plan, lengths: &[u32]| Manifest::new(key(), geometry(), plan, lengths);
    assert!(matches!(new(plan, &[200; 3]), Err(ManifestError::BlockCount { expected: 4, found: 3 })));
    let most = wire_bytes_max(&geometry(), &part()) as u32;
    assert!(new(plan, &[most; 4]).is_ok());
    for bytes in [0, 128, most + 1, u32::MAX] {
        assert!(matches!(new(plan, &[200, bytes, 200, 200]), Err(ManifestError::Length { block: 1, .. })));
    }
    for (layers_per_block, tokens_per_block) in [(0, 8), (5, 8), (2, 0), (2, 4), (1, 3), (1, 16), (u16::MAX, u16::MAX)]
    {
        let plan = Plan { layers_per_block, tokens_per_block };
        assert!(matches!(new(plan, &[200; 4]), Err(ManifestError::Plan(_))), "{plan:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 16 } else { 4096 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_are_an_error_not_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), patch in 0u8..3) {
        // With the right magic and version in front, so that the checks behind them are reached.
        if patch > 0 && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(if patch == 1 { b"KVLB\x01\0\x80\0" } else { b"KVLM\x01\0\x40\0" });
        }
        prop_assert!(Header::parse(&bytes).is_err());
        prop_assert!(Manifest::parse(&bytes).is_err());
    }

    #[test]
    fn a_header_with_random_words_never_panics_and_never_lies_about_lengths(
        words in prop::collection::vec((40usize..84, any::<u8>()), 1..5),
        which in 0usize..5,
    ) {
        let (header, scales) = good(TRANSFORMS[which], Codec::Deflate);
        let mut bytes = wire(&header, &scales);
        words.iter().for_each(|&(at, byte)| bytes[at] = byte);
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.part.within(&header.geometry));
            prop_assert!(header.wire_bytes() <= wire_bytes_max(&header.geometry, &header.part));
            prop_assert!(header.codes_bytes as usize <= header.part.tile_bytes(&header.geometry));
            prop_assert_eq!(header.payload_range().start, align64(header.scales_range().end));
            let _ = open(&bytes);
        }
    }
}
