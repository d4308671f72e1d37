//! The Penn Treebank's parsed and tagged sentences (`combined/*.mrg`): one bracketed tree each, `(TAG word)` at its leaves.
//!
//! Traces (`-NONE-`) are no words. `-LRB-` and its like are written as the brackets they stand for, and `\/` and `\*`
//! without the backslash. Quotes stay as they are (two backticks, two apostrophes).

use super::{Sentence, Word, tagset::penn};
use crate::task::{Faults, source::Wanted};

pub(in crate::task) const FILES: Wanted =
    Wanted { is: |name| name.ends_with(".mrg"), shown: "file of trees ending in .mrg (combined/ of the treebank)" };

pub(super) fn sentences(file: &str, text: &str, faults: &mut Faults) -> Vec<Sentence> {
    let mut trees = Trees::default();
    for (i, line) in text.lines().enumerate() {
        for part in parts(line) {
            if let Err(reason) = trees.take(part, i + 1) {
                faults.add(file, i + 1, reason);
            }
        }
    }
    if trees.depth > 0 {
        let reason = format!("the tree that begins here is never closed: {} brackets are missing", trees.depth);
        faults.add(file, trees.begun, reason);
    }
    trees.done
}

/// Brackets and what stands between brackets and blanks.
fn parts(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = match first {
            '(' | ')' => 1,
            _ => rest.find(|c: char| c.is_whitespace() || c == '(' || c == ')').unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at(end);
        rest = after;
        Some(part)
    })
}

#[derive(Default)]
struct Trees<'a> {
    done: Vec<Sentence>,
    sentence: Sentence,
    depth: usize,
    /// The line in which the open tree begins.
    begun: usize,
    /// What stood since the last bracket: a label, or a tag and its word.
    atoms: Vec<&'a str>,
}

impl<'a> Trees<'a> {
    fn take(&mut self, part: &'a str, line: usize) -> Result<(), String> {
        match part {
            "(" => self.open(line),
            ")" => self.close(),
            _ if self.depth == 0 => Err(format!("`{part}` stands outside every tree")),
            _ => {
                self.atoms.push(part);
                Ok(())
            }
        }
    }

    fn open(&mut self, line: usize) -> Result<(), String> {
        if self.depth == 0 {
            self.begun = line;
        }
        self.depth += 1;
        let label = std::mem::take(&mut self.atoms);
        if label.len() > 1 { Err(format!("`{}` is no label of a phrase", label.join(" "))) } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), String> {
        let depth = self.depth.checked_sub(1).ok_or("this bracket closes nothing")?;
        let leaf = match std::mem::take(&mut self.atoms)[..] {
            [] => Ok(()),
            ["-NONE-", _] => Ok(()),
            [tag, word] => {
                self.sentence.0.push(Word { text: plain(word), tag: penn(tag) });
                Ok(())
            }
            ref other => Err(format!("`({})` is not `(TAG word)`; use the files of combined/ (.mrg)", other.join(" "))),
        };
        self.depth = depth;
        if depth == 0 {
            self.done.push(std::mem::take(&mut self.sentence));
        }
        leaf
    }
}

/// The word as it stood in the newspaper.
fn plain(word: &str) -> String {
    match word {
        "-LRB-" => "(".into(),
        "-RRB-" => ")".into(),
        "-LSB-" => "[".into(),
        "-RSB-" => "]".into(),
        "-LCB-" => "{".into(),
        "-RCB-" => "}".into(),
        _ => word.replace("\\/", "/").replace("\\*", "*"),
    }
}
