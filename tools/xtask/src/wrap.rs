//! Breaks paragraphs of Markdown and of comments that have a line which is too long; leaves every other line as it is.

use std::fs;

use crate::tree::{File, Tree};
use crate::widths;

/// Tells what is inside of a fenced block of code, line by line.
#[derive(Debug, Default)]
pub(crate) struct Fence(bool);

impl Fence {
    /// Whether the next line belongs to a block, its fences among it.
    pub(crate) fn sees(&mut self, line: &str) -> bool {
        let is_fence = line.trim_start().trim_start_matches(['/', '!', '#']).trim_start().starts_with("```");
        let inside = self.0 || is_fence;
        self.0 ^= is_fence;
        inside
    }
}

/// Wraps the files named, or all; returns how many changed.
pub(crate) fn run(tree: &Tree, named: &[String]) -> usize {
    let chosen = |file: &&File| named.is_empty() || named.contains(&file.path);
    let mut changed = 0;
    for file in tree.files().iter().filter(chosen) {
        let Some(most) = widths::most(file) else { continue };
        let wrapped = wrapped(&file.text, most, Marks::of(file));
        if wrapped != file.text {
            fs::write(tree.root().join(&file.path), wrapped).unwrap_or_else(|error| panic!("{}: {error}", file.path));
            changed += 1;
        }
    }
    changed
}

/// What prose is marked with in a kind of file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    Markdown,
    Slashes,
    Hash,
}

impl Marks {
    fn of(file: &File) -> Self {
        if file.has_ending("md") {
            Self::Markdown
        } else if file.has_ending("rs") {
            Self::Slashes
        } else {
            Self::Hash
        }
    }

    /// The mark that a line of comment begins with.
    fn found(self, text: &str) -> Option<&'static str> {
        let marks: &[&str] = match self {
            Self::Markdown => &[""],
            Self::Slashes => &["///", "//!", "//"],
            Self::Hash => &["#"],
        };
        marks.iter().find(|mark| text.starts_with(**mark)).copied()
    }
}

/// One line: what it begins with (indent, marks of comment and list), and its words.
struct Line<'a> {
    /// Blanks and the mark of a comment, with the blank behind it.
    lead: &'a str,
    /// A list's mark, with the blank behind it.
    mark: &'a str,
    text: &'a str,
}

fn split(line: &str, marks: Marks) -> Option<Line<'_>> {
    let blanks = |text: &str| text.len() - text.trim_start().len();
    let mut lead = blanks(line);
    lead += marks.found(&line[lead..])?.len();
    lead += blanks(&line[lead..]);
    let text = &line[lead..];
    let mark = list_mark(text);
    Some(Line { lead: &line[..lead], mark: &text[..mark], text: text[mark..].trim_end() })
}

/// Bytes of a list's mark and its blank: `- `, `* `, `1. `.
fn list_mark(text: &str) -> usize {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let is_number = digits > 0 && text[digits..].starts_with(". ");
    if text.starts_with("- ") || text.starts_with("* ") {
        2
    } else if is_number {
        digits + 2
    } else {
        0
    }
}

/// Tells whether a line stands for itself: a heading, a row, a picture, a rule, nothing.
fn stands_alone(line: &Line<'_>, marks: Marks) -> bool {
    let text = line.text;
    text.is_empty() || text.starts_with('|') || text.starts_with("![") || (marks == Marks::Markdown && text.starts_with('#'))
        // Not prose: a directive of a tool, the first line of a script, a drawing.
        || text.starts_with("shellcheck ") || text.starts_with('!') || text.contains("---") || text.contains("   ")
}

fn wrapped(text: &str, most: usize, marks: Marks) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (mut out, mut fence, mut at) = (String::new(), Fence::default(), 0);
    while at < lines.len() {
        let inside = fence.sees(lines[at]);
        let first = (!inside).then(|| split(lines[at], marks)).flatten();
        let Some(first) = first.filter(|line| !stands_alone(line, marks)) else {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
            continue;
        };
        // The paragraph goes on while lines begin as this one does, a list's item by as many blanks as its mark has, or
        // more.
        let inner = format!("{}{}", first.lead, " ".repeat(first.mark.len()));
        let is_deeper = |lead: &str| {
            !first.mark.is_empty() && lead.strip_prefix(&*inner).is_some_and(|more| more.trim().is_empty())
        };
        let is_inner = |lead: &str| lead == inner || is_deeper(lead);
        let follows = |line: &str| {
            let is_fence = Fence::default().sees(line);
            split(line, marks).is_some_and(|next| {
                !is_fence && next.mark.is_empty() && is_inner(next.lead) && !stands_alone(&next, marks)
            })
        };
        let end = at + 1 + lines[at + 1..].iter().take_while(|line| follows(line)).count();
        let paragraph = &lines[at..end];
        if paragraph.iter().all(|line| line.chars().count() <= most) {
            paragraph.iter().for_each(|line| out.extend([*line, "\n"]));
        } else {
            let words = paragraph.iter().filter_map(|line| split(line, marks)).map(|line| line.text);
            fill(&format!("{}{}", first.lead, first.mark), &inner, words, most, &mut out);
        }
        at = end;
    }
    if !text.ends_with('\n') {
        out.pop();
    }
    out
}

/// Lays words out in lines; a span of code stays whole, and no line begins with what would be a mark of Markdown.
fn fill<'a>(first: &str, rest: &str, texts: impl Iterator<Item = &'a str>, most: usize, out: &mut String) {
    let text = texts.collect::<Vec<_>>().join(" ");
    let (mut line, mut columns) = (String::from(first), first.chars().count());
    let mut is_empty = true;
    for word in pieces(&text) {
        let more = word.chars().count() + usize::from(!is_empty);
        let is_mark =
            list_mark(&format!("{word} ")) > 0 || word.starts_with('#') || word.starts_with('|') || word == "+";
        if !is_empty && columns + more > most && !is_mark {
            out.push_str(line.trim_end());
            out.push('\n');
            (line, columns, is_empty) = (String::from(rest), rest.chars().count(), true);
        }
        if !is_empty {
            line.push(' ');
            columns += 1;
        }
        line.push_str(word);
        columns += word.chars().count();
        is_empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Words, with spans of code whole where they are short.
fn pieces(text: &str) -> Vec<&str> {
    const SPAN_MAX: usize = 60;
    let (mut out, mut start, mut tick) = (Vec::new(), None, None);
    for (at, c) in text.char_indices() {
        if c == '`' {
            tick = match tick {
                None => Some(at),
                Some(_) => None,
            };
        }
        let in_span = tick.is_some_and(|from| text[from + 1..].find('`').is_some_and(|length| length <= SPAN_MAX));
        if c == ' ' && !in_span {
            out.extend(start.take().map(|from: usize| &text[from..at]));
        } else if start.is_none() {
            start = Some(at);
        }
    }
    out.extend(start.map(|from| &text[from..]));
    out
}

#[cfg(test)]
mod tests {
    use super::{Marks, wrapped};

    #[test]
    fn a_paragraph_with_a_long_line_is_filled_and_others_stay() {
        let text = "short\nones\n\naaa bbb ccc ddd\neee\n\n# A heading that is long\n";
        assert_eq!(
            wrapped(text, 11, Marks::Markdown),
            "short\nones\n\naaa bbb ccc\nddd eee\n\n# A heading that is long\n"
        );
    }

    #[test]
    fn items_of_a_list_keep_their_indent_and_do_not_run_together() {
        let text = "- aaa bbb ccc\n      ddd\n- eee\n";
        assert_eq!(wrapped(text, 9, Marks::Markdown), "- aaa bbb\n  ccc ddd\n- eee\n");
    }

    #[test]
    fn tables_and_blocks_stay() {
        let text = "| aaa bbb ccc ddd |\n```\naaa bbb ccc ddd\n```\n";
        assert_eq!(wrapped(text, 9, Marks::Markdown), text);
    }

    #[test]
    fn comments_keep_their_marks_and_code_is_not_touched() {
        let text = "    /// aaa bbb ccc ddd\n    let aaaaaaaaaaaaaaaaaaaaaaaaa = 1;\n";
        let want = "    /// aaa bbb\n    /// ccc ddd\n    let aaaaaaaaaaaaaaaaaaaaaaaaa = 1;\n";
        assert_eq!(wrapped(text, 15, Marks::Slashes), want);
    }

    #[test]
    fn a_span_of_code_is_not_broken() {
        assert_eq!(wrapped("aaa `b c d` e\n", 9, Marks::Markdown), "aaa\n`b c d` e\n");
    }

    #[test]
    fn wrapping_twice_changes_nothing() {
        let text = "aaa bbb ccc ddd eee - fff ggg 1. hhh\n";
        let once = wrapped(text, 11, Marks::Markdown);
        assert_eq!(wrapped(&once, 11, Marks::Markdown), once);
    }
}
