//! The reference of all keys, for the documentation and the help of the command line.

use super::{Choice, Default, Key, Kind, ROOT, Word, available};
use crate::tree::join;

/// What there is to know about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// Dotted path, as in a grid; `[]` for the items of a list.
    pub path: String,
    /// Where it applies: `kind: pretrain`, say; empty for everywhere.
    pub when: String,
    /// The values allowed.
    pub values: String,
    /// The default, as written in a file; `required` where there is none.
    pub default: String,
    pub meaning: String,
    /// The words it can be set to, with their meanings; those of later versions are left out.
    pub words: Vec<(String, String)>,
}

/// All keys, in the order in which a file usually has them.
pub fn keys() -> Vec<KeyDoc> {
    let mut out = Vec::new();
    below(&ROOT, "", "", &mut out);
    out
}

/// [`keys`] as a Markdown table.
pub fn reference() -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut out = "| key | values | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for key in keys() {
        let when = if key.when.is_empty() { String::new() } else { format!(" ({})", key.when) };
        let words = key.words.iter().map(|(word, meaning)| format!("<br>`{word}`: {meaning}"));
        let meaning: String = std::iter::once(key.meaning).chain(words).collect();
        let cells = [format!("`{}`{when}", key.path), key.values, key.default, meaning].map(|c| cell(&c));
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out
}

fn below(kind: &Kind, path: &str, when: &str, out: &mut Vec<KeyDoc>) {
    match kind {
        Kind::Section(keys) => keys.iter().for_each(|key| one(key, path, when, out)),
        Kind::Choice(choice) => {
            choice.common.iter().filter(|k| !matches!(k.kind, Kind::Grid)).for_each(|k| one(k, path, when, out));
            tag(choice, path, when, out);
            for variant in choice.variants {
                let when = format!("`{}: {}`", choice.tag, variant.word.text);
                variant.keys.iter().for_each(|key| one(key, path, &when, out));
            }
            choice.common.iter().filter(|k| matches!(k.kind, Kind::Grid)).for_each(|k| one(k, path, when, out));
        }
        Kind::List { of, .. } => below(of, &format!("{path}[]"), when, out),
        _ => {}
    }
}

fn tag(choice: &Choice, path: &str, when: &str, out: &mut Vec<KeyDoc>) {
    let words = || choice.variants.iter().map(|v| &v.word);
    out.push(KeyDoc {
        path: join(path, choice.tag),
        when: when.to_owned(),
        values: crate::fault::any_of(words().filter(|w| w.available).map(|w| w.text)),
        default: "required".to_owned(),
        meaning: choice.meaning.to_owned(),
        words: explained(words()),
    });
}

fn one(key: &Key, path: &str, when: &str, out: &mut Vec<KeyDoc>) {
    let inner = join(path, key.name);
    let words = match &key.kind {
        Kind::Word(words) | Kind::WordOrList { words, .. } => explained(words.iter()),
        Kind::List { of: Kind::Word(words), .. } => explained(words.iter()),
        _ => Vec::new(),
    };
    let values = match &key.kind {
        Kind::Section(_) | Kind::Choice(_) | Kind::Grid => "mapping".to_owned(),
        Kind::List { of: Kind::Choice(_), min, max, .. } => format!("list of {min} to {max} mappings"),
        Kind::List { of: Kind::Word(words), .. } => {
            format!(
                "list of different words out of {}",
                available(words).map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
            )
        }
        kind => kind.expected(),
    };
    out.push(KeyDoc {
        path: inner.clone(),
        when: when.to_owned(),
        values,
        default: default(&key.default),
        meaning: key.meaning.to_owned(),
        words,
    });
    below(&key.kind, &inner, "", out);
}

fn explained<'a>(words: impl Iterator<Item = &'a Word>) -> Vec<(String, String)> {
    words.filter(|w| w.available).map(|w| (w.text.to_owned(), w.meaning.to_owned())).collect()
}

fn default(default: &Default) -> String {
    match default {
        Default::Required => "required".to_owned(),
        Default::Null => "`null`".to_owned(),
        Default::Whole(n) => format!("`{n}`"),
        Default::Number(x) => format!("`{x:?}`"),
        Default::Numbers(xs) => format!("`{xs:?}`"),
        Default::Word(word) => format!("`{word}`"),
        Default::Words(words) => format!("`[{}]`", words.join(", ")),
        Default::Section => "the defaults of its keys".to_owned(),
        Default::Absent => "none".to_owned(),
        Default::Computed(how) => how.to_string(),
    }
}
