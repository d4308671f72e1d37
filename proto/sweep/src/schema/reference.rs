//! The reference of all keys, for the documentation and the help of the command line.

use super::{Choice, Default, Key, Kind, ROOT, Word, available};
use crate::{fault::any_of, tree::join};
use std::collections::BTreeMap;

/// What there is to know about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// Dotted path, as in a grid; `[]` for the items of a list.
    pub path: String,
    /// Where it applies: `kind: pretrain`, say; empty for everywhere, or wherever the section is that it belongs to.
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
    let Kind::Choice(root) = &ROOT else { return Vec::new() };
    let mut before = Vec::new();
    root.common.iter().filter(|k| !matches!(k.kind, Kind::Grid)).for_each(|k| one(k, "", &mut before));
    tag(root, "", &mut before);
    let mut after = Vec::new();
    root.common.iter().filter(|k| matches!(k.kind, Kind::Grid)).for_each(|k| one(k, "", &mut after));
    before.into_iter().chain(of_runs(root)).chain(after).collect()
}

/// The keys of every kind of run. The kinds are named for the sections, and for keys that differ between kinds.
fn of_runs(root: &Choice) -> Vec<KeyDoc> {
    let rows = of_variants(root, "");
    let mut times: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for row in &rows {
        *times.entry((&row.doc.path, &row.doc.when)).or_default() += 1;
    }
    let differs = rows.iter().map(|row| times[&(row.doc.path.as_str(), row.doc.when.as_str())] > 1);
    let differs: Vec<bool> = differs.collect();
    let named = |(row, differs): (Row, bool)| {
        let runs = row.settings.join(", ");
        let mut doc = row.doc;
        doc.when = match doc.when.as_str() {
            _ if !differs && !row.direct => doc.when,
            "" => runs,
            inner => format!("{inner} in {runs}"),
        };
        doc
    };
    rows.into_iter().zip(differs).map(named).collect()
}

/// A key of a variant, or one below it.
struct Row {
    doc: KeyDoc,
    /// The variants that have it, as `tag: word`.
    settings: Vec<String>,
    /// Is it a key of the variants themselves?
    direct: bool,
}

/// The keys of all variants; what is the same in several comes once.
fn of_variants(choice: &Choice, path: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for variant in choice.variants {
        let setting = format!("`{}: {}`", choice.tag, variant.word.text);
        for key in variant.keys {
            let mut found = Vec::new();
            one(key, path, &mut found);
            for (i, doc) in found.into_iter().enumerate() {
                match rows.iter_mut().find(|row| row.doc == doc) {
                    Some(row) => row.settings.push(setting.clone()),
                    None => rows.push(Row { doc, settings: vec![setting.clone()], direct: i == 0 }),
                }
            }
        }
    }
    rows
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

fn below(kind: &Kind, path: &str, out: &mut Vec<KeyDoc>) {
    match kind {
        Kind::Section(keys) => keys.iter().for_each(|key| one(key, path, out)),
        Kind::Choice(choice) => {
            choice.common.iter().for_each(|key| one(key, path, out));
            tag(choice, path, out);
            out.extend(of_variants(choice, path).into_iter().map(|row| {
                let when = if row.direct { row.settings.join(", ") } else { row.doc.when };
                KeyDoc { when, ..row.doc }
            }));
        }
        Kind::List { of, .. } => below(of, &format!("{path}[]"), out),
        _ => {}
    }
}

fn tag(choice: &Choice, path: &str, out: &mut Vec<KeyDoc>) {
    out.push(KeyDoc {
        path: join(path, choice.tag),
        when: String::new(),
        values: any_of(choice.words()),
        default: "required".to_owned(),
        meaning: choice.meaning.to_owned(),
        words: explained(choice.variants.iter().map(|v| &v.word)),
    });
}

fn one(key: &Key, path: &str, out: &mut Vec<KeyDoc>) {
    let inner = join(path, key.name);
    let words = match &key.kind {
        Kind::Word(words) | Kind::WordOrList { words, .. } => explained(words.iter()),
        Kind::List { of: Kind::Word(words), .. } => explained(words.iter()),
        _ => Vec::new(),
    };
    let values = match &key.kind {
        Kind::Choice(choice) if choice.short => key.kind.expected(),
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
        when: String::new(),
        values,
        default: default(&key.default),
        meaning: key.meaning.to_owned(),
        words,
    });
    below(&key.kind, &inner, out);
}

fn explained<'a>(words: impl Iterator<Item = &'a Word>) -> Vec<(String, String)> {
    words.filter(|w| w.is_available()).map(|w| (w.text.to_owned(), w.meaning.to_owned())).collect()
}

fn default(default: &Default) -> String {
    match default {
        Default::Required => "required".to_owned(),
        Default::Null => "`null`".to_owned(),
        Default::Whole(n) => format!("`{n}`"),
        Default::Wholes(ns) => format!("`{ns:?}`"),
        Default::Flag(flag) => format!("`{flag}`"),
        Default::Text(text) => format!("`{text:?}`"),
        Default::Number(x) => format!("`{x:?}`"),
        Default::Numbers(xs) => format!("`{xs:?}`"),
        Default::Word(word) => format!("`{word}`"),
        Default::Words(words) => format!("`[{}]`", words.join(", ")),
        Default::Section => "the defaults of its keys".to_owned(),
        Default::Absent => "none".to_owned(),
        Default::Computed(how) => how.to_string(),
    }
}
