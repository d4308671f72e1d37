//! Which paths a grid may vary: those of the file's kind of run, or of any where the kind is not clear.

use crate::{
    fault::{did_you_mean, quoted},
    schema::{Choice, Default, Key, Kind, ROOT},
    tree::{Entry, Value, join},
};

pub(super) struct Paths {
    /// The keys at the top.
    top: Vec<&'static Key>,
}

impl Paths {
    /// Those of a file with these keys at its top.
    pub fn of(entries: &[Entry]) -> Self {
        let Kind::Choice(root) = &ROOT else { return Self { top: Vec::new() } };
        let kind = entries.iter().find(|e| e.key == root.tag).map(|e| &e.node.value);
        let variant = root.variants.iter().find(|v| matches!(kind, Some(Value::Text(text)) if v.word.text == text));
        let top = match variant {
            Some(variant) => root.common.iter().chain(variant.keys).collect(),
            None => ROOT.keys(),
        };
        Self { top }
    }

    /// Is it a path that a grid may vary? If not, why.
    pub fn resolve(&self, path: &str) -> Result<(), String> {
        let mut keys = self.top.clone();
        let mut tags = vec!["kind"];
        // What the path so far may be; several where the kind of run is not clear.
        let mut kinds: Vec<&'static Kind> = Vec::new();
        let mut so_far = String::new();
        for (i, name) in path.split('.').enumerate() {
            if !kinds.is_empty() && kinds.iter().all(|k| is_whole(k)) {
                return Err(format!(
                    "grid path {} reaches into {}; vary `{so_far}` as a whole",
                    quoted(path),
                    what(&kinds)
                ));
            }
            let fixed = ["version", "name", "kind", "grid"];
            if i == 0 && fixed.contains(&name) {
                return Err(format!("grid path {}: `{name}` is the same for all runs of a sweep", quoted(path)));
            }
            kinds = keys.iter().filter(|k| k.name == name).map(|k| &k.kind).collect();
            if kinds.is_empty() && tags.contains(&name) {
                kinds = vec![&TAG];
            }
            if kinds.is_empty() {
                return Err(self.no_such_path(path, name, &so_far, &keys, &tags));
            }
            keys = kinds.iter().filter(|k| !is_whole(k)).flat_map(|k| k.keys()).collect();
            tags = kinds.iter().filter_map(|k| choice(k)).map(|c| c.tag).collect();
            so_far = join(&so_far, name);
        }
        Ok(())
    }

    fn no_such_path(
        &self,
        path: &str,
        name: &str,
        so_far: &str,
        keys: &[&'static Key],
        tags: &[&'static str],
    ) -> String {
        let all = self.all(&self.top, "");
        let slip = did_you_mean(path, all.iter().map(String::as_str));
        let last_named = || {
            let same_end = |p: &&String| p.rsplit('.').next() == Some(name) && !p.contains('[');
            all.iter().find(same_end).map(|p| format!("; did you mean `{p}`?"))
        };
        let mut names: Vec<&str> = Vec::new();
        for name in tags.iter().copied().chain(keys.iter().map(|k| k.name)) {
            if !names.contains(&name) && self.resolve(&join(so_far, name)).is_ok() {
                names.push(name);
            }
        }
        let known = || match names[..] {
            [] => format!("; nothing lies below `{so_far}`"),
            ref names if so_far.is_empty() => format!("; it starts with one of: {}", names.join(", ")),
            ref names => format!("; known keys in `{so_far}`: {}", names.join(", ")),
        };
        let hint = if slip.is_empty() { last_named().unwrap_or_else(known) } else { slip };
        format!("unknown grid path {}{hint}", quoted(path))
    }

    /// Every path that a grid may vary, from these keys down.
    fn all(&self, keys: &[&'static Key], path: &str) -> Vec<String> {
        let mut out = Vec::new();
        for key in keys {
            let inner = join(path, key.name);
            if self.resolve(&inner).is_ok() && !matches!(key.default, Default::Absent) {
                out.push(inner.clone());
                out.extend(self.all(&key.kind.keys(), &inner));
            }
        }
        out
    }
}

/// A tag is a word; nothing lies below it.
const TAG: Kind = Kind::Word(&[]);

fn choice(kind: &Kind) -> Option<&'static Choice> {
    match kind {
        Kind::Choice(choice) => Some(choice),
        _ => None,
    }
}

/// Can its parts not be varied one by one?
fn is_whole(kind: &Kind) -> bool {
    matches!(kind, Kind::List { .. }) || choice(kind).is_some_and(|c| c.short)
}

fn what(kinds: &[&Kind]) -> &'static str {
    let list = kinds.iter().all(|k| matches!(k, Kind::List { .. }));
    if list { "a list" } else { "what may be a single word" }
}
