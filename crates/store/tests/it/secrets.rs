//! However a URL is misspelt, nothing of its password is in what is said about it.

use proptest::prelude::*;
use store::{Namespaces, Url, scrub_secrets};

use crate::chunks::limits;

/// Letters of passwords that stand in no message of ours, and what a URL means something else by.
const LETTERS: &str = "[QXZJ]{4}[QXZJ?#@/:,%&= ]{0,3}[QXZJ]{4,8}";

/// One way to get it wrong, or right. `P` stands for the password.
const SHAPES: [&str; 30] = [
    "redis://u:P@h",
    "redis://:P@h",
    "redis://P@h",
    "redis://u:P",
    "redis//u:P@h",
    "redis:/u:P@h",
    "redis:u:P@h",
    "redisu:P@h",
    "Redis://u:P@h",
    "rediss://u:P@h?ca=/nonexistent",
    "redis-socket:///u:P@h",
    "unix:/u:P@h",
    " redis://u:P@h",
    "redis://u:P@h:port",
    "redis://u:P@h/P",
    "redis://u:P@h?nope=P",
    "redis://h?password=P",
    "redis://h?password-file=P",
    "redis://h?window=P",
    "redis://h?name=P&connections=0",
    "redis://h/P",
    "redis://h:P",
    "redis://h,u:P@h",
    "tiers:dram=16M,redis//u:P@h",
    "tiers:dram=zz,redis://u:P@h",
    "tiers:dram=16M,dir:/nonexistent=1G redis://u:P@h",
    "tiers:dir:redis://u:P@h=1G,dir:/nonexistent/a",
    "dir:redis://u:P@h",
    "u:P@h",
    "P",
];

/// The pieces of four letters that a message may not have.
fn parts(password: &str) -> Vec<&str> {
    let ends: Vec<usize> = password.char_indices().map(|(at, _)| at).chain([password.len()]).collect();
    ends.windows(5).map(|ends| &password[ends[0]..ends[4]]).collect()
}

fn shows_none_of(text: &str, password: &str, url: &str) {
    for part in parts(password) {
        assert!(!text.contains(part), "{part:?} of {password:?} is shown for {url:?}: {text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_message_about_a_url_has_a_part_of_its_password(password in LETTERS, shape in 0..SHAPES.len()) {
        let url = SHAPES[shape].replace('P', &password);
        for text in [format!("{}", Url::from(&*url)), format!("{:?}", Url::from(&*url))] {
            shows_none_of(&text, &password, &url);
        }
        let said = match store::open_with::<Vec<u8>>(&broken(&url), &limits(), &Namespaces::default(), None) {
            Ok(store) => store.describe(),
            Err(error) => format!("{error} {error:?}"),
        };
        shows_none_of(&said, &password, &url);
        let line = ["dpu-app", "run", "--store", &url, "--sloots"].map(str::to_owned);
        // As a shell would have split it.
        let split: Vec<String> = line.iter().flat_map(|word| word.split(' ')).map(str::to_owned).collect();
        let complaints: Vec<_> =
            split.iter().map(|word| format!("error: unexpected argument '{word}' found")).collect();
        let complaint = complaints.concat();
        if url.contains('@') || url.contains("redis") {
            shows_none_of(&scrub_secrets(&complaint, &split), &password, &url);
        }
    }
}

/// The same URL with an option that no store has, so that it is an error whatever else it is, and nobody is asked.
fn broken(url: &str) -> String {
    match url.contains('?') {
        true => format!("{url}&none=1"),
        false => format!("{url}?none=1"),
    }
}
