//! What may stand in a sweep file: every key with its values, default and meaning, declared once.
//!
//! The reader, the check of grid paths, the suggestions and the reference for users all follow these declarations.

mod keys;
mod measure;
mod natural;
mod reference;
mod tune;
mod words;

pub(crate) use keys::ROOT;
pub use reference::{KeyDoc, keys, reference};

use crate::{
    fault::{Mark, any_of},
    tree::{Node, Value},
};
use std::fmt;
pub(crate) use words::{Offered, Word, available};

/// Longest name of a latent task, in characters: the store takes 200 bytes.
pub(crate) const MAX_TASK: usize = 50;

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
    Flag,
    Word(&'static [Word]),
    /// The name of a sweep.
    Name,
    /// Free text of so many characters.
    Text {
        what: &'static str,
        min: usize,
        max: usize,
    },
    /// The name of a latent task: text, or `Null` without quotes.
    Task,
    /// Which blocks get adapters: `all`, `first:N`, `last:N` or `[FIRST, LAST]`.
    Blocks,
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
    /// May a variant that has no keys be written as its word alone?
    pub short: bool,
    /// Keys of every variant.
    pub common: &'static [Key],
    pub variants: &'static [Variant],
}

impl Choice {
    /// Of the variants there are.
    pub fn words(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.variants.iter().filter(|v| v.word.is_available()).map(|v| v.word.text)
    }

    /// The variants that may be written as their word alone.
    pub fn alone(&self) -> impl Iterator<Item = &'static Variant> {
        let short = self.short;
        self.variants.iter().filter(move |v| short && v.word.is_available() && v.keys.is_empty())
    }
}

pub(crate) struct Variant {
    pub word: Word,
    pub keys: &'static [Key],
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
    Wholes(&'static [u64]),
    Number(f64),
    Numbers(&'static [f64]),
    Flag(bool),
    Text(&'static str),
    Word(&'static str),
    Words(&'static [&'static str]),
    /// Every key of the section has a default of its own.
    Section,
    /// Nothing, and the run specification has no such key.
    Absent,
    /// Worked out from other keys, as the text says.
    Computed(&'static str),
}

impl Default {
    /// The value that has the default's meaning when it stands in a file.
    pub fn written(&self, at: Mark, varied: bool) -> Node {
        let node = |value| Node { at, varied, value };
        let list = |items: Vec<Value>| Value::List(items.into_iter().map(node).collect());
        let text = |text: &&str| Value::Text((*text).to_owned());
        node(match self {
            Self::Required | Self::Null | Self::Absent | Self::Computed(_) => Value::Null { named: false },
            Self::Whole(n) => Value::Whole((*n).into()),
            Self::Wholes(ns) => list(ns.iter().map(|n| Value::Whole((*n).into())).collect()),
            Self::Number(x) => Value::Number(*x),
            Self::Numbers(xs) => list(xs.iter().map(|x| Value::Number(*x)).collect()),
            Self::Flag(flag) => Value::Bool(*flag),
            Self::Text(word) | Self::Word(word) => text(word),
            Self::Words(words) => list(words.iter().map(text).collect()),
            Self::Section => Value::Map(Vec::new()),
        })
    }
}

impl Kind {
    /// For `must be …`.
    pub fn expected(&self) -> String {
        match self {
            Self::Whole { min, max } if min == max => format!("{min}"),
            Self::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number(range) => format!("a number {range}"),
            Self::OrNull(kind) => format!("{}, or null", kind.expected()),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Word(words) => any_of(available(words)),
            Self::Name => {
                "1 to 80 letters, digits, `-`, `_` and `.`, of which the first is a letter or a digit".to_owned()
            }
            Self::Text { what, min: 0, max } => format!("{what} (up to {max} characters)"),
            Self::Text { what, min, max } => format!("{what} ({min} to {max} characters)"),
            Self::Task => format!("the name of a latent task (1 to {MAX_TASK} characters)"),
            Self::Blocks => "`all`, `first:N`, `last:N`, or a list of the first and the last block, from 1".to_owned(),
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
                let mapping = format!("a mapping with `{}`: {}", choice.tag, any_of(choice.words()));
                let alone = any_of(choice.alone().map(|v| v.word.text));
                if alone.is_empty() { mapping } else { format!("{alone}, or {mapping}") }
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
}
