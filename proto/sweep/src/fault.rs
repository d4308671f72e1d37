//! What is wrong with a sweep file: every fault with its place, in the order of the file.

use std::{collections::BTreeSet, fmt};

/// A place in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

impl Mark {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// One thing that is wrong: what, the values allowed, and what may have been meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub at: Mark,
    pub message: String,
}

/// All faults of one file, in its order.
///
/// Displayed one per line as `FILE:LINE:COLUMN: MESSAGE`, at most [`Faults::SHOWN`] of them and the count of the rest.
#[derive(Debug)]
pub struct Faults {
    file: String,
    faults: Vec<Fault>,
}

impl Faults {
    pub const SHOWN: usize = 50;

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }

    pub fn len(&self) -> usize {
        self.faults.len()
    }

    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().take(Self::SHOWN).enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}:{}: {}", self.file, fault.at.line, fault.at.column, fault.message)?;
        }
        match self.faults.len().saturating_sub(Self::SHOWN) {
            0 => Ok(()),
            rest => write!(f, "\n{}: and {rest} more", self.file),
        }
    }
}

impl std::error::Error for Faults {}

/// Gathers faults. The same fault at the same place is kept once, however many grid points it shows up in.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    found: BTreeSet<Fault>,
}

impl Collector {
    /// More than this no one reads, and looking for more could take long in a hostile file.
    const ENOUGH: usize = 1000;

    pub fn add(&mut self, at: Mark, message: impl Into<String>) {
        if !self.is_full() {
            self.found.insert(Fault { at, message: message.into() });
        }
    }

    pub fn is_full(&self) -> bool {
        self.found.len() >= Self::ENOUGH
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn into_faults(self, file: &str) -> Faults {
        Faults { file: file.to_owned(), faults: self.found.into_iter().collect() }
    }
}

/// The candidate that `word` is most likely a slip of, where one is close enough.
pub(crate) fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    if word.chars().count() > 60 {
        return None;
    }
    let distance = |c: &str| strsim::damerau_levenshtein(&word, &plain(c));
    let (best, edits) = candidates.into_iter().map(|c| (c, distance(c))).min_by_key(|&(_, edits)| edits)?;
    let allowed = match best.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    (edits <= allowed).then_some(best)
}

/// `; did you mean `…`?`, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    suggest(word, candidates).map(|s| format!("; did you mean `{s}`?")).unwrap_or_default()
}

/// Text from the file as it is shown in a message: on one line, not too long.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut out: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    format!("`{out}`")
}

/// `a, b or c`, each in backquotes.
pub(crate) fn any_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|w| format!("`{w}`")).collect();
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised_and_other_words_are_not() {
        let keys = ["learning_rate", "betas", "kind", "td"];
        assert_eq!(suggest("lerning_rate", keys), Some("learning_rate"));
        assert_eq!(suggest("learning-rate", keys), Some("learning_rate"));
        assert_eq!(suggest("Kind", keys), Some("kind"));
        assert_eq!(suggest("momentum", keys), None);
        assert_eq!(suggest("tx", keys), None);
    }

    #[test]
    fn text_from_the_file_cannot_break_the_lines_of_a_message() {
        assert_eq!(quoted("a\nb"), "`a\\nb`");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), 43);
    }

    #[test]
    fn equal_faults_are_kept_once_and_the_rest_is_counted() {
        let mut all = Collector::default();
        for i in 0..60 {
            all.add(Mark { line: 60 - i, column: 1 }, "bad");
            all.add(Mark { line: 60 - i, column: 1 }, "bad");
        }
        let faults = all.into_faults("f.yaml");
        assert_eq!(faults.len(), 60);
        let shown = faults.to_string();
        assert!(shown.starts_with("f.yaml:1:1: bad\nf.yaml:2:1: bad\n"), "{shown}");
        assert!(shown.ends_with("f.yaml:50:1: bad\nf.yaml: and 10 more"), "{shown}");
    }
}
