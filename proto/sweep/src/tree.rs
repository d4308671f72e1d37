//! YAML text as a tree in which every key and value knows its place.
//!
//! `serde_yaml` decides what the values are. It keeps no places, so the events of `saphyr-parser` give them: both walk
//! the document in the same order. The event pass comes first and refuses what could do harm or mean something else
//! than it seems (deep nesting, anchors and aliases, tags, several documents).

mod raw;

use crate::{
    Limits,
    fault::{Collector, Mark, quoted},
};
use raw::Raw;
use saphyr_parser::{Event, Parser};
use std::collections::BTreeMap;
use taskvec_model::spec::NULL_TASK;

/// A value of the file and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub at: Mark,
    /// Does it come from the grid? A fault that involves such a value is reported there.
    pub varied: bool,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null {
        /// Written as `Null`, which is also the name of a latent task.
        named: bool,
    },
    Bool(bool),
    Whole(i128),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: Mark,
    pub node: Node,
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.key == key)
    }

    /// The entries of a mapping; none for any other value.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// What it is, for `…, not WHAT`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null { .. } => "empty".to_owned(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Whole(i) => format!("{i}"),
            Value::Number(x) => format!("{x:?}"),
            Value::Text(text) => format!("the text {}", quoted(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// As JSON, as the user wrote it.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null { named: true } => NULL_TASK.into(),
            Value::Null { named: false } => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Whole(i) => match (u64::try_from(*i), i64::try_from(*i)) {
                (Ok(u), _) => u.into(),
                (_, Ok(i)) => i.into(),
                _ => (*i as f64).into(),
            },
            Value::Number(x) => (*x).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect(),
        }
    }

    /// Text that is equal for equal values, however they are written: `1e-3` and `0.001`, `1` and `1.0`, mappings in
    /// any order.
    pub fn spelling(&self) -> String {
        match &self.value {
            Value::Whole(n) if n.unsigned_abs() < 1 << 53 => format!("{:?}", *n as f64),
            Value::Whole(n) => n.to_string(),
            Value::Number(x) => format!("{:?}", x + 0.0),
            Value::List(items) => format!("[{}]", items.iter().map(Self::spelling).collect::<Vec<_>>().join(",")),
            Value::Map(entries) => {
                let part = |e: &Entry| format!("{:?}:{}", e.key, e.node.spelling());
                let mut parts: Vec<String> = entries.iter().map(part).collect();
                parts.sort();
                format!("{{{}}}", parts.join(","))
            }
            Value::Text(text) => format!("{text:?}"),
            Value::Bool(b) => b.to_string(),
            Value::Null { .. } => "null".to_owned(),
        }
    }

    pub fn mark_varied(&mut self) {
        self.varied = true;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(Self::mark_varied),
            Value::Map(entries) => entries.iter_mut().for_each(|e| e.node.mark_varied()),
            _ => {}
        }
    }
}

/// Reads the text. None when there is no tree to go on with; duplicate keys are faults, but the first of them stays.
pub(crate) fn parse(text: &str, limits: &Limits, faults: &mut Collector) -> Option<Node> {
    if text.len() > limits.file_bytes {
        let message = format!("the file has {} bytes; the limit is {}", text.len(), limits.file_bytes);
        faults.add(Mark::START, message);
        return None;
    }
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let marks = match scan(text, limits) {
        Ok(marks) => marks,
        Err((at, message)) => {
            faults.add(at, message);
            return None;
        }
    };
    let raw: Raw = match serde_yaml::from_str(text) {
        Ok(raw) => raw,
        Err(e) => {
            let at = e.location().map_or(Mark::START, |l| Mark { line: l.line(), column: l.column() });
            faults.add(at.min(end(text)), syntax(text, at, &e.to_string()));
            return None;
        }
    };
    if raw.count() != marks.len() {
        faults.add(Mark::START, "YAML readers disagree about this file; write it more plainly (quote unusual text)");
        return None;
    }
    place(raw, &mut marks.into_iter(), "", faults)
}

/// What the events say about a node that its value does not.
#[derive(Clone, Copy)]
struct Spot {
    at: Mark,
    /// Written as `Null`.
    named: bool,
}

/// The places of all nodes, keys included, in the order of the document.
fn scan(text: &str, limits: &Limits) -> Result<Vec<Spot>, (Mark, String)> {
    let mut marks = Vec::new();
    let end = end(text);
    let mut documents = 0;
    let mut depth = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|e| {
            let at = Mark { line: e.marker().line(), column: e.marker().col() + 1 };
            (at.min(end), syntax(text, at, e.info()))
        })?;
        let at = Mark { line: span.start.line(), column: span.start.col() + 1 }.min(end);
        let (anchor, tag) = match &event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err((at, "a sweep file holds one document; remove `---`".to_owned()));
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                depth -= 1;
                continue;
            }
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                depth += 1;
                (*anchor, tag.is_some())
            }
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some()),
            Event::Alias(anchor) => (*anchor, false),
            _ => continue,
        };
        if depth > limits.depth {
            return Err((at, format!("nested more than {} levels deep", limits.depth)));
        }
        if anchor != 0 {
            let what = "anchors and aliases (`&name`, `*name`) are not allowed in a sweep file; write the value out";
            return Err((at, what.to_owned()));
        }
        if tag {
            return Err((at, "tags (`!name`) are not allowed in a sweep file".to_owned()));
        }
        let named = matches!(&event, Event::Scalar(text, ..) if text == NULL_TASK);
        marks.push(Spot { at, named });
    }
    match marks.is_empty() {
        true => Err((Mark::START, "the file is empty; a sweep file starts with `version: 1`".to_owned())),
        false => Ok(marks),
    }
}

/// The place after the last character that is not a line break. The readers point beyond it where something is missing
/// at the end.
fn end(text: &str) -> Mark {
    let last = text.lines().last().unwrap_or_default();
    Mark { line: text.lines().count().max(1), column: last.chars().count() + 1 }
}

/// A syntax error, with a hint at its most common causes.
fn syntax(text: &str, at: Mark, what: &str) -> String {
    let tab = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    let no_space = |line: &str| {
        let key_end = line.trim_start().find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        key_end.is_some_and(|end| {
            let rest = &line.trim_start()[end..];
            rest.strip_prefix(':').and_then(|r| r.chars().next()).is_some_and(|c| !c.is_whitespace())
        })
    };
    let near: Vec<&str> = text.lines().skip(at.line.saturating_sub(2)).take(2).collect();
    let hint = if near.iter().any(|line| tab(line)) {
        "; indent with spaces, not with tabs"
    } else if near.iter().any(|line| no_space(line)) {
        "; put a space after the `:` of a key"
    } else {
        ""
    };
    format!("not valid YAML: {what}{hint}")
}

/// Gives every node its place. `path` is for messages.
fn place(raw: Raw, marks: &mut impl Iterator<Item = Spot>, path: &str, faults: &mut Collector) -> Option<Node> {
    let Spot { at, named } = marks.next()?;
    let value = match raw {
        Raw::Leaf(Value::Null { .. }) => Value::Null { named },
        Raw::Leaf(value) => value,
        Raw::List(items) => {
            let items = items.into_iter().enumerate();
            let placed = items.map(|(i, item)| place(item, marks, &format!("{path}[{i}]"), faults));
            Value::List(placed.collect::<Option<_>>()?)
        }
        Raw::Map(pairs) => Value::Map(entries(pairs, marks, path, faults)?),
    };
    Some(Node { at, varied: false, value })
}

/// Of equal keys the first stays.
fn entries(
    pairs: Vec<(Raw, Raw)>,
    marks: &mut impl Iterator<Item = Spot>,
    path: &str,
    faults: &mut Collector,
) -> Option<Vec<Entry>> {
    let mut first: BTreeMap<String, Mark> = BTreeMap::new();
    let mut out = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let key = place(key, marks, path, faults)?;
        let Value::Text(text) = key.value else {
            faults.add(key.at, format!("a key is a word, not {}", key.describe()));
            place(value, marks, path, faults)?;
            continue;
        };
        let node = place(value, marks, &join(path, &text), faults)?;
        if let Some(earlier) = first.get(&text) {
            let (shown, line) = (quoted(&text), earlier.line);
            faults.add(key.at, format!("duplicate key {shown}{}; it is already in line {line}", within(path)));
        } else {
            first.insert(text.clone(), key.at);
            out.push(Entry { key: text, key_at: key.at, node });
        }
    }
    Some(out)
}

/// `a.b`, or `b` at the top.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// ` in `path``, or nothing at the top.
pub(crate) fn within(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" in {}", quoted(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Node {
        let mut faults = Collector::default();
        let node = parse(text, &Limits::default(), &mut faults);
        node.unwrap_or_else(|| panic!("{}", faults.into_faults("t")))
    }

    fn at(line: usize, column: usize) -> Mark {
        Mark { line, column }
    }

    #[test]
    fn keys_and_values_know_their_places_in_characters() {
        let root = parsed("# ü\na: 1\n'ä é': { b: [x,  y], c: }\n\nd:\n  - e: 2\n");
        let a = root.get("a").unwrap();
        assert_eq!((a.key_at, a.node.at), (at(2, 1), at(2, 4)));
        let inner = root.get("ä é").unwrap();
        assert_eq!((inner.key_at, inner.node.at), (at(3, 1), at(3, 8)));
        let Value::List(items) = &inner.node.get("b").unwrap().node.value else { panic!() };
        assert_eq!((items[0].at, items[1].at), (at(3, 14), at(3, 18)));
        assert_eq!(inner.node.get("c").unwrap().key_at, at(3, 22));
        let Value::List(items) = &root.get("d").unwrap().node.value else { panic!() };
        assert_eq!((items[0].at, items[0].get("e").unwrap().node.at), (at(6, 5), at(6, 8)));
    }

    #[test]
    fn windows_line_ends_and_byte_order_marks_are_harmless() {
        let root = parsed("\u{feff}a: 1\r\nb: x\r\n");
        assert!(matches!(root.get("a").unwrap().node.value, Value::Whole(1)));
        assert!(matches!(&root.get("b").unwrap().node.value, Value::Text(text) if text == "x"));
        assert_eq!(root.get("b").unwrap().node.at, at(2, 4));
    }

    #[test]
    fn null_in_capitals_is_also_a_name() {
        let root = parsed("a: [Null, null, ~, 'Null', ]\nb:\n");
        let Value::List(items) = &root.get("a").unwrap().node.value else { panic!() };
        let named = |node: &Node| matches!(node.value, Value::Null { named: true });
        assert_eq!(items.iter().map(named).collect::<Vec<_>>(), [true, false, false, false]);
        assert!(!named(&root.get("b").unwrap().node));
        assert_eq!(items[0].to_json(), "Null");
    }

    #[test]
    fn equal_values_have_equal_spellings() {
        let spelling = |text: &str| parsed(text).spelling();
        assert_eq!(spelling("[1e-3, 1, -0.0]"), spelling("[0.001, 1.0, 0]"));
        assert_eq!(spelling("{ a: 1, b: [x] }"), spelling("b: [ 'x' ]\na: 1.0"));
        assert_ne!(spelling("'1'"), spelling("1"));
        assert_ne!(spelling("9007199254740993"), spelling("9007199254740992"));
        assert_ne!(spelling("null"), spelling("'null'"));
    }
}
