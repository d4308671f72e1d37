//! Prompts: demonstrations of a task and a query, in the tokens of a model.
//!
//! With the default template and two shots:
//!
//! ```text
//! 01101 11010 -> 01000
//! 00111 10101 -> 00101
//! 11100 01110 ->
//! ```
//!
//! A prompt is a function of (seed, task, split, replicate, index) and the number of shots. Queries are dealt from the
//! shuffled items of the split, so that none comes twice before all came once; demonstrations are drawn from the others,
//! without repetition. The query does not depend on the number of shots, and the demonstrations of fewer shots are the first
//! of those of more. All analyses use replicate 0 of the test items; interventions draw theirs from further replicates.
//!
//! What the model is given is what its tokenizer makes of the text up to the answer, and it is checked that the tokens of the
//! text with the answer begin with just these: else what would be read is not the position before the answer. Where the
//! answer begins decides the tokenizer: a gap that is merged with the output (` farmer`) belongs to the answer, and one that
//! is not merged with any output of any task (` ` before `01000`, in most vocabularies) to the prompt. It is the same for
//! all prompts of a run, so that no prompt betrays its answer.

use super::{Item, Merged, PromptError, Split, Task, TaskSet, draw};
use crate::tokenizer::{Encoded, Tokenizer};
use rayon::prelude::*;
use std::{collections::BTreeSet, ops::Range};
use taskvec_model::spec::{Instruction, NaturalSpec, Template};

/// How many tokens a model may spend beyond those of the answer and the separator, for other ways to cut the same text.
const MARGIN: usize = 4;

/// Numbered prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// Its place in the [`TaskSet`].
    pub task: usize,
    pub split: Split,
    pub shots: u32,
    /// 0 but for independent repetitions of an intervention.
    pub replicate: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub series: Series,
    pub index: u64,
    pub text: String,
    /// What the model is given, what comes before every text included.
    pub tokens: Vec<u32>,
    /// What it should go on with, without blanks around it: the output, after the gap where that is part of the answer.
    pub answer: String,
    /// Its tokens, as they follow those of the prompt.
    pub answer_tokens: Vec<u32>,
    /// Sites x: the last token before each demonstration's output, and before the query's: shots + 1 of them.
    pub x_sites: Vec<usize>,
    /// Sites y: the token that ends the output of each demonstration. Where the tokenizer merges the separator with the
    /// output's last character, it is that token.
    pub y_sites: Vec<usize>,
    /// Most tokens that are generated for the answer.
    pub most_generated: usize,
}

impl Prompt {
    /// The last token before the answer.
    pub fn query_site(&self) -> usize {
        self.tokens.len() - 1
    }

    /// The last token of the last demonstration's output; none without demonstrations.
    pub fn y_site(&self) -> Option<usize> {
        self.y_sites.last().copied()
    }
}

/// Makes the prompts of a run, and judges what a model answers ([`Prompts::judge`]).
#[derive(Clone, Debug)]
pub struct Prompts<'a> {
    pub(super) tasks: &'a TaskSet,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) template: Template,
    /// Between input and answer: the arrow, with the gap where no output is merged with it.
    before_answer: String,
    /// What an answer begins with: the gap, where it is not before it.
    pub(super) answer_gap: String,
    instruction: Instruction,
    context: Option<usize>,
    seed: u64,
    /// Tokens of the separator and the margin.
    beyond_answer: usize,
}

impl<'a> Prompts<'a> {
    /// `context` is the longest sequence of the model, where it has a limit.
    ///
    /// # Errors
    /// [`PromptError`]: no separator, or one that is part of an output; fewer test items than the most shots of `spec` and a
    /// query need; a tokenizer that cannot encode the separator.
    pub fn new(
        tasks: &'a TaskSet,
        spec: &NaturalSpec,
        tokenizer: &'a Tokenizer,
        context: Option<usize>,
        seed: u64,
    ) -> Result<Self, PromptError> {
        let template = spec.template.clone();
        if template.separator.is_empty() {
            return Err(PromptError::NoSeparator);
        }
        let most_shots = spec.shots.iter().copied().max().unwrap_or(0);
        tasks.tasks().iter().try_for_each(|task| enough(task, Split::Test, most_shots))?;
        let outputs = outputs(tasks, &template.separator)?;
        let Template { arrow, gap, separator, .. } = &template;
        let (before_answer, answer_gap) = match begins_a_token(gap, arrow, &outputs, tokenizer)? {
            true => (format!("{arrow}{gap}"), String::new()),
            false => (arrow.clone(), gap.clone()),
        };
        let beyond_answer = tokenizer.encode(separator)?.tokens.len() - tokenizer.prefix().len() + MARGIN;
        let instruction = spec.instruction;
        Ok(Self { tasks, tokenizer, template, before_answer, answer_gap, instruction, context, seed, beyond_answer })
    }

    /// The prompts `indices` of a series. Parallel in the caller's rayon pool; the prompts do not depend on it.
    ///
    /// # Errors
    /// [`PromptError`]: too few items, an answer that merges with the prompt, a prompt beyond the context.
    pub fn batch(&self, series: Series, indices: Range<u64>) -> Result<Vec<Prompt>, PromptError> {
        let task = &self.tasks.tasks()[series.task];
        enough(task, series.split, series.shots)?;
        let items = task.items(series.split);
        let queries = self.queries(task, series, items.len(), indices.clone());
        let indexed: Vec<(u64, usize)> = indices.zip(queries).collect();
        let made: Vec<_> = indexed.into_par_iter().map(|(i, query)| self.prompt(task, series, i, query)).collect();
        made.into_iter().collect()
    }

    /// Which items are asked for: round after round of all of them, each in an order of its own.
    fn queries(&self, task: &Task, series: Series, n: usize, indices: Range<u64>) -> Vec<usize> {
        let stream = draw::stream(self.seed, &address("queries", task, series));
        let mut round = None;
        let mut query = |index: u64| {
            let (number, place) = (index / n as u64, (index % n as u64) as usize);
            let (_, order) = match round.take() {
                Some((known, order)) if known == number => round.insert((known, order)),
                _ => round.insert((number, draw::shuffled(stream.at(number), n))),
            };
            order[place]
        };
        indices.map(&mut query).collect()
    }

    fn prompt(&self, task: &Task, series: Series, index: u64, query: usize) -> Result<Prompt, PromptError> {
        let items = task.items(series.split);
        let draws = draw::stream(self.seed, &address("demonstrations", task, series)).at(index);
        let shown = draw::chosen(draws, items.len(), query, series.shots as usize);
        let Written { text, befores, outputs } = self.written(task, &shown, items, &items[query]);
        let continuation = self.continuation(&items[query]);
        let prompt = self.tokenizer.encode(&text)?;
        let whole = self.tokenizer.encode(&format!("{text}{continuation}"))?;
        let Some(answer_tokens) = whole.tokens.strip_prefix(&prompt.tokens[..]).map(<[u32]>::to_vec) else {
            return Err(self.merged(task, &text, &continuation, &prompt, &whole));
        };
        let most_generated = answer_tokens.len() + self.beyond_answer;
        self.fits(task, series, index, prompt.tokens.len(), most_generated)?;
        let mut x_sites = Vec::with_capacity(befores.len() + 1);
        for (&before, &i) in befores.iter().zip(&shown) {
            x_sites.push(self.x_site(task, &text, before, &items[i], &prompt)?);
        }
        x_sites.push(prompt.tokens.len() - 1);
        let y_sites = outputs.iter().map(|&end| y_site(&prompt, end)).collect();
        let answer = continuation.trim().to_owned();
        Ok(Prompt {
            series,
            index,
            text,
            tokens: prompt.tokens,
            answer,
            answer_tokens,
            x_sites,
            y_sites,
            most_generated,
        })
    }

    /// What the model should write of an item.
    fn continuation(&self, item: &Item) -> String {
        format!("{}{}", self.answer_gap, item.output)
    }

    /// The text up to the answer.
    fn written(&self, task: &Task, shown: &[usize], items: &[Item], query: &Item) -> Written {
        let Template { input, separator, .. } = &self.template;
        let mut text = match self.instruction {
            Instruction::None => String::new(),
            Instruction::Named => format!("{}{separator}", task.instruction),
        };
        let (mut befores, mut outputs) = (Vec::new(), Vec::new());
        for item in shown.iter().map(|&i| &items[i]) {
            text += &format!("{input}{}{}", item.input, self.before_answer);
            befores.push(text.len());
            text += &self.continuation(item);
            outputs.push(text.len());
            text += separator;
        }
        text += &format!("{input}{}{}", query.input, self.before_answer);
        Written { text, befores, outputs }
    }

    /// The last token before a demonstration's answer, which begins at byte `before`.
    fn x_site(
        &self,
        task: &Task,
        text: &str,
        before: usize,
        item: &Item,
        prompt: &Encoded,
    ) -> Result<usize, PromptError> {
        // Blanks just before the answer may belong to no token's span.
        let visible = text[..before].trim_end().len();
        let last = prompt.spans.iter().rposition(|&(_, end)| end <= before);
        match last.filter(|&i| prompt.spans[i].1 >= visible) {
            Some(site) => Ok(site),
            None => {
                let continuation = self.continuation(item);
                let alone = self.tokenizer.encode(&text[..before])?;
                let followed = self.tokenizer.encode(&text[..before + continuation.len()])?;
                Err(self.merged(task, &text[..before], &continuation, &alone, &followed))
            }
        }
    }

    pub(super) fn merged(
        &self,
        task: &Task,
        text: &str,
        answer: &str,
        alone: &Encoded,
        followed: &Encoded,
    ) -> PromptError {
        let same = alone.tokens.iter().zip(&followed.tokens).take_while(|(a, b)| a == b).count();
        let pieces =
            |tokens: &[u32]| tokens[same.min(tokens.len())..].iter().map(|&t| self.tokenizer.piece(t)).collect();
        // Up to the token in which the answer begins.
        let reached =
            followed.spans.iter().position(|&(_, end)| end > text.len()).map_or(followed.tokens.len(), |i| i + 1);
        let tail: Vec<char> = text.chars().rev().take(20).collect();
        PromptError::Merged(Box::new(Merged {
            task: task.name.clone(),
            before: tail.into_iter().rev().collect(),
            answer: answer.to_owned(),
            alone: pieces(&alone.tokens),
            followed: pieces(&followed.tokens[..reached.max(same + 1).min(followed.tokens.len())]),
        }))
    }

    fn fits(&self, task: &Task, series: Series, index: u64, tokens: usize, answer: usize) -> Result<(), PromptError> {
        match self.context {
            Some(context) if tokens + answer > context => {
                let (task, shots) = (task.name.clone(), series.shots);
                Err(PromptError::TooLong { task, shots, index, tokens, answer, context })
            }
            _ => Ok(()),
        }
    }
}

/// A prompt as text, with the bytes at which the answers of its demonstrations begin and end.
struct Written {
    text: String,
    befores: Vec<usize>,
    outputs: Vec<usize>,
}

/// Every output of every task, none of which may contain the separator.
fn outputs<'a>(tasks: &'a TaskSet, separator: &str) -> Result<BTreeSet<&'a str>, PromptError> {
    let mut outputs = BTreeSet::new();
    for task in tasks.tasks() {
        for Item { output, .. } in task.train.iter().chain(&task.test) {
            if output.contains(separator) {
                let (task, output) = (task.name.clone(), output.clone());
                return Err(PromptError::SeparatorInOutput { task, output, separator: separator.to_owned() });
            }
            outputs.insert(output.as_str());
        }
    }
    Ok(outputs)
}

/// Does a token begin with every output, where arrow and gap are before it?
fn begins_a_token(
    gap: &str,
    arrow: &str,
    outputs: &BTreeSet<&str>,
    tokenizer: &Tokenizer,
) -> Result<bool, PromptError> {
    let before = format!("{arrow}{gap}");
    let alone = tokenizer.encode(&before)?.tokens;
    for output in outputs {
        if !tokenizer.encode(&format!("{before}{output}"))?.tokens.starts_with(&alone) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a draw of a series goes by. The number of shots is not part of it.
fn address(what: &str, task: &Task, series: Series) -> String {
    format!("{what}/{}/{}/{}", series.split.as_str(), series.replicate, task.name)
}

/// The token that ends the output which ends at byte `end`: the last that begins before it.
fn y_site(prompt: &Encoded, end: usize) -> usize {
    prompt.spans.iter().rposition(|&(start, _)| start < end).unwrap_or(0)
}

fn enough(task: &Task, split: Split, shots: u32) -> Result<(), PromptError> {
    let (have, shots) = (task.items(split).len(), shots as usize);
    if have > shots {
        return Ok(());
    }
    Err(PromptError::TooFewItems { task: task.name.clone(), split: split.as_str(), have, shots })
}
