//! The grid: which paths a sweep varies, over which values, and the trees of its points.

mod paths;

use crate::{
    Limits,
    fault::{Collector, Mark},
    read::shown,
    tree::{Entry, Node, Value},
};
use paths::Paths;
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

impl Point {
    /// The same with a pattern replaced by one text that it stands for.
    pub fn with_text(&self, path: &str, text: &str) -> Self {
        let mut tree = self.tree.clone();
        let mut params = self.params.clone();
        if let Some(node) = at_path(&mut tree, path) {
            node.value = Value::Text(text.to_owned());
            node.varied = true;
        }
        if let Some(params) = params.as_object_mut() {
            params.insert(path.to_owned(), text.into());
        }
        Self { tree, params }
    }
}

fn at_path<'a>(node: &'a mut Node, path: &str) -> Option<&'a mut Node> {
    path.split('.').try_fold(node, |node, name| match &mut node.value {
        Value::Map(entries) => entries.iter_mut().find(|e| e.key == name).map(|e| &mut e.node),
        _ => None,
    })
}

impl Grid {
    /// Takes the grid out of the file. Axes that are at fault are left out.
    pub fn take(root: &mut Node, faults: &mut Collector) -> Self {
        let Value::Map(entries) = &mut root.value else { return Self { axes: Vec::new() } };
        let Some(i) = entries.iter().position(|e| e.key == "grid") else { return Self { axes: Vec::new() } };
        let paths = Paths::of(entries);
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
            if let Some(axis) = axis(entry, &paths, faults) {
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

fn axis(entry: &Entry, paths: &Paths, faults: &mut Collector) -> Option<Axis> {
    let (path, node) = (&entry.key, &entry.node);
    if let Err(message) = paths.resolve(path) {
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
