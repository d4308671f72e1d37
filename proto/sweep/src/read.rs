//! Reads a tree by the declarations of [`crate::schema`]: every fault is collected, every default made explicit.

use crate::{
    fault::{Collector, Mark, did_you_mean, quoted, suggest},
    schema::{Choice, Default, Key, Kind, ROOT, Variant, Word, available},
    tree::{Entry, Node, Value, join, within},
};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet};

/// The sound values of a tree by their dotted path, with their places. Values that are at fault are absent, so that
/// what depends on several values is checked exactly where all of them are known.
#[derive(Debug, Default)]
pub(crate) struct Values {
    found: BTreeMap<String, Found>,
    /// Items of every list, sound or not.
    lengths: BTreeMap<String, usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub json: Json,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub at: Mark,
    /// Is the value one that the grid varies?
    pub varied: bool,
}

impl Values {
    pub fn get(&self, path: &str) -> Option<&Found> {
        self.found.get(path)
    }

    pub fn whole(&self, path: &str) -> Option<u64> {
        self.get(path)?.json.as_u64()
    }

    /// How many items the list at `path` has; single ones may be at fault.
    pub fn items(&self, path: &str) -> usize {
        self.lengths.get(path).copied().unwrap_or(0)
    }

    pub fn word(&self, path: &str) -> Option<&str> {
        self.get(path)?.json.as_str()
    }

    /// Where to report that these values do not go together: at one that the grid varies, else at the first.
    pub fn blame(&self, paths: &[&str]) -> Mark {
        let places: Vec<Place> = paths.iter().filter_map(|p| self.get(p)).map(|f| f.place).collect();
        places.iter().rfind(|p| p.varied).or(places.first()).map_or(Mark::START, |p| p.at)
    }
}

/// Reads a whole file (without its grid): the run specification as JSON, if sound, and the single values.
pub(crate) fn read(root: &Node, faults: &mut Collector) -> (Option<Json>, Values) {
    let mut reader = Reader { faults, values: Values::default() };
    let json = reader.value(root, &ROOT, "", root.at);
    (json, reader.values)
}

struct Reader<'a> {
    faults: &'a mut Collector,
    values: Values,
}

impl Reader<'_> {
    /// `key_at` is where the key of the value stands: what a mapping lacks is reported there.
    fn value(&mut self, node: &Node, kind: &Kind, path: &str, key_at: Mark) -> Option<Json> {
        let json = match kind {
            Kind::Whole { min, max } => self.whole(node, *min, *max, kind, path),
            Kind::Number(range) => match number(node) {
                // Adding 0 turns -0 into 0, which is the same number in another spelling.
                Some(x) if range.contains(x) => Some(Json::from(x + 0.0)),
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::OrNull(inner) => match node.value {
                Value::Null => Some(Json::Null),
                _ if self.fits(node, inner) => self.value(node, inner, path, key_at),
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::Word(words) => self.word(node, words, kind, path),
            Kind::Name => match &node.value {
                Value::Text(name) if is_name(name) => Some(name.as_str().into()),
                _ => self.wrong(node, kind, path, ""),
            },
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
                _ => self.wrong(node, kind, path, ""),
            },
            Kind::Grid => None,
        }?;
        let place = Place { at: node.at, varied: node.varied };
        self.values.found.insert(path.to_owned(), Found { json: json.clone(), place });
        Some(json)
    }

    fn whole(&mut self, node: &Node, min: u64, max: u64, kind: &Kind, path: &str) -> Option<Json> {
        match node.value {
            Value::Whole(n) if (i128::from(min)..=i128::from(max)).contains(&n) => Some((n as u64).into()),
            // `8e4` and `80.0` are floating-point numbers in YAML.
            Value::Number(x) if x.fract() == 0.0 && x >= min as f64 && x <= (max as f64).min(2f64.powi(53)) => {
                self.wrong(node, kind, path, &format!("; write it as `{}`", x as u64))
            }
            _ => self.wrong(node, kind, path, ""),
        }
    }

    fn word(&mut self, node: &Node, words: &'static [Word], kind: &Kind, path: &str) -> Option<Json> {
        let Value::Text(text) = &node.value else { return self.wrong(node, kind, path, "") };
        match words.iter().find(|w| w.text == text) {
            Some(word) if word.available => Some(word.text.into()),
            Some(_) => {
                let expected = kind.expected();
                self.faults.add(node.at, format!("`{path}`: `{text}` is not in this version yet; use {expected}"));
                None
            }
            None => self.wrong(node, kind, path, &did_you_mean(text, available(words))),
        }
    }

    fn items(&mut self, items: &[Node], of: &Kind, distinct: bool, path: &str, key_at: Mark) -> Option<Json> {
        let mut sound = true;
        let mut seen = BTreeSet::new();
        for item in items {
            if distinct && !seen.insert(item.spelling()) {
                let shown = shown(item);
                self.faults.add(item.at, format!("{shown} occurs twice in `{path}`"));
                sound = false;
            }
        }
        self.values.lengths.insert(path.to_owned(), items.len());
        let read = |(i, item): (usize, &Node)| {
            let at = if matches!(item.value, Value::Map(_)) { item.at } else { key_at };
            self.value(item, of, &format!("{path}[{i}]"), at)
        };
        // Every item is read, so that every fault is found, before the first missing one ends it.
        let out: Vec<Option<Json>> = items.iter().enumerate().map(read).collect();
        out.into_iter().collect::<Option<Vec<_>>>().filter(|_| sound).map(Json::from)
    }

    fn choice(&mut self, node: &Node, choice: &'static Choice, path: &str, key_at: Mark) -> Option<Json> {
        let variant = self.variant(node, choice, path, key_at);
        // Where the tag is missing or misspelt, the other keys are read as those of the variant most likely meant.
        let meant = variant.or_else(|| likely(node, choice))?;
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
        let words = choice.variants.iter().map(|v| &v.word).filter(|w| w.available).map(|w| w.text);
        let any = crate::fault::any_of(words.clone());
        let Some(entry) = node.get(choice.tag) else {
            self.faults.add(key_at, format!("missing key `{}`{}: {any}", choice.tag, within(path)));
            return None;
        };
        let Value::Text(text) = &entry.node.value else {
            self.faults.add(entry.node.at, format!("`{tag}` must be {any}, not {}", entry.node.describe()));
            return None;
        };
        match choice.variants.iter().find(|v| v.word.text == text) {
            Some(variant) if variant.word.available => {
                let place = Place { at: entry.node.at, varied: entry.node.varied };
                self.values.found.insert(tag, Found { json: text.as_str().into(), place });
                Some(variant)
            }
            Some(_) => {
                self.faults.add(entry.node.at, format!("`{tag}`: `{text}` is not in this version yet; use {any}"));
                None
            }
            None => {
                let slip = did_you_mean(text, words);
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
            let hint =
                slip.map_or_else(|| unknown_hint(&entry.key, keys, choice), |s| format!("; did you mean `{s}`?"));
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
            Default::Whole(n) => n.into(),
            Default::Number(x) => x.into(),
            Default::Numbers(xs) => xs.into(),
            Default::Word(word) => word.into(),
            Default::Words(words) => words.into(),
        };
        let place = Place { at: key_at, varied: section.varied };
        self.values.found.insert(inner, Found { json: json.clone(), place });
        Some(json)
    }

    /// Would the value be read without a fault about itself? (Used where several kinds are allowed.)
    fn fits(&self, node: &Node, kind: &Kind) -> bool {
        let mut faults = Collector::default();
        Reader { faults: &mut faults, values: Values::default() }.value(node, kind, "", node.at).is_some()
    }

    fn wrong(&mut self, node: &Node, kind: &Kind, path: &str, hint: &str) -> Option<Json> {
        let spelling = match (&node.value, kind) {
            (Value::Text(text), Kind::Whole { .. } | Kind::Number(_) | Kind::OrNull(_)) => number_hint(text),
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

fn number(node: &Node) -> Option<f64> {
    match node.value {
        Value::Number(x) => Some(x),
        Value::Whole(n) => Some(n as f64),
        _ => None,
    }
}

/// For text where a number belongs: how to write the number that it looks like.
fn number_hint(text: &str) -> String {
    match (text.parse::<f64>(), text.replace('_', "").parse::<f64>()) {
        (Ok(x), _) if x.is_finite() => "; write it without quotes".to_owned(),
        (Ok(_), _) => "; no number is that large".to_owned(),
        (_, Ok(_)) if !text.starts_with('_') => format!("; write it as {}", quoted(&text.replace('_', ""))),
        _ => String::new(),
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 80 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed)
}

/// A scalar as it is written, other values by what they are.
pub(crate) fn shown(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => quoted(text),
        Value::Whole(n) => format!("`{n}`"),
        Value::Number(x) => format!("`{x:?}`"),
        _ => node.describe(),
    }
}

fn likely(node: &Node, choice: &'static Choice) -> Option<&'static Variant> {
    let offered = || choice.variants.iter().filter(|v| v.word.available);
    match node.get(choice.tag).map(|e| &e.node.value) {
        Some(Value::Text(text)) if choice.variants.iter().any(|v| v.word.text == text) => None,
        Some(Value::Text(text)) => {
            let word = suggest(text, offered().map(|v| v.word.text))?;
            offered().find(|v| v.word.text == word)
        }
        // The one with most of the keys that are there.
        _ => offered().max_by_key(|v| v.keys.iter().filter(|k| node.get(k.name).is_some()).count()),
    }
}

/// Where a key that is unknown here is known, or what is known here.
fn unknown_hint(key: &str, keys: &[&Key], choice: Option<&'static Choice>) -> String {
    let variants = choice.map_or(&[][..], |c| c.variants);
    let of_variant = variants.iter().find(|v| v.keys.iter().any(|k| k.name == key));
    if let (Some(choice), Some(variant)) = (choice, of_variant) {
        return format!("; it goes with `{}: {}`", choice.tag, variant.word.text);
    }
    if let Some(section) = elsewhere(key, &ROOT, "") {
        return format!("; `{key}` belongs in `{section}`");
    }
    let names: Vec<&str> = choice.map(|c| c.tag).into_iter().chain(keys.iter().map(|k| k.name)).collect();
    format!("; known keys: {}", names.join(", "))
}

/// The section in which a key of this name is declared.
fn elsewhere(key: &str, kind: &Kind, path: &str) -> Option<String> {
    let keys = kind.keys();
    if !path.is_empty() && keys.iter().any(|k| k.name == key) {
        return Some(path.to_owned());
    }
    keys.iter().find_map(|k| elsewhere(key, &k.kind, &join(path, k.name)))
}
