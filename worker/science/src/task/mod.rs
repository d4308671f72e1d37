//! Latent tasks in words: pairs of texts, from which prompts are made ([`Prompts`]).
//!
//! | family | latent tasks | an input and its output |
//! | --- | --- | --- |
//! | `bitwise` | AND, NAND, OR, NOR, XOR, XNOR, Null ([`bitwise`]) | `01101 11010` → `01000` |
//! | `pos` | Noun, Adjective, Verb, Adverb, Preposition, Pronoun, Null ([`pos`]) | a sentence → its first noun |
//! | `pairs` | those of the file ([`pairs`]) | as written there |

mod answer;
pub mod bitwise;
mod draw;
mod error;
pub mod pairs;
pub mod pos;
mod prompt;
mod source;
pub mod split;
mod target;

pub use answer::Verdict;
pub use error::{Fault, Faults, Merged, PromptError, TaskError};
pub use prompt::{Prompt, Prompts, Series};
pub use split::Split;

use std::collections::BTreeSet;
use taskvec_model::spec::{Corpus, Family, NaturalSpec};

/// Longest input or output, in bytes: what is longer fits no model's context and hints at a broken file.
pub const MAX_TEXT: usize = 65_536;
/// Most sentences or rows.
pub const MAX_ROWS: usize = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub input: String,
    pub output: String,
}

/// A latent task. Its items have different inputs, none of which is in both parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub name: String,
    /// What [`taskvec_model::spec::Instruction::Named`] writes above the demonstrations.
    pub instruction: String,
    pub train: Vec<Item>,
    pub test: Vec<Item>,
}

impl Task {
    fn new(name: &str, instruction: &str, items: impl Iterator<Item = (Item, Split)>) -> Self {
        let mut task =
            Self { name: name.to_owned(), instruction: instruction.to_owned(), train: Vec::new(), test: Vec::new() };
        items.for_each(|(item, split)| match split {
            Split::Train => task.train.push(item),
            Split::Test => task.test.push(item),
        });
        task
    }

    pub fn items(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

/// What became of the data on the way in: sentences (`pos`), pairs of numbers (`bitwise`), or rows of all tasks (`pairs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub read: usize,
    /// Those that can be used: of sentences, those with all six tags.
    pub kept: usize,
    /// Those left out because an earlier one has the same input.
    pub repeated: usize,
    pub train: usize,
    pub test: usize,
}

/// The latent tasks of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSet {
    tasks: Vec<Task>,
    counts: Counts,
}

impl TaskSet {
    /// Reads or generates the tasks that `spec` names, in its order. The data and its split are the same for every seed;
    /// `seed` decides what Null answers.
    ///
    /// # Errors
    /// [`TaskError`]: files that cannot be read or are not as planned, all faults in them, names of tasks that are not
    /// there.
    pub fn load(spec: &NaturalSpec, seed: u64) -> Result<Self, TaskError> {
        let (tasks, counts) = match &spec.family {
            Family::Bitwise { digits } if (1..=bitwise::MAX_DIGITS).contains(digits) => bitwise::tasks(*digits, seed),
            Family::Bitwise { digits } => return Err(TaskError::Digits(*digits, bitwise::MAX_DIGITS)),
            Family::Pos { corpus } => pos::tasks(corpus, seed)?,
            Family::Pairs { file } => pairs::tasks(file)?,
        };
        Ok(Self { tasks: selected(tasks, &spec.tasks)?, counts })
    }

    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Of all data read, also where only some tasks were selected.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// The tasks with these names, in their order; all where there is no name.
fn selected(mut tasks: Vec<Task>, names: &[String]) -> Result<Vec<Task>, TaskError> {
    if names.is_empty() {
        return Ok(tasks);
    }
    let known: Vec<String> = tasks.iter().map(|t| t.name.clone()).collect();
    let unknown: Vec<String> = names.iter().filter(|n| !known.contains(n)).cloned().collect();
    if !unknown.is_empty() {
        return Err(TaskError::UnknownTask { unknown, known });
    }
    let mut seen = BTreeSet::new();
    let repeated: Vec<String> = names.iter().filter(|n| !seen.insert(*n)).cloned().collect();
    if !repeated.is_empty() {
        return Err(TaskError::RepeatedTask(repeated));
    }
    let place = |task: &Task| names.iter().position(|n| *n == task.name);
    tasks.retain(|t| place(t).is_some());
    tasks.sort_by_key(place);
    Ok(tasks)
}

/// The same family with the digests of its files as they are now: to be called where a sweep is planned.
///
/// # Errors
/// [`TaskError`] where a file cannot be read.
pub fn identify(family: &Family) -> Result<Family, TaskError> {
    let mut family = family.clone();
    let read = match &mut family {
        Family::Bitwise { .. } | Family::Pos { corpus: Corpus::Bundled } => None,
        Family::Pos { corpus: Corpus::Treebank { file } } => Some((file, pos::treebank::FILES)),
        Family::Pos { corpus: Corpus::Conllu { file } } => Some((file, pos::conllu::FILES)),
        Family::Pos { corpus: Corpus::Brown { file } } => Some((file, pos::brown::FILES)),
        Family::Pairs { file } => Some((file, pairs::FILES)),
    };
    if let Some((file, wanted)) = read {
        file.digest = Some(source::digest(file, wanted)?);
    }
    Ok(family)
}
