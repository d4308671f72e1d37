//! How byte-level tokenizers cut text into words before they merge. Files name the way by the model that has it.

use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    normalizers::unicode::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split as SplitBy, SplitPattern},
    },
};

/// Llama 3's pattern, except for its digits.
const LLAMA3: [&str; 2] =
    [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// GPT-2's pattern.
    Gpt2,
    /// The same, after Unicode's canonical composition: GPT-NeoX and its followers.
    NeoX,
    /// GPT-2's pattern, every digit by itself.
    Digits,
    /// Llama 3's pattern; a word that is a token is one, whatever the merges would make of it.
    Llama3,
    /// Llama 3's pattern (GPT-4's), with merges alone.
    Gpt4,
    /// The same with every digit by itself, after Unicode's canonical composition.
    Qwen2,
}

/// Names in files.
const NAMES: [(&str, Split); 17] = [
    ("default", Split::Gpt2),
    ("gpt-2", Split::Gpt2),
    ("phi-2", Split::Gpt2),
    ("mpt", Split::NeoX),
    ("olmo", Split::NeoX),
    ("smollm", Split::Digits),
    ("starcoder", Split::Digits),
    ("refact", Split::Digits),
    ("codeshell", Split::Digits),
    ("llama-bpe", Split::Llama3),
    ("llama3", Split::Llama3),
    ("llama-v3", Split::Llama3),
    ("falcon3", Split::Llama3),
    ("dbrx", Split::Gpt4),
    ("smaug-bpe", Split::Gpt4),
    ("qwen2", Split::Qwen2),
    ("deepseek-r1-qwen", Split::Qwen2),
];

impl Split {
    /// By the value of `tokenizer.ggml.pre`; GPT-2's where a file does not say.
    pub fn of(name: Option<&str>) -> Result<Self, String> {
        let Some(name) = name else { return Ok(Self::Gpt2) };
        let known = || NAMES.map(|(name, _)| name).join(", ");
        let found = NAMES.iter().find(|(n, _)| *n == name).map(|(_, split)| *split);
        found.ok_or_else(|| format!("splits text as `{name}` does; supported are {}", known()))
    }

    /// Does a word that is a token skip the merges?
    pub fn whole_words_first(self) -> bool {
        self == Self::Llama3
    }

    /// Does a text begin with a special token, where the file does not say?
    pub fn begins(self) -> bool {
        self == Self::Llama3
    }

    pub fn normalizer(self) -> Option<NormalizerWrapper> {
        matches!(self, Self::NeoX | Self::Qwen2).then(|| NFC.into())
    }

    pub fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, String> {
        let words = ByteLevel::new(false, false, true);
        let by = |digits: &str| -> Result<PreTokenizerWrapper, String> {
            let pattern = SplitPattern::Regex(format!("{}{digits}{}", LLAMA3[0], LLAMA3[1]));
            let split = SplitBy::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| e.to_string())?;
            Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
        };
        match self {
            Self::Gpt2 | Self::NeoX => Ok(words.into()),
            Self::Digits => Ok(Sequence::new(vec![Digits::new(true).into(), words.into()]).into()),
            Self::Llama3 | Self::Gpt4 => by(r"\p{N}{1,3}"),
            Self::Qwen2 => by(r"\p{N}"),
        }
    }
}
