//! What may stand in a sweep file: every key with its values, default and meaning, declared once.
//!
//! The reader, the check of grid paths, the suggestions and the reference for users all follow these declarations.

mod keys;
mod reference;

pub(crate) use keys::ROOT;
pub use reference::{KeyDoc, keys, reference};

use crate::fault::any_of;
use std::fmt;

/// One key of a mapping.
pub(crate) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub meaning: &'static str,
}

/// What a value must be.
pub(crate) enum Kind {
    Whole {
        min: u64,
        max: u64,
    },
    Number(Range),
    /// What it says, or `null`.
    OrNull(&'static Kind),
    Word(&'static [Word]),
    /// The name of a sweep.
    Name,
    List {
        of: &'static Kind,
        min: usize,
        max: usize,
        /// May no value occur twice?
        distinct: bool,
    },
    /// A word, or a list that the run specification keeps under `field`.
    WordOrList {
        words: &'static [Word],
        list: &'static Kind,
        field: &'static str,
    },
    Section(&'static [Key]),
    /// A mapping whose key `tag` decides which other keys it has.
    Choice(&'static Choice),
    /// The grid: read by itself, before everything else.
    Grid,
}

pub(crate) struct Choice {
    pub tag: &'static str,
    pub meaning: &'static str,
    /// Keys of every variant.
    pub common: &'static [Key],
    pub variants: &'static [Variant],
}

pub(crate) struct Variant {
    pub word: Word,
    pub keys: &'static [Key],
}

/// A word that a key can be set to.
pub(crate) struct Word {
    pub text: &'static str,
    /// False for what the documentation speaks of but this version does not do yet.
    pub available: bool,
    pub meaning: &'static str,
}

/// From `min` to `max`; an open end excludes the bound itself.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub min: f64,
    pub max: f64,
    pub open_min: bool,
    pub open_max: bool,
}

impl Range {
    pub const fn closed(min: f64, max: f64) -> Self {
        Self { min, max, open_min: false, open_max: false }
    }

    /// Above `min`, up to `max`.
    pub const fn above(min: f64, max: f64) -> Self {
        Self { min, max, open_min: true, open_max: false }
    }

    /// From `min`, below `max`.
    pub const fn below(min: f64, max: f64) -> Self {
        Self { min, max, open_min: false, open_max: true }
    }

    pub fn contains(&self, x: f64) -> bool {
        let low = if self.open_min { x > self.min } else { x >= self.min };
        let high = if self.open_max { x < self.max } else { x <= self.max };
        low && high
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.open_min { "above" } else { "from" };
        let to = match (self.open_min, self.open_max) {
            (_, true) => "to below",
            (true, false) => "up to",
            (false, false) => "to",
        };
        write!(f, "{from} {} {to} {}", Bound(self.min), Bound(self.max))
    }
}

/// A bound, without rows of zeros.
struct Bound(f64);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(x) = self;
        let plain = *x == 0.0 || (1e-3..1e6).contains(&x.abs());
        if plain { write!(f, "{x}") } else { write!(f, "{x:e}") }
    }
}

pub(crate) enum Default {
    Required,
    Null,
    Whole(u64),
    Number(f64),
    Numbers(&'static [f64]),
    Word(&'static str),
    Words(&'static [&'static str]),
    /// Every key of the section has a default of its own.
    Section,
    /// Nothing, and the run specification has no such key.
    Absent,
    /// Worked out from other keys, as the text says.
    Computed(&'static str),
}

impl Kind {
    /// For `must be …`.
    pub fn expected(&self) -> String {
        match self {
            Self::Whole { min, max } if min == max => format!("{min}"),
            Self::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number(range) => format!("a number {range}"),
            Self::OrNull(kind) => format!("{}, or null", kind.expected()),
            Self::Word(words) => any_of(available(words)),
            Self::Name => {
                "1 to 80 letters, digits, `-`, `_` and `.`, of which the first is a letter or a digit".to_owned()
            }
            Self::List { of, min, max, distinct } => {
                let count = match (*min, *max) {
                    (a, b) if a == b => format!("{a}"),
                    (a, b) => format!("{a} to {b}"),
                };
                let distinct = if *distinct { ", all different" } else { "" };
                format!("a list of {count}{distinct}, each {}", of.expected())
            }
            Self::WordOrList { words, list, .. } => format!("{}, or {}", any_of(available(words)), list.expected()),
            Self::Section(_) | Self::Grid => "a mapping (`key: value`, indented below it)".to_owned(),
            Self::Choice(choice) => {
                let words = any_of(choice.variants.iter().filter(|v| v.word.available).map(|v| v.word.text));
                format!("a mapping with `{}`: {words}", choice.tag)
            }
        }
    }

    /// The keys below this value: those of all variants where there are variants.
    pub fn keys(&self) -> Vec<&'static Key> {
        match self {
            Self::Section(keys) => keys.iter().collect(),
            Self::Choice(choice) => choice.common.iter().chain(choice.variants.iter().flat_map(|v| v.keys)).collect(),
            _ => Vec::new(),
        }
    }

    /// The names below this value; the tag of a choice is one of them.
    pub fn names(&self) -> Vec<&'static str> {
        let tag = match self {
            Self::Choice(choice) => Some(choice.tag),
            _ => None,
        };
        tag.into_iter().chain(self.keys().iter().map(|k| k.name)).collect()
    }
}

pub(crate) fn available(words: &[Word]) -> impl Iterator<Item = &str> {
    words.iter().filter(|w| w.available).map(|w| w.text)
}
