//! What a model is trained to write after a prompt.
//!
//! The answer's tokens and the one that ends it: the token in which the separator begins, as it follows the answer. It is
//! part of what is learnt because a right answer is one after which nothing else comes ([`super::answer`]). Where the
//! tokenizer merges the answer's last characters with the separator, the merged token is the last of the target. The
//! further tokens of a longer separator are not trained on: its demonstrations show them.

use super::{Prompt, PromptError, Prompts};

impl Prompts<'_> {
    /// The tokens to be written after those of the prompt, never none.
    ///
    /// # Errors
    /// [`PromptError`]: a text that cannot be encoded, or whose answer merges with the prompt.
    pub fn target(&self, prompt: &Prompt) -> Result<Vec<u32>, PromptError> {
        let gap = &self.answer_gap;
        // Outputs have no blanks around them, so that these are all that the prompt's answer lacks.
        let blank = &gap[..gap.len() - gap.trim_start().len()];
        let continuation = format!("{blank}{}{}", prompt.answer, self.template.separator);
        let whole = self.tokenizer.encode(&format!("{}{continuation}", prompt.text))?;
        let Some(rest) = whole.tokens.strip_prefix(&prompt.tokens[..]) else {
            let alone = self.tokenizer.encode(&prompt.text)?;
            let task = &self.tasks.tasks()[prompt.series.task];
            return Err(self.merged(task, &prompt.text, &continuation, &alone, &whole));
        };
        let answer = prompt.answer_tokens.len();
        if rest.len() > answer && rest.starts_with(&prompt.answer_tokens) {
            return Ok(rest[..=answer].to_vec());
        }
        for count in 1..rest.len() {
            let text = self.tokenizer.decode(&rest[..count])?;
            if text.trim_start().strip_prefix(&prompt.answer).is_some_and(|more| !more.is_empty()) {
                return Ok(rest[..count].to_vec());
            }
        }
        Ok(rest.to_vec())
    }
}
