//! The words that a key can be set to.

/// A word that a key can be set to.
pub(crate) struct Word {
    pub text: &'static str,
    pub offered: Offered,
    pub meaning: &'static str,
}

/// Is it there?
pub(crate) enum Offered {
    Here,
    /// The documentation speaks of it, but this version does not do it yet.
    Later,
    /// With another setting, which the text names.
    With(&'static str),
}

impl Word {
    pub fn is_available(&self) -> bool {
        matches!(self.offered, Offered::Here)
    }
}

pub(crate) const fn word(text: &'static str, meaning: &'static str) -> Word {
    Word { text, offered: Offered::Here, meaning }
}

/// Known, but not in this version.
pub(crate) const fn later(text: &'static str) -> Word {
    Word { text, offered: Offered::Later, meaning: "" }
}

/// Known, but only with `setting`.
pub(crate) const fn elsewhere(text: &'static str, setting: &'static str) -> Word {
    Word { text, offered: Offered::With(setting), meaning: "" }
}

pub(crate) fn available(words: &[Word]) -> impl Iterator<Item = &str> {
    words.iter().filter(|w| w.is_available()).map(|w| w.text)
}
