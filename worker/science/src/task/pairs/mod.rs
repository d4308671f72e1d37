//! Tasks of one's own: rows of (task, input, output).
//!
//! | file | holds |
//! | --- | --- |
//! | `.jsonl` | an object with the texts `task`, `input` and `output` a line |
//! | `.csv` | a header with the columns `task`, `input` and `output`, then rows, as in RFC 4180 |
//! | `.json` | an array of objects with `input` and `output`, whose task is the file's name without its ending (the datasets of Todd et al. 2024, "Function vectors in large language models"), unless an object has a `task` |
//! | a folder or zip archive of these | all of them together |
//!
//! Other columns are ignored. Blanks around a text do not belong to it. Of the rows of a task with the same input the
//! first counts. A fifth of a task's inputs are for the test ([`super::split`]). Tasks are in the order in which the files,
//! by name, name them first.

mod csv;
mod json;

use super::{
    Counts, Faults, Item, MAX_ROWS, MAX_TEXT, Task, TaskError,
    source::{self, Wanted},
    split::{Split, test_members},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use taskvec_model::spec::DataFile;

/// Most latent tasks of one file or folder.
const MAX_TASKS: usize = 1000;
/// Longest name of a task, in bytes.
const MAX_NAME: usize = 100;

/// What is read of a folder or archive.
pub(super) const FILES: Wanted =
    Wanted { is: |name| Kind::of(name).is_some(), shown: "file ending in .jsonl, .csv or .json" };

enum Kind {
    Lines,
    Csv,
    Array,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()? {
            "jsonl" | "ndjson" => Some(Self::Lines),
            "csv" => Some(Self::Csv),
            "json" => Some(Self::Array),
            _ => None,
        }
    }
}

/// One row, in which nothing is wrong.
struct Row {
    task: String,
    item: Item,
}

/// What a file says of a row; `None` where it says nothing.
struct RawRow {
    line: usize,
    task: Option<String>,
    input: Option<String>,
    output: Option<String>,
}

/// The tasks of a file, folder or archive.
pub(super) fn tasks(file: &DataFile) -> Result<(Vec<Task>, Counts), TaskError> {
    let path = Path::new(&file.path);
    let unusable = |reason: String| TaskError::Unusable { path: path.to_owned(), reason };
    let (mut faults, mut rows, mut stems) = (Faults::default(), Vec::new(), BTreeSet::new());
    for text in source::read(file, FILES)? {
        let kind = Kind::of(&text.name)
            .ok_or_else(|| unusable("is no table of tasks: its name must end in .jsonl, .csv or .json".into()))?;
        let stem = Path::new(&text.name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if matches!(kind, Kind::Array) && !stems.insert(stem.clone()) {
            faults.add(&text.name, 1, format!("another file is named {stem}.json too, and names are tasks"));
        }
        let (raw, default) = match kind {
            Kind::Lines => (json::lines(&text.name, &text.text, &mut faults), None),
            Kind::Csv => (csv::rows(&text.name, &text.text, &mut faults), None),
            Kind::Array => (json::array(&text.name, &text.text, &mut faults), Some(stem.as_str())),
        };
        rows.extend(raw.into_iter().filter_map(|row| row.checked(&text.name, default, &mut faults)));
        if rows.len() > MAX_ROWS {
            return Err(unusable(format!("holds more than {MAX_ROWS} rows; give a part of it")));
        }
    }
    faults.into_result()?;
    match rows.is_empty() {
        true => Err(unusable("holds no row".into())),
        false => grouped(rows).map_err(unusable),
    }
}

/// Rows by task, each task in its two parts.
fn grouped(rows: Vec<Row>) -> Result<(Vec<Task>, Counts), String> {
    let mut counts = Counts { read: rows.len(), ..Counts::default() };
    let (mut place, mut by_task) = (BTreeMap::new(), Vec::<(String, Vec<Item>)>::new());
    let mut seen = BTreeSet::new();
    for Row { task, item } in rows {
        let at = *place.entry(task.clone()).or_insert(by_task.len());
        if at == by_task.len() {
            by_task.push((task, Vec::new()));
        }
        if seen.insert((at, item.input.clone())) {
            by_task[at].1.push(item);
        } else {
            counts.repeated += 1;
        }
    }
    if by_task.len() > MAX_TASKS {
        return Err(format!(
            "holds {} tasks; at most {MAX_TASKS} are read: is the column `task` right?",
            by_task.len()
        ));
    }
    let tasks = by_task.into_iter().map(|(name, items)| {
        let inputs: Vec<&str> = items.iter().map(|i| i.input.as_str()).collect();
        let split: Vec<Split> = test_members(&inputs, usize::MAX).into_iter().map(Split::of).collect();
        Task::new(&name, &name, items.into_iter().zip(split))
    });
    let tasks: Vec<Task> = tasks.collect();
    counts.kept = counts.read - counts.repeated;
    counts.test = tasks.iter().map(|t| t.test.len()).sum();
    counts.train = counts.kept - counts.test;
    Ok((tasks, counts))
}

impl RawRow {
    /// The row, where nothing is missing, empty or too long; `default` names the task where the row does not.
    fn checked(self, file: &str, default: Option<&str>, faults: &mut Faults) -> Option<Row> {
        let known = faults.0.len();
        let mut text = |name: &str, value: Option<String>, most: usize| {
            let value = value.unwrap_or_default().trim().to_owned();
            match value.len() {
                0 => faults.add(file, self.line, format!("`{name}` is missing or empty")),
                n if n > most => {
                    faults.add(file, self.line, format!("`{name}` has {n} bytes; at most {most} are read"))
                }
                _ => {}
            }
            value
        };
        let task = text("task", self.task.or_else(|| default.map(str::to_owned)), MAX_NAME);
        let input = text("input", self.input, MAX_TEXT);
        let output = text("output", self.output, MAX_TEXT);
        if task.contains(char::is_control) {
            faults.add(file, self.line, format!("the name {task:?} of the task has control characters"));
        }
        (faults.0.len() == known).then_some(Row { task, item: Item { input, output } })
    }
}
