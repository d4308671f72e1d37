//! Tasks in words, and how prompts are made of them.

use crate::id::Digest;
use serde::{Deserialize, Serialize};

/// The latent task without a rule: its answers are drawn at random.
pub const NULL_TASK: &str = "Null";

const BITWISE: [&str; 7] = ["AND", "NAND", "OR", "NOR", "XOR", "XNOR", NULL_TASK];
const POS: [&str; 7] = ["Noun", "Adjective", "Verb", "Adverb", "Preposition", "Pronoun", NULL_TASK];

/// Tasks in words, and how prompts are made of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NaturalSpec {
    #[serde(flatten)]
    pub family: Family,
    /// Demonstrations before the query; every number is measured.
    pub shots: Vec<u32>,
    /// Latent tasks by name, in order; empty: all of the family.
    pub tasks: Vec<String>,
    pub template: Template,
    /// Is the true task named before the demonstrations?
    pub instruction: Instruction,
}

impl NaturalSpec {
    /// The latent tasks by name, in order; empty where only the file of the family knows them.
    pub fn latent_tasks(&self) -> Vec<String> {
        if self.tasks.is_empty() {
            return self.family.latent_tasks().iter().map(|t| (*t).to_owned()).collect();
        }
        self.tasks.clone()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Family {
    /// Two binary numbers of `digits` digits to the result of AND, NAND, OR, NOR, XOR or XNOR, or to random digits
    /// (Null).
    Bitwise { digits: u32 },
    /// A sentence to its first Noun, Adjective, Verb, Adverb, Preposition or Pronoun, or to a random word (Null).
    Pos { corpus: Corpus },
    /// Rows of (task, input, output) from a file.
    Pairs { file: DataFile },
}

impl Family {
    /// The name of the family, as in a sweep file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Bitwise { .. } => "bitwise",
            Self::Pos { .. } => "pos",
            Self::Pairs { .. } => "pairs",
        }
    }

    /// The latent tasks of the family of this name, in order; empty where only the file knows them.
    pub fn tasks_of(family: &str) -> &'static [&'static str] {
        match family {
            "bitwise" => &BITWISE,
            "pos" => &POS,
            _ => &[],
        }
    }

    /// The latent tasks, in order; empty where only the file knows them.
    pub fn latent_tasks(&self) -> &'static [&'static str] {
        Self::tasks_of(self.as_str())
    }

    /// The file that its data come from.
    pub fn file(&self) -> Option<&DataFile> {
        match self {
            Self::Bitwise { .. } | Self::Pos { corpus: Corpus::Bundled } => None,
            Self::Pos { corpus: Corpus::Treebank { file } | Corpus::Conllu { file } | Corpus::Brown { file } }
            | Self::Pairs { file } => Some(file),
        }
    }

    /// The same, to be changed.
    pub fn file_mut(&mut self) -> Option<&mut DataFile> {
        match self {
            Self::Bitwise { .. } | Self::Pos { corpus: Corpus::Bundled } => None,
            Self::Pos { corpus: Corpus::Treebank { file } | Corpus::Conllu { file } | Corpus::Brown { file } }
            | Self::Pairs { file } => Some(file),
        }
    }
}

/// Tagged sentences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum Corpus {
    /// The small one that comes with the program.
    Bundled,
    /// NLTK's Penn Treebank sample: `treebank.zip` or its folder.
    Treebank {
        file: DataFile,
    },
    Conllu {
        file: DataFile,
    },
    /// A folder, zip or file in the Brown corpus's `word/TAG` format.
    Brown {
        file: DataFile,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub path: String,
    /// Filled in when the sweep is planned where the file is.
    pub digest: Option<Digest>,
}

/// How a prompt is written: the instruction (where there is one) and a separator, then for each demonstration `input
/// TEXT arrow gap OUTPUT separator`, then the query up to its arrow. The model is to go on with `gap OUTPUT`; where the
/// tokenizer makes the gap a token of its own before every output, the query includes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Before every input.
    pub input: String,
    /// After every input. Site `x` is the last token before the output: the arrow's, or the gap's.
    pub arrow: String,
    /// Between arrow and output. Most tokenizers merge a space with the word after it, but many not with digits.
    pub gap: String,
    /// Between output and the next input; also ends the model's answer.
    pub separator: String,
}

impl Default for Template {
    /// `input -> output` lines.
    fn default() -> Self {
        Self { input: String::new(), arrow: " ->".into(), gap: " ".into(), separator: "\n".into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    None,
    /// The latent task is named in the first line ("AND", "Find the first noun in the sentence.").
    Named,
}
