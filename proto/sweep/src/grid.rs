//! The grid: which paths a sweep varies, over which values, and the trees of its points.

use crate::{
    Limits,
    fault::{Collector, Mark, did_you_mean, quoted},
    read::shown,
    schema::{Default, Kind, ROOT},
    tree::{Entry, Node, Value, join},
};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;

/// One varied path.
pub(crate) struct Axis {
    pub path: String,
    at: Mark,
    values: Vec<Node>,
}

pub(crate) struct Grid {
    axes: Vec<Axis>,
}

/// One combination of values.
pub(crate) struct Point {
    /// The file as if it had these values in place.
    pub tree: Node,
    /// Dotted path → value, as written.
    pub params: Json,
}

impl Grid {
    /// Takes the grid out of the file. Axes that are at fault are left out.
    pub fn take(root: &mut Node, faults: &mut Collector) -> Self {
        let Value::Map(entries) = &mut root.value else { return Self { axes: Vec::new() } };
        let Some(i) = entries.iter().position(|e| e.key == "grid") else { return Self { axes: Vec::new() } };
        let grid = entries.remove(i).node;
        if !matches!(grid.value, Value::Map(_)) {
            let found = grid.describe();
            faults.add(grid.at, format!("`grid` must be a mapping from dotted paths to lists of values, not {found}"));
        }
        let mut axes: Vec<Axis> = Vec::new();
        for entry in grid.entries() {
            if faults.is_full() {
                break;
            }
            if let Some(axis) = axis(entry, faults) {
                if let Some(other) = axes.iter().find(|a| overlap(&a.path, &axis.path)) {
                    let message =
                        format!("`{}` and `{}` vary the same values; keep one of them", other.path, axis.path);
                    faults.add(axis.at, message);
                } else {
                    axes.push(axis);
                }
            }
        }
        Self { axes }
    }

    /// How many runs there are.
    pub fn runs(&self) -> u64 {
        self.axes.iter().fold(1, |n, axis| n.saturating_mul(axis.values.len() as u64))
    }

    /// A fault where there are more runs than allowed.
    pub fn check_size(&self, limits: &Limits, faults: &mut Collector) -> bool {
        let (runs, most) = (self.runs(), limits.runs);
        if runs <= most {
            return true;
        }
        let product: Vec<String> = self.axes.iter().map(|a| a.values.len().to_string()).collect();
        let at = self.axes.first().map_or(Mark::START, |a| a.at);
        let runs = if product.len() > 1 { format!("{} = {runs}", product.join(" × ")) } else { runs.to_string() };
        faults.add(at, format!("the grid has {runs} runs; a sweep may have {most}"));
        false
    }

    /// The points in order: the last path varies fastest.
    pub fn points<'a>(&'a self, root: &'a Node) -> impl Iterator<Item = Point> + 'a {
        (0..self.runs()).map(move |mut n| {
            let mut chosen = vec![0; self.axes.len()];
            for (axis, index) in self.axes.iter().zip(&mut chosen).rev() {
                let len = axis.values.len() as u64;
                *index = (n % len) as usize;
                n /= len;
            }
            self.point(root, &chosen)
        })
    }

    /// Points in which every value occurs at least once, where looking at all combinations would take too long.
    pub fn sample<'a>(&'a self, root: &'a Node) -> impl Iterator<Item = Point> + 'a {
        let longest = self.axes.iter().map(|a| a.values.len()).max().unwrap_or(1);
        (0..longest).map(move |n| {
            let chosen: Vec<usize> = self.axes.iter().map(|a| n.min(a.values.len() - 1)).collect();
            self.point(root, &chosen)
        })
    }

    fn point(&self, root: &Node, chosen: &[usize]) -> Point {
        let mut tree = root.clone();
        let mut params = Map::new();
        for (axis, &i) in self.axes.iter().zip(chosen) {
            let value = &axis.values[i];
            put(&mut tree, &axis.path, axis.at, value);
            params.insert(axis.path.clone(), value.to_json());
        }
        Point { tree, params: Json::Object(params) }
    }
}

fn axis(entry: &Entry, faults: &mut Collector) -> Option<Axis> {
    let (path, node) = (&entry.key, &entry.node);
    if let Err(message) = resolve(path) {
        faults.add(entry.key_at, message);
        return None;
    }
    let Value::List(values) = &node.value else {
        faults.add(node.at, format!("grid path `{path}` needs a list of values, not {}", node.describe()));
        return None;
    };
    if values.is_empty() {
        faults.add(node.at, format!("grid path `{path}` has an empty list; give at least one value or remove it"));
        return None;
    }
    let mut kept: Vec<Node> = Vec::with_capacity(values.len());
    let mut seen = BTreeSet::new();
    for value in values {
        if seen.insert(value.spelling()) {
            let mut value = value.clone();
            value.mark_varied();
            kept.push(value);
        } else {
            faults.add(value.at, format!("{} occurs twice in grid path `{path}`", shown(value)));
        }
    }
    Some(Axis { path: path.clone(), at: entry.key_at, values: kept })
}

/// Is one path the other, or within it?
fn overlap(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Is it a path that a grid may vary?
fn resolve(path: &str) -> Result<(), String> {
    let mut kind = &ROOT;
    let mut so_far = String::new();
    for (i, name) in path.split('.').enumerate() {
        if matches!(kind, Kind::List { .. }) {
            return Err(format!("grid path {} reaches into a list; vary `{so_far}` as a whole", quoted(path)));
        }
        let fixed = ["version", "name", "kind", "grid"];
        if i == 0 && fixed.contains(&name) {
            return Err(format!("grid path {}: `{name}` is the same for all runs of a sweep", quoted(path)));
        }
        let tag = matches!(kind, Kind::Choice(c) if c.tag == name);
        match kind.keys().into_iter().find(|k| k.name == name) {
            Some(key) => kind = &key.kind,
            None if tag => kind = &TAG,
            None => return Err(no_such_path(path, name, &so_far, kind)),
        }
        so_far = join(&so_far, name);
    }
    Ok(())
}

/// A tag is a word; nothing lies below it.
const TAG: Kind = Kind::Word(&[]);

fn no_such_path(path: &str, name: &str, so_far: &str, kind: &Kind) -> String {
    let all = all_paths(&ROOT, "");
    let slip = did_you_mean(path, all.iter().map(String::as_str));
    let last_named = || {
        let same_end = |p: &&String| p.rsplit('.').next() == Some(name) && !p.contains('[');
        all.iter().find(same_end).map(|p| format!("; did you mean `{p}`?"))
    };
    let mut names = kind.names();
    names.retain(|name| resolve(&join(so_far, name)).is_ok());
    let known = || match names[..] {
        [] => format!("; nothing lies below `{so_far}`"),
        ref names if so_far.is_empty() => format!("; it starts with one of: {}", names.join(", ")),
        ref names => format!("; known keys in `{so_far}`: {}", names.join(", ")),
    };
    let hint = if slip.is_empty() { last_named().unwrap_or_else(known) } else { slip };
    format!("unknown grid path {}{hint}", quoted(path))
}

/// Every path that a grid may vary.
fn all_paths(kind: &Kind, path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for key in kind.keys() {
        let inner = join(path, key.name);
        if resolve(&inner).is_ok() && !matches!(key.default, Default::Absent) {
            out.push(inner.clone());
            out.extend(all_paths(&key.kind, &inner));
        }
    }
    out
}

/// Sets the value at a path, making the mappings on the way where the file leaves them out.
fn put(node: &mut Node, path: &str, at: Mark, value: &Node) {
    let Value::Map(entries) = &mut node.value else { return };
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let i = entries.iter().position(|e| e.key == name).unwrap_or_else(|| {
        let empty = Node { at, varied: true, value: Value::Map(Vec::new()) };
        entries.push(Entry { key: name.to_owned(), key_at: at, node: empty });
        entries.len() - 1
    });
    match rest {
        Some(rest) => put(&mut entries[i].node, rest, at, value),
        // What a mapping of the grid lacks is reported at that mapping, not at the key that it replaces.
        None => (entries[i].key_at, entries[i].node) = (value.at, value.clone()),
    }
}
