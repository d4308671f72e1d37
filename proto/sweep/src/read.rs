//! Reads a tree by the declarations of [`crate::schema`]: every fault is collected, every default made explicit.

mod hints;
mod scalar;
mod values;

pub(crate) use hints::shown;
pub(crate) use values::Values;

use crate::{
    fault::{Collector, Mark, any_of, did_you_mean, quoted, suggest},
    schema::{Choice, Default, Key, Kind, Offered, ROOT, Variant, Word, available},
    tree::{Entry, Node, Value, join, within},
};
use hints::{likely, number_hint, unknown_hint};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet};
use values::{Found, Place};

/// Reads a whole file (without its grid): the run specification as JSON, if sound, and the single values.
pub(crate) fn read(root: &Node, faults: &mut Collector) -> (Option<Json>, Values) {
    let mut reader = Reader { faults, values: Values::default(), run: None };
    let json = reader.value(root, &ROOT, "", root.at);
    (json, reader.values)
}

struct Reader<'a> {
    faults: &'a mut Collector,
    values: Values,
    /// The kind of run, once it is known.
    run: Option<&'static Variant>,
}

impl Reader<'_> {
    /// `key_at` is where the key of the value stands: what a mapping lacks is reported there.
    fn value(&mut self, node: &Node, kind: &Kind, path: &str, key_at: Mark) -> Option<Json> {
        let json = match kind {
            Kind::Whole { .. } | Kind::Number(_) | Kind::Flag | Kind::Name => self.scalar(node, kind, path),
            Kind::Text { .. } | Kind::Task | Kind::Blocks => self.scalar(node, kind, path),
            Kind::OrNull(inner) => match node.value {
                Value::Null { .. } => Some(Json::Null),
                _ if self.fits(node, inner) => self.value(node, inner, path, key_at),
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::Word(words) => self.word(node, words, kind, path),
            Kind::List { of, min, max, distinct } => match &node.value {
                Value::List(items) if (*min..=*max).contains(&items.len()) => {
                    self.items(items, of, *distinct, path, key_at)
                }
                Value::List(items) => self.wrong_length(node, items.len(), kind, path),
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::WordOrList { words, list, field } => match &node.value {
                Value::List(_) => self.value(node, list, path, key_at).map(|l| serde_json::json!({ *field: l })),
                _ => self.word(node, words, kind, path),
            },
            Kind::Section(keys) => match &node.value {
                Value::Map(_) => self.section(node, &keys.iter().collect::<Vec<_>>(), None, path, key_at),
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::Choice(choice) => match &node.value {
                Value::Map(_) => self.choice(node, choice, path, key_at),
                Value::Text(word) if choice.alone().any(|v| v.word.text == word) => {
                    Some(serde_json::json!({ choice.tag: word }))
                }
                Value::Text(word) if choice.short => {
                    self.wrong(node, kind, path, &did_you_mean(word, choice.alone().map(|v| v.word.text)))
                }
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::Grid => None,
        }?;
        let place = Place { at: node.at, varied: node.varied };
        self.values.found.insert(path.to_owned(), Found { json: json.clone(), place });
        Some(json)
    }

    fn word(&mut self, node: &Node, words: &'static [Word], kind: &Kind, path: &str) -> Option<Json> {
        let Value::Text(text) = &node.value else { return self.wrong(node, kind, path, "") };
        match words.iter().find(|w| w.text == text) {
            Some(word) if word.is_available() => Some(word.text.into()),
            Some(word) => self.not_offered(node, word, path, &kind.expected()),
            None => self.wrong(node, kind, path, &did_you_mean(text, available(words))),
        }
    }

    /// A word that is known, but not to be used here.
    fn not_offered(&mut self, node: &Node, word: &Word, path: &str, expected: &str) -> Option<Json> {
        let why = match word.offered {
            Offered::With(setting) => format!("goes with {setting}; here it is {expected}"),
            Offered::Here | Offered::Later => format!("is not in this version yet; use {expected}"),
        };
        self.faults.add(node.at, format!("`{path}`: `{}` {why}", word.text));
        None
    }

    fn items(&mut self, items: &[Node], of: &Kind, distinct: bool, path: &str, key_at: Mark) -> Option<Json> {
        self.values.lengths.insert(path.to_owned(), items.len());
        let read = |(i, item): (usize, &Node)| {
            let at = if matches!(item.value, Value::Map(_)) { item.at } else { key_at };
            self.value(item, of, &format!("{path}[{i}]"), at)
        };
        // Every item is read, so that every fault is found, before the first missing one ends it.
        let out: Vec<Option<Json>> = items.iter().enumerate().map(read).collect();
        let mut sound = true;
        let mut seen = BTreeSet::new();
        for (item, json) in items.iter().zip(&out) {
            // By what they mean, since `Null` and `'Null'` are the same task; as they are written where they mean nothing.
            let meaning = json.as_ref().map_or_else(|| item.spelling(), Json::to_string);
            if distinct && !seen.insert((json.is_some(), meaning)) {
                let shown = shown(item);
                self.faults.add(item.at, format!("{shown} occurs twice in `{path}`"));
                sound = false;
            }
        }
        out.into_iter().collect::<Option<Vec<_>>>().filter(|_| sound).map(Json::from)
    }

    fn choice(&mut self, node: &Node, choice: &'static Choice, path: &str, key_at: Mark) -> Option<Json> {
        let variant = self.variant(node, choice, path, key_at);
        // Where the tag is missing or misspelt, the other keys are read as those of the variant most likely meant.
        let meant = variant.or_else(|| likely(node, choice))?;
        if path.is_empty() {
            self.run = Some(meant);
        }
        let keys: Vec<&Key> = choice.common.iter().chain(meant.keys).collect();
        let mut json = self.section(node, &keys, Some(choice), path, key_at);
        if let Some(Json::Object(map)) = &mut json {
            map.insert(choice.tag.to_owned(), meant.word.text.into());
        }
        variant.and(json)
    }

    /// The variant that the tag names.
    fn variant(&mut self, node: &Node, choice: &'static Choice, path: &str, key_at: Mark) -> Option<&'static Variant> {
        let tag = join(path, choice.tag);
        let any = any_of(choice.words());
        let Some(entry) = node.get(choice.tag) else {
            self.faults.add(key_at, format!("missing key `{}`{}: {any}", choice.tag, within(path)));
            return None;
        };
        let Value::Text(text) = &entry.node.value else {
            self.faults.add(entry.node.at, format!("`{tag}` must be {any}, not {}", entry.node.describe()));
            return None;
        };
        match choice.variants.iter().find(|v| v.word.text == text) {
            Some(variant) if variant.word.is_available() => {
                let place = Place { at: entry.node.at, varied: entry.node.varied };
                self.values.found.insert(tag, Found { json: text.as_str().into(), place });
                Some(variant)
            }
            Some(variant) => {
                self.not_offered(&entry.node, &variant.word, &tag, &any);
                None
            }
            None => {
                let slip = did_you_mean(text, choice.words());
                self.faults.add(entry.node.at, format!("`{tag}` must be {any}, not {}{slip}", entry.node.describe()));
                None
            }
        }
    }

    fn section(
        &mut self,
        node: &Node,
        keys: &[&Key],
        choice: Option<&'static Choice>,
        path: &str,
        key_at: Mark,
    ) -> Option<Json> {
        let tag = choice.map(|c| c.tag);
        // Misspelt keys that are clear enough to be read as what was meant, so that what lies below is checked too.
        let mut meant: BTreeMap<&str, &Entry> = BTreeMap::new();
        let mut sound = true;
        for entry in node.entries() {
            if tag == Some(&*entry.key) || keys.iter().any(|k| k.name == entry.key) {
                continue;
            }
            if self.faults.is_full() {
                return None;
            }
            sound = false;
            let slip = suggest(&entry.key, tag.into_iter().chain(keys.iter().map(|k| k.name)));
            slip.map(|name| meant.entry(name).or_insert(entry));
            let hint = slip.map_or_else(
                || unknown_hint(&entry.key, path, keys, choice, self.run),
                |s| format!("; did you mean `{s}`?"),
            );
            self.faults.add(entry.key_at, format!("unknown key {}{}{hint}", quoted(&entry.key), within(path)));
        }
        let mut out = Map::new();
        for key in keys.iter().filter(|k| !matches!(k.kind, Kind::Grid)) {
            let json = match node.get(key.name).or_else(|| meant.get(key.name).copied()) {
                Some(entry) => self.value(&entry.node, &key.kind, &join(path, key.name), entry.key_at),
                None => self.default(key, node, path, key_at),
            };
            sound &= json.is_some();
            json.map(|json| out.insert(key.name.to_owned(), json));
        }
        sound.then_some(Json::Object(out))
    }

    fn default(&mut self, key: &Key, section: &Node, path: &str, key_at: Mark) -> Option<Json> {
        let inner = join(path, key.name);
        let json = match key.default {
            Default::Required => {
                let expected = key.kind.expected();
                self.faults.add(key_at, format!("missing key `{}`{}: {expected}", key.name, within(path)));
                return None;
            }
            Default::Section => {
                let empty = Node { at: section.at, varied: section.varied, value: Value::Map(Vec::new()) };
                return self.value(&empty, &key.kind, &inner, key_at);
            }
            Default::Null | Default::Computed(_) | Default::Absent => Json::Null,
            ref given => {
                let node = given.written(key_at, section.varied);
                return self.value(&node, &key.kind, &inner, key_at);
            }
        };
        let place = Place { at: key_at, varied: section.varied };
        self.values.found.insert(inner, Found { json: json.clone(), place });
        Some(json)
    }

    /// Would the value be read without a fault about itself? (Used where several kinds are allowed.)
    fn fits(&self, node: &Node, kind: &Kind) -> bool {
        let mut faults = Collector::default();
        Reader { faults: &mut faults, values: Values::default(), run: self.run }
            .value(node, kind, "", node.at)
            .is_some()
    }

    fn wrong(&mut self, node: &Node, kind: &Kind, path: &str, hint: &str) -> Option<Json> {
        let number = matches!(node.value, Value::Whole(_) | Value::Number(_) | Value::Bool(_));
        let spelling = match (&node.value, kind) {
            (_, Kind::OrNull(Kind::Text { .. }) | Kind::Text { .. } | Kind::Task) if number => {
                "; write it in quotes".to_owned()
            }
            (Value::Text(text), Kind::Whole { .. } | Kind::Number(_) | Kind::OrNull(Kind::Number(_))) => {
                number_hint(text)
            }
            _ => String::new(),
        };
        let what = if path.is_empty() { "a sweep file".to_owned() } else { format!("`{path}`") };
        self.faults
            .add(node.at, format!("{what} must be {}, not {}{spelling}{hint}", kind.expected(), node.describe()));
        None
    }

    fn wrong_length(&mut self, node: &Node, length: usize, kind: &Kind, path: &str) -> Option<Json> {
        self.faults.add(node.at, format!("`{path}` must be {}, not a list of {length}", kind.expected()));
        None
    }
}
