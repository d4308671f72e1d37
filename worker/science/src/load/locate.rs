//! From what the user calls a model to the folder its files are in.

use super::LoadError;
use std::path::{Path, PathBuf};
use taskvec_model::pattern::matches;

/// The folder of a model: `path` itself, its subfolder `revision`, the snapshot of a hub cache's folder
/// (`models--owner--name`), or that of a hub name (`owner/name`) in one of `caches`.
///
/// # Errors
/// Where there is no such folder or revision.
pub(super) fn folder(path: &str, revision: Option<&str>, caches: &[PathBuf]) -> Result<PathBuf, LoadError> {
    let root = root(path, caches)?;
    if is_cache(&root) {
        return snapshot(&root, revision.unwrap_or("main"));
    }
    let Some(revision) = revision else { return Ok(root) };
    let inner = root.join(revision);
    match is_plain(revision) && inner.is_dir() {
        true => Ok(inner),
        false => Err(LoadError::NoRevision { path: root.clone(), revision: revision.to_owned(), known: known(&root) }),
    }
}

/// Is `path` a name on the hub (`owner/name`), and not that of something here?
pub(super) fn is_hub_name(path: &str) -> bool {
    hub_folder(path).is_some() && !Path::new(path).exists()
}

/// Revisions of a model whose names match `pattern` (`*` for any characters, `?` for one), by step and then by name.
///
/// # Errors
/// Where there is no such folder, or nothing in it matches.
pub(super) fn revisions(path: &str, pattern: &str, caches: &[PathBuf]) -> Result<Vec<String>, LoadError> {
    let root = root(path, caches)?;
    let known = known(&root);
    let mut found: Vec<String> = known.iter().filter(|name| matches(pattern, name)).cloned().collect();
    if found.is_empty() {
        return Err(LoadError::NoMatch { path: root, pattern: pattern.to_owned(), known });
    }
    found.sort_by_key(|name| (step(name), name.clone()));
    Ok(found)
}

/// The pretraining step that a revision names (`step1000-tokens4B`, `stage1-step1000`); 0 where it names none.
pub(super) fn step(revision: &str) -> u64 {
    let number = |from: &str| {
        let digits = from.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().ok()
    };
    revision.match_indices("step").find_map(|(at, word)| number(&revision[at + word.len()..])).unwrap_or(0)
}

/// Where HuggingFace's tools keep what they have downloaded on this machine.
pub(super) fn hub_caches() -> Vec<PathBuf> {
    let from = |variable: &str, inner: &str| Some(PathBuf::from(std::env::var_os(variable)?).join(inner));
    let found = [from("HF_HUB_CACHE", ""), from("HF_HOME", "hub"), from("HOME", ".cache/huggingface/hub")];
    found.into_iter().flatten().filter(|dir| dir.is_dir()).collect()
}

fn root(path: &str, caches: &[PathBuf]) -> Result<PathBuf, LoadError> {
    let here = Path::new(path);
    if here.is_dir() {
        return Ok(here.to_owned());
    }
    let missing = || LoadError::NotFound { name: path.to_owned(), searched: caches.to_vec() };
    if here.exists() {
        let reason = "is a file of a kind that is not read here; name the folder with config.json".to_owned();
        return Err(LoadError::BadFolder { path: here.to_owned(), reason });
    }
    let name = hub_folder(path).ok_or_else(missing)?;
    caches.iter().map(|cache| cache.join(&name)).find(|dir| dir.is_dir()).ok_or_else(missing)
}

/// What a cache calls the folder of a hub name; none where `path` is no such name.
fn hub_folder(path: &str) -> Option<String> {
    let is_part = |part: &str| is_plain(part) && !part.starts_with(['.', '~']) && !part.contains('\0');
    match path.split_once('/') {
        Some((owner, name)) if is_part(owner) && is_part(name) => Some(format!("models--{owner}--{name}")),
        _ => None,
    }
}

/// Is this the folder of a model in a hub cache?
fn is_cache(root: &Path) -> bool {
    root.join("snapshots").is_dir() && !root.join("config.json").exists()
}

/// The snapshot of a branch, a tag or a commit.
fn snapshot(root: &Path, revision: &str) -> Result<PathBuf, LoadError> {
    let refs = root.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&refs) {
        Ok(commit) if is_inside(revision) => commit.trim().to_owned(),
        _ => revision.to_owned(),
    };
    let dir = root.join("snapshots").join(&commit);
    match is_plain(&commit) && dir.is_dir() {
        true => Ok(dir),
        false => Err(LoadError::NoRevision { path: root.into(), revision: revision.into(), known: known(root) }),
    }
}

/// One plain component of a path.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref())
}

/// Only plain components.
fn is_inside(name: &str) -> bool {
    name.split('/').all(is_plain)
}

/// Names of all revisions: folders with a model in them, or the refs of a hub cache.
fn known(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    match is_cache(root) {
        true => refs(&root.join("refs"), "", &mut names),
        false => {
            let models = entries(root).filter(|path| path.join("config.json").is_file());
            names.extend(models.map(|path| name_of(&path)));
        }
    }
    names.sort();
    names
}

/// Names of branches and tags; those with a slash are files in folders.
fn refs(dir: &Path, before: &str, names: &mut Vec<String>) {
    for path in entries(dir) {
        let name = format!("{before}{}", name_of(&path));
        match path.is_dir() {
            true => refs(&path, &format!("{name}/"), names),
            false => names.push(name),
        }
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_names() {
        let steps = ["step1000-tokens4B", "stage1-step150-tokens1B", "main", "step-by-step12", "steps"].map(step);
        assert_eq!(steps, [1000, 150, 0, 12, 0]);
    }
}
