//! CoNLL-U (universaldependencies.org/format.html): ten columns, of which the second is the word and the fourth its tag.
//!
//! The words are the syntactic ones: `don't`, which stands as a range (`3-4`) above `do` and `n't`, is written `do n't`.
//! Empty nodes (`8.1`) are no words.

use super::{Sentence, Word, tagset::universal};
use crate::task::{Faults, source::Wanted};

pub(in crate::task) const FILES: Wanted =
    Wanted { is: |name| name.ends_with(".conllu"), shown: "file ending in .conllu" };

pub(super) fn sentences(file: &str, text: &str, faults: &mut Faults) -> Vec<Sentence> {
    let (mut done, mut sentence) = (Vec::new(), Sentence::default());
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            done.push(std::mem::take(&mut sentence));
        } else if !line.starts_with('#') {
            match word(line, &sentence) {
                Ok(word) => sentence.0.extend(word),
                Err(reason) => faults.add(file, i + 1, reason),
            }
        }
    }
    done.push(sentence);
    done
}

/// The word of a line, where it is one.
fn word(line: &str, before: &Sentence) -> Result<Option<Word>, String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [id, form, _, tag, ..] = columns[..] else {
        return Err(format!("{} columns instead of 10, divided by tabs", columns.len()));
    };
    if columns.len() != 10 {
        return Err(format!("{} columns instead of 10", columns.len()));
    }
    let numbers = |a: &str, b: &str| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok();
    if id.split_once(['-', '.']).is_some_and(|(a, b)| numbers(a, b)) {
        return Ok(None);
    }
    if id.parse() != Ok(before.0.len() + 1) {
        return Err(format!("`{id}` where word {} should be: is a line missing?", before.0.len() + 1));
    }
    let tag = universal(tag).map_err(|()| format!("`{tag}` is no universal tag (the fourth column)"))?;
    Ok(Some(Word { text: form.trim().to_owned(), tag }))
}
