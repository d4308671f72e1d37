//! The Brown corpus's format: `word/TAG` with blanks between, a sentence a line. NLTK's files have lower-case tags.
//!
//! Of a folder or archive the files named as in the corpus (`ca01` … `cr09`) or ending in `.brown` are read. Lines that
//! begin with `#` are comments (no sentence of the corpus begins so).

use super::{Sentence, Word, tagset::brown};
use crate::task::{Faults, source::Wanted};

pub(in crate::task) const FILES: Wanted =
    Wanted { is: is_brown, shown: "file named as in the Brown corpus (ca01 … cr09) or ending in .brown" };

fn is_brown(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    let of_the_corpus =
        matches!(base.as_bytes(), [b'c', b'a'..=b'r', a, b] if [a, b].iter().all(|d| d.is_ascii_digit()));
    of_the_corpus || base.ends_with(".brown")
}

pub(super) fn sentences(file: &str, text: &str, faults: &mut Faults) -> Vec<Sentence> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines.map(|(i, line)| sentence(file, i + 1, line, faults)).collect()
}

fn sentence(file: &str, number: usize, line: &str, faults: &mut Faults) -> Sentence {
    let mut words = Vec::new();
    for token in line.split_whitespace() {
        match token.rsplit_once('/') {
            Some((word, tag)) if !word.is_empty() && !tag.is_empty() => {
                words.push(Word { text: word.to_owned(), tag: brown(tag) });
            }
            _ => faults.add(file, number, format!("`{token}` is not `word/TAG`")),
        }
    }
    Sentence(words)
}
