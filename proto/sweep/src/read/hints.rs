//! What was probably meant, and where it would be right.

use crate::{
    fault::{any_of, quoted, suggest},
    schema::{Choice, Key, Kind, ROOT, Variant},
    tree::{Node, Value, join},
};
use taskvec_model::spec::NULL_TASK;

/// For text where a number belongs: how to write the number that it looks like.
pub(super) fn number_hint(text: &str) -> String {
    match (text.parse::<f64>(), text.replace('_', "").parse::<f64>()) {
        (Ok(x), _) if x.is_finite() => "; write it without quotes".to_owned(),
        (Ok(_), _) => "; no number is that large".to_owned(),
        (_, Ok(_)) if !text.starts_with('_') => format!("; write it as {}", quoted(&text.replace('_', ""))),
        _ => String::new(),
    }
}

pub(super) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 80 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed)
}

/// A scalar as it is written, other values by what they are.
pub(crate) fn shown(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => quoted(text),
        Value::Whole(n) => format!("`{n}`"),
        Value::Number(x) => format!("`{x:?}`"),
        Value::Null { named: true } => quoted(NULL_TASK),
        _ => node.describe(),
    }
}

/// The variant that a mapping was most likely meant to be.
pub(super) fn likely(node: &Node, choice: &'static Choice) -> Option<&'static Variant> {
    match node.get(choice.tag).map(|e| &e.node.value) {
        Some(Value::Text(text)) if choice.variants.iter().any(|v| v.word.text == text) => None,
        Some(Value::Text(text)) => {
            let word = suggest(text, choice.words())?;
            choice.variants.iter().find(|v| v.word.text == word)
        }
        // The one that knows most of the keys that are there.
        _ => choice.variants.iter().filter(|v| v.word.is_available()).max_by_key(|v| familiar(node, v.keys.iter())),
    }
}

/// How many keys in a mapping, and in the mappings below it, are among those declared.
fn familiar(node: &Node, keys: impl Iterator<Item = &'static Key> + Clone) -> usize {
    let known = node.entries().iter().filter_map(|entry| {
        let key = keys.clone().find(|k| k.name == entry.key)?;
        Some(1 + familiar(&entry.node, key.kind.keys().into_iter()))
    });
    known.sum()
}

/// Where a key that is unknown in the section at `path` is known, or what is known there. `run` is the kind of run, if
/// that is clear.
pub(super) fn unknown_hint(
    key: &str,
    path: &str,
    keys: &[&Key],
    choice: Option<&'static Choice>,
    run: Option<&'static Variant>,
) -> String {
    if let Some(choice) = choice {
        let settings = settings(choice, |v| v.keys.iter().any(|k| k.name == key));
        if !settings.is_empty() {
            return format!("; it goes with {settings}");
        }
    }
    if let Some(section) = run.and_then(|run| section_of(key, run)) {
        return format!("; `{key}` belongs in `{section}`");
    }
    if let Kind::Choice(root) = &ROOT
        && let Some(section) = root.variants.iter().find_map(|run| section_of(key, run))
    {
        let runs = settings(root, |run| section_of(key, run).is_some_and(|s| s == section));
        let there = if section == without_numbers(path) {
            "it goes".to_owned()
        } else {
            format!("`{key}` belongs in `{section}`,")
        };
        return format!("; {there} with {runs}");
    }
    let names: Vec<&str> = choice.map(|c| c.tag).into_iter().chain(keys.iter().map(|k| k.name)).collect();
    format!("; known keys: {}", names.join(", "))
}

/// `tag: word` of the variants that fit.
fn settings(choice: &Choice, fits: impl Fn(&Variant) -> bool) -> String {
    let fitting = choice.variants.iter().filter(|v| fits(v));
    let settings: Vec<String> = fitting.map(|v| format!("{}: {}", choice.tag, v.word.text)).collect();
    any_of(settings.iter().map(String::as_str))
}

/// The section of a kind of run in which a key of this name is declared.
fn section_of(key: &str, run: &Variant) -> Option<String> {
    run.keys.iter().find_map(|k| elsewhere(key, &k.kind, k.name))
}

/// The section in which a key of this name is declared, from the section at `path` down.
fn elsewhere(key: &str, kind: &Kind, path: &str) -> Option<String> {
    if let Kind::List { of, .. } = kind {
        return elsewhere(key, of, &format!("{path}[]"));
    }
    let keys = kind.keys();
    if keys.iter().any(|k| k.name == key) {
        return Some(path.to_owned());
    }
    keys.iter().find_map(|k| elsewhere(key, &k.kind, &join(path, k.name)))
}

/// `analyses[3]` as `analyses[]`.
fn without_numbers(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}
