//! Messages come back as they went, garbage never panics, versions tell each other apart, and an attach keeps its
//! order.

use block::{Codec, ElementType, Geometry, Kind, Part, Recipe, Transform};
use proptest::prelude::*;

use super::message::crc_of;
use super::*;
use crate::layout::{Base, Form, Order};
use crate::limits::{PAGE_BYTES, VERSION};
use crate::words::Word;

fn geometry() -> Geometry {
    Geometry::new(200, 2, 8, 16, ElementType::Bf16).unwrap()
}

fn form() -> Form {
    Form {
        order: Order::TokenMajor,
        page_tokens: 4,
        page_count: 10,
        page_stride: 128,
        token_stride: 32,
        head_stride: 16,
    }
}

fn bases() -> Vec<Base> {
    (0..400).map(|index| Base { region: index % 2, offset: u64::from(index / 2) * 1280 }).collect()
}

fn hello() -> Hello<'static> {
    Hello {
        generation: 0x1122_3344,
        pid: 77,
        region_count: 2,
        geometry: Some(geometry()),
        recipe: "q5".parse().ok(),
        client: "vllm 0.32 rank 0",
        namespace: None,
    }
}

fn messages(bases: &[Base]) -> Vec<Message<'_>> {
    let parts = layout_parts(&form(), bases).map(Message::Layout);
    let region = |index: u16, bytes| {
        let base = 0x7f00_0000_0000 + (u64::from(index) << 24);
        Region { index, writable: true, base, bytes, export: &[9; 300] }
    };
    let mut all = vec![
        Message::Hello(hello()),
        Message::Region(region(PAGE_REGION, PAGE_BYTES as u64)),
        Message::Region(region(0, 256_000)),
        Message::Region(region(1, 256_000)),
    ];
    all.extend(parts);
    all.push(Message::Commit(Commit { region_count: 2, base_count: 400, further_sections: 0 }));
    all
}

fn card_messages() -> Vec<Message<'static>> {
    vec![
        Message::Welcome(Welcome {
            session: 3,
            generation: 0x1122_3344,
            block_elements: 1 << 18,
            chunks_max: 512,
            requests_max: 32,
            recipe: "q8+deflate",
            card: "dpu-app 0.1.0",
        }),
        Message::Refuse(Refuse::new(Reason::Sessions, 8, 9)),
        Message::Doorbell,
        Message::Bye(Farewell::Stopping),
    ]
}

#[test]
fn every_message_comes_back_as_it_went() {
    let bases = bases();
    for message in messages(&bases).into_iter().chain(card_messages()) {
        let mut out = [0xee; ATTACH_MESSAGE_MAX];
        let bytes = message.encode(&mut out).unwrap();
        assert_eq!(Message::decode(bytes), Ok(message));
        let bytes = bytes.to_vec();
        let short = message.encode(&mut out[..bytes.len() - 1]);
        assert_eq!(short, Err(AttachError::Room { bytes: bytes.len(), room: bytes.len() - 1 }));
        for cut in (0..bytes.len()).step_by(if cfg!(miri) { 311 } else { 1 }) {
            assert!(Message::decode(&bytes[..cut]).is_err(), "{message:?} cut to {cut}");
        }
    }
}

#[test]
fn bytes_of_a_doorbell_and_a_refusal_are_pinned() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let bell = Message::Doorbell.encode(&mut out).unwrap();
    assert_eq!(bell[..12], *b"kvat\x07\0\0\0\x01\0\0\0");
    assert_eq!(bell.len(), 16);
    let refuse = Message::Refuse(Refuse::version(0x0a0b)).encode(&mut out).unwrap();
    assert_eq!(refuse.len(), 40);
    assert_eq!(refuse[4..6], [6, 0]);
    assert_eq!(refuse[16..], *b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x0b\x0a\0\0\0\0\0\0");
}

/// Rewrites head words of an encoded message and its checksum.
fn reseal(bytes: &mut [u8], at: usize, word: u32) {
    word.put(bytes, at);
    crc_of(bytes).put(bytes, 12);
}

#[test]
fn an_older_and_a_newer_peer_are_told_who_must_upgrade() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let bytes = Message::Hello(hello()).encode(&mut out).unwrap().len();
    for (theirs, side) in [(0, "upgrade the host side"), (2, "upgrade dpu-app on the card")] {
        reseal(&mut out[..bytes], 8, theirs);
        assert_eq!(Message::decode(&out[..bytes]), Err(AttachError::Version { ours: 1, theirs }));
        let text = Refuse::version(theirs).to_string();
        assert!(text.ends_with(side), "{text}");
        assert!(text.contains("version 1") && text.contains(&format!("speaks {theirs}")), "{text}");
    }
    // And the refusal of a newer card can be read.
    let bytes = Message::Refuse(Refuse::new(Reason::Version, 2, 1)).encode(&mut out).unwrap().len();
    reseal(&mut out[..bytes], 8, 2);
    let Ok(Message::Refuse(refuse)) = Message::decode(&out[..bytes]) else { panic!("unreadable") };
    assert_eq!(refuse.to_string(), "the card refuses: it speaks version 2, this host speaks 1: upgrade the host side");
    reseal(&mut out[..bytes], 16, 999);
    let Ok(Message::Refuse(refuse)) = Message::decode(&out[..bytes]) else { panic!("unreadable") };
    assert_eq!(refuse.reason(), None);
    assert!(refuse.to_string().contains("reason 999"));
}

#[test]
fn a_recipe_of_zero_words_is_not_the_lack_of_one() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let zero = Recipe { transform: Transform::None, codec: Codec::Raw };
    for recipe in [None, Some(zero), "q5".parse().ok()] {
        for geometry in [None, Some(geometry())] {
            let message = Message::Hello(Hello { recipe, geometry, region_count: 0, ..hello() });
            assert_eq!(Message::decode(message.encode(&mut out).unwrap()), Ok(message));
        }
    }
}

#[test]
fn a_namespace_travels_behind_the_client_and_the_lack_of_one_is_what_it_was() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let long = "n".repeat(NAME_BYTES_MAX);
    for namespace in ["team-a", &long] {
        let message = Message::Hello(Hello { namespace: Some(namespace), ..hello() });
        assert_eq!(Message::decode(message.encode(&mut out).unwrap()), Ok(message));
    }
    let bytes = Message::Hello(hello()).encode(&mut out).unwrap();
    assert_eq!(bytes[HEAD_BYTES + 14..HEAD_BYTES + 16], [16, 0]);
    assert_eq!(bytes.len(), HEAD_BYTES + HELLO_BYTES + 16);
    let attachment = |namespace| {
        let bases = bases();
        let mut messages = messages(&bases);
        messages[0] = Message::Hello(Hello { namespace, ..hello() });
        attach(&messages).unwrap().unwrap().namespace
    };
    assert_eq!((attachment(None), attachment(Some("team-a"))), (None, Some("team-a".to_owned())));
}

#[test]
fn every_reason_has_a_text_and_its_own_word() {
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index + 1);
        let refuse = Refuse::new(reason, 1, 2);
        assert_eq!(refuse.reason(), Some(reason));
        assert!(refuse.to_string().len() > 30);
    }
    for (index, farewell) in Farewell::ALL.into_iter().enumerate() {
        assert_eq!(farewell as usize, index + 1);
        assert!(!farewell.text().is_empty());
    }
}

#[test]
fn a_message_of_ours_that_breaks_a_limit_is_not_sent() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for client in ["", "a\nb", &long] {
        let message = Message::Hello(Hello { client, ..hello() });
        assert_eq!(message.encode(&mut out), Err(AttachError::Name));
    }
    for namespace in ["a\nb", &long] {
        let message = Message::Hello(Hello { namespace: Some(namespace), ..hello() });
        assert_eq!(message.encode(&mut out), Err(AttachError::Name));
    }
    let control_only = Hello { geometry: None, ..hello() };
    let error = Message::Hello(control_only).encode(&mut out).unwrap_err();
    assert_eq!(error, AttachError::Field { what: "region count", value: 2, limit: 0 });
    let region = Region { index: 0, writable: false, base: u64::MAX - 5, bytes: 6, export: &[] };
    assert!(matches!(Message::Region(region).encode(&mut out), Err(AttachError::Field { what: "region bytes", .. })));
    let region = Region { bytes: 0, ..region };
    assert!(Message::Region(region).encode(&mut out).is_err());
    let region = Region { bytes: 5, export: &[0; EXPORT_BYTES_MAX + 1], ..region };
    assert!(Message::Region(region).encode(&mut out).is_err());
    let region = Region { index: REGIONS_MAX as u16, export: &[], ..region };
    assert!(Message::Region(region).encode(&mut out).is_err());
}

fn attach(messages: &[Message<'_>]) -> Result<Option<Attachment>, Refuse> {
    let mut intake = Intake::new();
    for message in &messages[..messages.len() - 1] {
        assert!(intake.take(message)?.is_none());
    }
    intake.take(&messages[messages.len() - 1])
}

#[test]
fn an_attach_in_order_is_taken() {
    let bases = bases();
    let attachment = attach(&messages(&bases)).unwrap().unwrap();
    assert_eq!(attachment.generation, 0x1122_3344);
    assert_eq!(attachment.client, "vllm 0.32 rank 0");
    assert_eq!(attachment.regions.len(), 2);
    assert_eq!(&*attachment.page.blob, &[9; 300]);
    let [layout] = &attachment.layouts[..] else { panic!("{:?}", attachment.layouts) };
    assert_eq!(layout.pages_per_chunk(), 4);
    let part = Part { kind: Kind::V, first_layer: 199, layers: 1, first_token: 0, tokens: 16 };
    let mut runs = Vec::new();
    layout.runs(&part, &[1, 2, 3, 9], 0..16, |run| runs.push((run.region, run.offset, run.bytes))).unwrap();
    assert_eq!(runs, [(1, 199 * 1280 + 128, 384), (1, 199 * 1280 + 9 * 128, 128)]);
}

#[test]
fn a_control_only_session_has_a_page_and_nothing_else() {
    let bases = bases();
    let mut messages = messages(&bases);
    messages.truncate(2);
    messages[0] = Message::Hello(Hello { geometry: None, region_count: 0, ..hello() });
    messages.push(Message::Commit(Commit { region_count: 0, base_count: 0, further_sections: 0 }));
    assert!(attach(&messages).unwrap().unwrap().layouts.is_empty());
}

/// A session with two more sections, of 10 and 16 layers, in the same memory as the first.
fn with_sections(bases: &[Base]) -> Vec<Message<'_>> {
    let mut all = messages(bases);
    all.pop();
    for (index, layers) in [(1, 10), (2, 16)] {
        let geometry = Geometry::new(layers, 1, 16, 32, ElementType::Bf16).unwrap();
        all.push(Message::Section(SectionShape { index, geometry }));
        let form = Form { page_tokens: 8, page_count: 5, page_stride: 256, token_stride: 32, ..form() };
        all.extend(layout_parts(&form, &bases[..2 * layers]).map(Message::Layout));
    }
    all.push(Message::Commit(Commit { region_count: 2, base_count: 452, further_sections: 2 }));
    all
}

#[test]
fn sections_of_other_shapes_follow_the_first_and_may_share_its_memory() {
    let bases = bases();
    let messages = with_sections(&bases);
    let mut out = [0; ATTACH_MESSAGE_MAX];
    for message in &messages {
        let bytes = message.encode(&mut out).unwrap();
        assert_eq!(Message::decode(bytes), Ok(*message));
    }
    let attachment = attach(&messages).unwrap().unwrap();
    let shapes: Vec<_> = attachment.layouts.iter().map(|layout| layout.geometry().layers).collect();
    assert_eq!(shapes, [200, 10, 16]);
    assert_eq!(attachment.layouts[0].pages_per_chunk(), 4);
    assert_eq!((attachment.layouts[2].pages_per_chunk(), attachment.layouts[2].form().page_count), (4, 5));
    // In a section all have their own bytes.
    let twice = [&bases[..2], &bases[..18]].concat();
    let mut over = messages.clone();
    let at = over.iter().position(|message| matches!(message, Message::Section(shape) if shape.index == 1)).unwrap();
    let Message::Layout(part) = &mut over[at + 1] else { panic!("its layout") };
    part.bases = Bases::Typed(&twice);
    let refusal = attach(&over).unwrap_err();
    assert_eq!(refusal, Refuse { section: 2, ..Refuse::new(Reason::Overlap, 0, 2) });
    let text = "the card refuses: section 1: K of layer 0 and K of layer 1 share bytes of memory";
    assert!(refusal.to_string().starts_with(text), "{refusal}");
}

#[test]
fn a_session_with_one_section_says_what_it_always_said() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    let commit = Message::Commit(Commit { region_count: 2, base_count: 400, further_sections: 0 });
    assert_eq!(commit.encode(&mut out).unwrap()[HEAD_BYTES..], [2, 0, 144, 1, 0, 0, 0, 0]);
    let refuse = Refuse::new(Reason::Layout, 1, 2).in_section(0, 1);
    assert_eq!(Message::Refuse(refuse).encode(&mut out).unwrap()[HEAD_BYTES..][..8], [7, 0, 0, 0, 0, 0, 0, 0]);
    let refuse = refuse.in_section(0, 2);
    assert_eq!(Message::Refuse(refuse).encode(&mut out).unwrap()[HEAD_BYTES..][..8], [7, 0, 1, 0, 0, 0, 0, 0]);
    // An older card reads kinds up to 8, and refuses what it cannot read.
    assert_eq!(Message::Section(SectionShape { index: 1, geometry: geometry() }).kind(), 9);
}

#[test]
fn sections_past_the_limits_are_not_sent_and_not_taken() {
    let mut out = [0; ATTACH_MESSAGE_MAX];
    for index in [0, crate::limits::SECTIONS_MAX as u16] {
        let error = Message::Section(SectionShape { index, geometry: geometry() }).encode(&mut out).unwrap_err();
        assert!(matches!(error, AttachError::Field { what: "section", .. }), "{error}");
    }
    let bases = bases();
    let mut messages = with_sections(&bases);
    let at = messages.iter().position(|message| matches!(message, Message::Section(_))).unwrap();
    messages.truncate(at);
    let mut intake = Intake::new();
    messages.iter().for_each(|message| assert!(intake.take(message).unwrap().is_none()));
    // 400 bases are there, 114 more are too many, and no memory is taken for them.
    let shape = |index, layers| {
        let geometry = Geometry::new(layers, 1, 8, 16, ElementType::Bf16).unwrap();
        Message::Section(SectionShape { index, geometry })
    };
    let refusal = intake.take(&shape(1, 57)).unwrap_err();
    assert_eq!(refusal, Refuse { section: 2, ..Refuse::new(Reason::Layout, 512, 514) });
    messages.push(shape(2, 1));
    assert_eq!(attach(&messages).unwrap_err(), Refuse::new(Reason::Layout, 1, 2), "a section is missing");
    // A session for control has none.
    let mut control = vec![Message::Hello(Hello { geometry: None, region_count: 0, ..hello() }), messages[1]];
    control.push(shape(1, 1));
    assert_eq!(attach(&control).unwrap_err(), Refuse::new(Reason::Order, IntakeState::Commit as u64, 9));
}

#[test]
fn sections_that_do_not_come_are_missed() {
    let bases = bases();
    let good = with_sections(&bases);
    let [.., last] = &good[..] else { panic!("a commit") };
    let mut messages = good[..good.len() - 3].to_vec();
    messages.push(*last);
    assert_eq!(attach(&messages).unwrap_err(), Refuse::new(Reason::Layout, 420, 452));
    *messages.last_mut().unwrap() = Message::Commit(Commit { region_count: 2, base_count: 420, further_sections: 2 });
    assert_eq!(attach(&messages).unwrap_err(), Refuse::new(Reason::Layout, 1, 2));
}

#[test]
fn an_attach_out_of_order_is_refused() {
    let bases = bases();
    refuses_disorder(&with_sections(&bases));
    let good = messages(&bases);
    refuses_disorder(&good);
    let mut messages = good.clone();
    *messages.last_mut().unwrap() = Message::Commit(Commit { region_count: 2, base_count: 399, further_sections: 0 });
    assert_eq!(attach(&messages).unwrap_err().reason(), Some(Reason::Layout));

    let mut intake = Intake::new();
    assert_eq!(intake.take(&Message::Doorbell).unwrap_err(), Refuse::new(Reason::Order, 0, 7));
    assert_eq!(intake.state(), IntakeState::Over);
    assert!(intake.take(&good[0]).is_err(), "over is over");
}

fn refuses_disorder(good: &[Message<'_>]) {
    for skipped in 0..good.len() - 1 {
        let mut messages = good.to_vec();
        messages.remove(skipped);
        assert!(attach(&messages).is_err(), "without message {skipped}");
        let mut messages = good.to_vec();
        messages.insert(skipped, good[skipped]);
        assert!(attach(&messages).is_err(), "message {skipped} twice");
        let mut messages = good.to_vec();
        messages.swap(skipped, skipped + 1);
        assert!(attach(&messages).is_err(), "message {skipped} late");
    }
}

#[test]
fn a_layout_that_leaves_its_region_is_refused_at_commit() {
    let mut bases = bases();
    bases[7].offset += 1_000_000;
    assert_eq!(attach(&messages(&bases)).unwrap_err().reason(), Some(Reason::Layout));
}

#[test]
fn regions_over_each_other_or_over_the_page_are_refused_at_commit() {
    let bases = bases();
    let good = messages(&bases);
    let moved = |which: usize, to: usize, by: u64| {
        let mut messages = good.clone();
        let Message::Region(onto) = messages[to] else { panic!("message {to} is a region") };
        let Message::Region(region) = &mut messages[which] else { panic!("message {which} is a region") };
        region.base = onto.base + by;
        attach(&messages).map(|_| ()).unwrap_err()
    };
    let refusal = moved(3, 2, 0);
    assert_eq!(refusal, Refuse::new(Reason::Overlap, 0, 1));
    let text = refusal.to_string();
    assert!(text.contains("K of layer 0 and V of layer 0 share bytes of memory: give each"), "{text}");
    assert_eq!(moved(3, 2, 255_999).reason(), Some(Reason::Overlap), "by one byte");
    for by in [0, PAGE_BYTES as u64 - 1] {
        assert_eq!(moved(3, 1, by), Refuse::new(Reason::Region, 2, 1), "over the page");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 5000 })
    })]

    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Message::decode(&bytes).is_err());
    }

    /// Past the checksum: any kind, any body.
    #[test]
    fn well_sealed_garbage_never_panics_and_what_is_read_is_written_the_same(
        kind in 0..11_u16,
        body in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..200),
        length in prop_oneof![Just(0), Just(8), Just(16), Just(24), Just(32), Just(40), 0..200_usize],
    ) {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes.extend(body.iter().take(length));
        ATTACH_MAGIC.put(&mut bytes, 0);
        kind.put(&mut bytes, 4);
        VERSION.put(&mut bytes, 8);
        crc_of(&bytes).put(&mut bytes, 12);
        if let Ok(message) = Message::decode(&bytes) {
            let mut out = [0; ATTACH_MESSAGE_MAX];
            prop_assert_eq!(message.encode(&mut out).unwrap(), &bytes[..]);
            let _ = Intake::new().take(&message);
        }
    }

    /// Honest messages in any order, some twice, some not: only the whole attach in its order is taken.
    #[test]
    fn a_shuffled_attach_is_refused_and_never_panics(
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..14),
        head in 0..12_usize,
    ) {
        let bases = bases();
        let good = with_sections(&bases);
        let mut messages = good[..head].to_vec();
        messages.extend(picks.iter().map(|pick| *pick.get(&good)));
        let mut intake = Intake::new();
        let taken = messages.iter().map(|message| intake.take(message)).find(|taken| !matches!(taken, Ok(None)));
        if let Some(Ok(Some(attachment))) = taken {
            prop_assert_eq!(attachment.layouts.len(), 3);
            prop_assert_eq!(&messages[..good.len()], &good[..]);
        }
    }

    #[test]
    fn one_flipped_bit_is_seen(bit in any::<prop::sample::Index>(), which in any::<prop::sample::Index>()) {
        let bases = bases();
        let messages: Vec<_> = messages(&bases).into_iter().chain(card_messages()).collect();
        let mut out = [0; ATTACH_MESSAGE_MAX];
        let mut bytes = which.get(&messages).encode(&mut out).unwrap().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Message::decode(&bytes).is_err());
    }
}
