//! Is a greedy answer right?
//!
//! A model goes on from a prompt until its text contains the template's separator, it generates an end token, or it has
//! spent [`Prompt::most_generated`] tokens. What it wrote before the first separator or end token, without blanks around
//! it, must equal gap and output, without blanks around them: the whole answer, in the same case, and nothing after it.

use super::{Prompt, Prompts};
use crate::tokenizer::TokenizerError;

/// What is known of an answer so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may still become right: generate on.
    Open,
    Right,
    /// Whatever else is generated.
    Wrong,
}

impl Prompts<'_> {
    /// Judges the tokens generated after a prompt. It may be asked after every token, or once at the end.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn judge(&self, prompt: &Prompt, generated: &[u32]) -> Result<Verdict, TokenizerError> {
        let generated = &generated[..generated.len().min(prompt.most_generated)];
        let end = generated.iter().position(|&t| self.tokenizer.is_end(t));
        let text = self.tokenizer.decode(&generated[..end.unwrap_or(generated.len())])?;
        let ended = end.is_some() || generated.len() == prompt.most_generated;
        Ok(verdict(&text, ended, &prompt.answer, &self.template.separator))
    }
}

fn verdict(text: &str, ended: bool, answer: &str, separator: &str) -> Verdict {
    let whole = text.split_once(separator).map(|(before, _)| before).or(ended.then_some(text));
    match whole {
        Some(whole) if whole.trim() == answer => Verdict::Right,
        Some(_) => Verdict::Wrong,
        None if may_become(text, answer, separator) => Verdict::Open,
        None => Verdict::Wrong,
    }
}

/// Can a text without separator go on to be the answer? Its last characters may be half a character or the beginning of the
/// separator.
fn may_become(text: &str, answer: &str, separator: &str) -> bool {
    let text = text.trim_end_matches('\u{fffd}');
    let begun = separator.char_indices().map(|(i, _)| &separator[..i]);
    begun.filter_map(|part| text.strip_suffix(part)).any(|rest| answer.starts_with(rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, verdict};

    #[test]
    fn the_whole_answer_and_nothing_else_is_right() {
        for (text, ended, want) in [
            ("", false, Open),
            (" 010", false, Open),
            (" 01000", false, Open),
            (" 01000\n11", false, Right),
            ("01000\n", false, Right),
            (" 01000 ", true, Right),
            (" 01000", true, Right),
            (" 0100\n", false, Wrong),
            (" 010001", false, Wrong),
            (" 01000 and", false, Wrong),
            (" 1", false, Wrong),
            ("\n01000\n", false, Wrong),
            ("", true, Wrong),
        ] {
            assert_eq!(verdict(text, ended, "01000", "\n"), want, "{text:?}");
        }
    }

    #[test]
    fn half_a_separator_and_half_a_character_decide_nothing() {
        assert_eq!(verdict("old ;", false, "old", " ; "), Open);
        assert_eq!(verdict("old ; x", false, "old", " ; "), Right);
        assert_eq!(verdict("old ;x", false, "old", " ; "), Wrong);
        assert_eq!(verdict("caf\u{fffd}", false, "café", "\n"), Open);
        assert_eq!(verdict("Old\n", false, "old", "\n"), Wrong);
    }
}
