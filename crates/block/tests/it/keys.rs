//! Keys are the same on every machine, for ever: vectors pinned, and what must change a key does.

use block::{ChunkKey, Codec, ElementType, Geometry, KeyChain, Namespace, Planes, Recipe, Transform};

fn geometry() -> Geometry {
    Geometry::new(32, 8, 128, 256, ElementType::Bf16).unwrap()
}

fn namespace() -> Namespace<'static> {
    let recipe = Recipe { transform: Transform::Q5, codec: Codec::Deflate };
    Namespace { model: "llama-3.1-8b", geometry: geometry(), recipe, salt: b"", rank: 0, ranks: 1 }
}

fn tokens(chunk: u32) -> Vec<u32> {
    (chunk * 256..chunk * 256 + 256).collect()
}

fn first(namespace: &Namespace<'_>) -> ChunkKey {
    KeyChain::new(namespace).push(&tokens(0))
}

#[test]
fn vectors_are_pinned() {
    let mut chain = KeyChain::new(&namespace());
    let keys = [chain.push(&tokens(0)).to_string(), chain.push(&tokens(1)).to_string()];
    assert_eq!(
        keys,
        [
            "992d07def1ade3ad6ea011af9c86b0a5f6a17ffd2dedbac8085f4d31585490d0",
            "ab6198bb848aa5c007820ef48e378a86b7ef27dbdb434c9794a38ace71745ea1"
        ]
    );
    assert_eq!(
        first(&Namespace { salt: b"tenant", rank: 1, ranks: 2, ..namespace() }).to_string(),
        "c3fdf359aabeddba7abe884af129515df72dbe689bc73234415c0f992455c0ef"
    );
}

#[test]
fn an_extra_names_what_tokens_leave_open() {
    let key = |extra: &[u8]| KeyChain::new(&namespace()).push_with(&tokens(0), extra);
    assert_eq!(key(b""), first(&namespace()), "none is none");
    assert_eq!(key(b"picture").to_string(), "7a40e312dc32f17c6d1e9adcd0d47cc571a44e47ee7d6a454f7aaea6cefd49e6");
    let mut keys = [key(b""), key(b"\0"), key(b"\0\0"), key(b"picture"), key(b"pictures")];
    keys.sort();
    assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
    let (mut with, mut without) = (KeyChain::new(&namespace()), KeyChain::new(&namespace()));
    with.push_with(&tokens(0), b"picture");
    without.push(&tokens(0));
    assert_ne!(with.push(&tokens(1)), without.push(&tokens(1)), "it is in the names of all that follows");
}

#[test]
fn equal_prefixes_share_keys_and_a_key_names_the_whole_prefix() {
    let (mut a, mut b) = (KeyChain::new(&namespace()), KeyChain::new(&namespace()));
    assert_eq!(a.push(&tokens(0)), b.push(&tokens(0)));
    let mut changed = tokens(1);
    changed[255] += 1;
    assert_ne!(a.push(&tokens(1)), b.push(&changed));
    assert_ne!(a.push(&tokens(2)), b.push(&tokens(2)), "the chunks before differ");
}

#[test]
fn every_field_but_the_codec_separates() {
    let base = first(&namespace());
    let codec = Recipe { codec: Codec::Lz4, ..namespace().recipe };
    assert_eq!(base, first(&Namespace { recipe: codec, ..namespace() }));
    let others = [
        Namespace { model: "llama-3.1-8c", ..namespace() },
        Namespace { geometry: Geometry { layers: 33, ..geometry() }, ..namespace() },
        Namespace { geometry: Geometry { element: ElementType::F16, ..geometry() }, ..namespace() },
        Namespace { geometry: geometry().with_planes(Planes::One), ..namespace() },
        Namespace { geometry: Geometry { element: ElementType::U16, ..geometry() }, ..namespace() },
        Namespace { recipe: Transform::Q4.into(), ..namespace() },
        Namespace { recipe: Transform::Q4P.into(), ..namespace() },
        Namespace { salt: b"a", ..namespace() },
        Namespace { rank: 1, ..namespace() },
        Namespace { ranks: 2, ..namespace() },
    ];
    let mut keys: Vec<ChunkKey> = others.iter().map(first).collect();
    keys.push(base);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), others.len() + 1);
}

#[test]
fn opaque_sections_have_the_same_keys_whatever_is_quantized_elsewhere() {
    let state = Geometry { chunk_tokens: 256, ..Geometry::opaque(36, 1 << 21, 4).unwrap() };
    let key = |recipe: &str| first(&Namespace { geometry: state, recipe: recipe.parse().unwrap(), ..namespace() });
    assert_eq!([key("q4p"), key("cachegen"), key("lossless")], [key("q5"); 3]);
    assert_ne!(key("none"), key("q5"));
}

#[test]
#[should_panic(expected = "exactly one chunk")]
fn a_short_chunk_has_no_key() {
    KeyChain::new(&namespace()).push(&[1, 2, 3]);
}

#[test]
fn hex_goes_there_and_back_and_nothing_else_is_read() {
    let key = first(&namespace());
    assert_eq!(key.to_string().parse(), Ok(key));
    let upper = key.to_string().to_uppercase();
    let long = format!("{key}00");
    for text in ["", "00", "zz", upper.as_str(), long.as_str(), &"é".repeat(32)] {
        assert!(text.parse::<ChunkKey>().is_err(), "{text:?}");
    }
}
