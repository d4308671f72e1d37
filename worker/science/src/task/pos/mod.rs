//! Parts of speech: a sentence → its first word with a tag; Null: a random word of it, always the same one for a sentence
//! and a seed (words are tokens with a letter or digit).
//!
//! A sentence is written with its corpus's tokens, one space between them, as tokenised corpora are usually shown:
//! `The board does n't meet .` Of the Penn Treebank traces are dropped and brackets and escaped characters are written
//! as themselves ([`treebank`]); CoNLL-U gives its syntactic words ([`conllu`]).
//!
//! Sentences that contain all six tags are kept, each once; a fifth of them are for the test ([`super::split`]). The six
//! tags are read from those of the corpus like this (after Petrov, Das and McDonald 2012, "A universal part-of-speech
//! tagset"):
//!
//! | | Penn Treebank | Universal Dependencies | Brown |
//! | --- | --- | --- | --- |
//! | Noun | NN NNS NNP NNPS | NOUN PROPN | NN NNS NP NPS NR NRS |
//! | Adjective | JJ JJR JJS | ADJ | JJ JJR JJS JJT AP |
//! | Verb | VB VBD VBG VBN VBP VBZ MD | VERB AUX | VB* BE* DO* HV* MD |
//! | Adverb | RB RBR RBS WRB | ADV | RB RBR RBT RN WRB QL QLP WQL `*` (not) |
//! | Preposition | IN | ADP | IN |
//! | Pronoun | PRP PRP$ WP WP$ | PRON | PN PP$ PP$$ PPL PPLS PPO PPS PPSS WP$ WPO WPS |
//!
//! They differ where the tag sets do: Penn's IN includes subordinating conjunctions (`because`), which UD (SCONJ) and
//! Brown (CS) keep apart; UD's PRON includes demonstratives and relative pronouns; `not` is an adverb but in UD. Of Brown
//! tags, headline, title and citation marks (`-HL`, `-TL`, `-NC`) are dropped, contractions (`PPSS+BEM`: I'm) count as
//! their first part, negations and possessives (`MD*`, `NN$`) as what is negated or possesses, and foreign words (`FW-`) as
//! nothing.

pub mod brown;
pub mod conllu;
mod tagset;
pub mod treebank;

use super::{
    Counts, Faults, Item, MAX_ROWS, MAX_TEXT, Task, TaskError, draw,
    source::{self, Text, Wanted},
    split::{Split, test_members},
};
use std::{collections::BTreeSet, path::Path};
use taskvec_model::spec::{Corpus, DataFile};

/// The corpus that comes with the program.
const BUNDLED: &str = include_str!("../../../data/corpus.brown");
const BUNDLED_NAME: &str = "the bundled corpus";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    Noun,
    Adjective,
    Verb,
    Adverb,
    Preposition,
    Pronoun,
}

impl Tag {
    pub const ALL: [Self; 6] =
        [Self::Noun, Self::Adjective, Self::Verb, Self::Adverb, Self::Preposition, Self::Pronoun];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Noun => "Noun",
            Self::Adjective => "Adjective",
            Self::Verb => "Verb",
            Self::Adverb => "Adverb",
            Self::Preposition => "Preposition",
            Self::Pronoun => "Pronoun",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    /// None for all other parts of speech and for punctuation.
    pub tag: Option<Tag>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentence(pub Vec<Word>);

impl Sentence {
    /// Tokens with one space between them.
    pub fn text(&self) -> String {
        self.0.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// The first word with a tag.
    pub fn first(&self, tag: Tag) -> Option<&str> {
        self.0.iter().find(|w| w.tag == Some(tag)).map(|w| w.text.as_str())
    }

    pub fn has_all_tags(&self) -> bool {
        Tag::ALL.into_iter().all(|tag| self.first(tag).is_some())
    }

    /// The word that Null names. There is one wherever a word has a tag.
    fn random_word(&self, seed: u64, text: &str) -> &str {
        let words: Vec<&str> =
            self.0.iter().map(|w| w.text.as_str()).filter(|w| w.contains(char::is_alphanumeric)).collect();
        words.get(draw::null(seed, text).below(words.len() as u32) as usize).copied().unwrap_or_default()
    }
}

/// Every sentence of a corpus, in the order of its files and lines.
///
/// # Errors
/// [`TaskError`]: a file cannot be read or is not as planned; all faults in what it holds.
pub fn read(corpus: &Corpus) -> Result<Vec<Sentence>, TaskError> {
    match corpus {
        Corpus::Bundled => {
            let text = Text { name: BUNDLED_NAME.into(), text: BUNDLED.into() };
            parsed(Path::new(BUNDLED_NAME), &[text], brown::sentences)
        }
        Corpus::Treebank { file } => from_file(file, treebank::FILES, treebank::sentences),
        Corpus::Conllu { file } => from_file(file, conllu::FILES, conllu::sentences),
        Corpus::Brown { file } => from_file(file, brown::FILES, brown::sentences),
    }
}

type Reader = fn(&str, &str, &mut Faults) -> Vec<Sentence>;

fn from_file(file: &DataFile, wanted: Wanted, reader: Reader) -> Result<Vec<Sentence>, TaskError> {
    parsed(Path::new(&file.path), &source::read(file, wanted)?, reader)
}

fn parsed(path: &Path, texts: &[Text], reader: Reader) -> Result<Vec<Sentence>, TaskError> {
    let mut faults = Faults::default();
    let sentences: Vec<Sentence> =
        texts.iter().flat_map(|t| reader(&t.name, &t.text, &mut faults)).filter(|s| !s.0.is_empty()).collect();
    faults.into_result()?;
    match sentences.len() {
        0 => Err(TaskError::Unusable { path: path.to_owned(), reason: "holds no sentence".into() }),
        n if n > MAX_ROWS => Err(TaskError::Unusable {
            path: path.to_owned(),
            reason: format!("{n} sentences; at most {MAX_ROWS} are read"),
        }),
        _ => Ok(sentences),
    }
}

/// The tasks of a corpus; `seed` decides what Null answers.
pub(super) fn tasks(corpus: &Corpus, seed: u64) -> Result<(Vec<Task>, Counts), TaskError> {
    let sentences = read(corpus)?;
    let (kept, repeated) = kept(&sentences);
    if kept.is_empty() {
        return Err(without_all_tags(corpus, &sentences));
    }
    let texts: Vec<&String> = kept.iter().map(|(_, text)| text).collect();
    let test = test_members(&texts, usize::MAX);
    let task = |name: &str, instruction: &str, output: &dyn Fn(&Sentence, &str) -> String| {
        let items = kept.iter().map(|(s, text)| Item { input: text.clone(), output: output(s, text) });
        Task::new(name, instruction, items.zip(test.iter().map(|&t| Split::of(t))))
    };
    let mut tasks: Vec<Task> = (Tag::ALL.into_iter())
        .map(|tag| {
            let instruction = format!("Find the first {} in the sentence.", tag.as_str().to_lowercase());
            task(tag.as_str(), &instruction, &|s, _| s.first(tag).unwrap_or_default().to_owned())
        })
        .collect();
    tasks.push(task("Null", "Find a random word in the sentence.", &|s, text| s.random_word(seed, text).to_owned()));
    let in_test = test.iter().filter(|&&t| t).count();
    let counts =
        Counts { read: sentences.len(), kept: kept.len(), repeated, train: kept.len() - in_test, test: in_test };
    Ok((tasks, counts))
}

/// The sentences with all six tags that are no repetitions, with their texts; and how many are repetitions.
fn kept(sentences: &[Sentence]) -> (Vec<(&Sentence, String)>, usize) {
    let mut seen = BTreeSet::new();
    let usable: Vec<(&Sentence, String)> = (sentences.iter())
        .filter(|s| s.has_all_tags())
        .map(|s| (s, s.text()))
        .filter(|(_, text)| text.len() <= MAX_TEXT)
        .collect();
    let n = usable.len();
    let kept: Vec<_> = usable.into_iter().filter(|(_, text)| seen.insert(text.clone())).collect();
    let repeated = n - kept.len();
    (kept, repeated)
}

fn without_all_tags(corpus: &Corpus, sentences: &[Sentence]) -> TaskError {
    let (path, format) = match corpus {
        Corpus::Bundled => (BUNDLED_NAME, "Brown"),
        Corpus::Treebank { file } => (file.path.as_str(), "Penn Treebank"),
        Corpus::Conllu { file } => (file.path.as_str(), "universal"),
        Corpus::Brown { file } => (file.path.as_str(), "Brown"),
    };
    let with = |tag: Tag| sentences.iter().filter(|s| s.first(tag).is_some()).count();
    let counts: Vec<String> = Tag::ALL.into_iter().map(|tag| format!("{} {}", tag.as_str(), with(tag))).collect();
    let reason = format!(
        "none of {} sentences has all six tags (sentences with each: {}); are its tags {format} tags?",
        sentences.len(),
        counts.join(", ")
    );
    TaskError::Unusable { path: path.into(), reason }
}
