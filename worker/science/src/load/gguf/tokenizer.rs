//! The tokenizer that a GGUF file carries, as `tokenizers` would read it from the model's own `tokenizer.json`. Errors are
//! reasons, without the path.

use super::{metadata::Metadata, split::Split};
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::{
        DecoderWrapper, byte_fallback::ByteFallback, byte_level::ByteLevel, fuse::Fuse, sequence::Sequence as Decoders,
        strip::Strip,
    },
    models::bpe::{BPE, Vocab},
    normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers},
    processors::template::TemplateProcessing,
};

/// What stands for a space in SentencePiece's vocabularies.
const SPACE: &str = "▁";

/// Kinds of tokens, as llama.cpp numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    /// Begin, end and the like: not text.
    Control,
    /// Text that is always one token, found before anything else is split.
    Whole,
    Unused,
    /// `<0x0A>`.
    Byte,
}

impl Kind {
    fn of(number: usize) -> Result<Self, String> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::Whole,
            5 => Self::Unused,
            6 => Self::Byte,
            n => return Err(format!("has a token of kind {n}; kinds are 1 to 6")),
        })
    }
}

/// The vocabulary: token and kind by id.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<Kind>,
}

impl<'a> Tokens<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, String> {
        let texts = metadata.texts("tokenizer.ggml.tokens")?;
        let kinds = match metadata.counts_if("tokenizer.ggml.token_type")? {
            None => vec![Kind::Normal; texts.len()],
            Some(kinds) => kinds.into_iter().map(Kind::of).collect::<Result<_, _>>()?,
        };
        if kinds.len() != texts.len() {
            return Err(format!("has {} tokens, but {} kinds of tokens", texts.len(), kinds.len()));
        }
        Ok(Self { texts, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (&'a str, Kind)> {
        self.texts.iter().copied().zip(self.kinds.iter().copied())
    }

    fn vocabulary(&self) -> Vocab {
        self.texts.iter().zip(0..).map(|(text, id)| ((*text).to_owned(), id)).collect()
    }

    fn first(&self, kind: Kind) -> Option<&'a str> {
        self.iter().find(|(_, k)| *k == kind).map(|(text, _)| text)
    }

    /// The token that a metadata entry names by its id.
    fn named(&self, metadata: Metadata<'_>, key: &str) -> Result<Option<(&'a str, u32)>, String> {
        let Some(id) = metadata.count_if(key)? else { return Ok(None) };
        match (self.texts.get(id), u32::try_from(id)) {
            (Some(text), Ok(id)) => Ok(Some((text, id))),
            _ => Err(format!("has `{key}` {id}, but only {} tokens", self.texts.len())),
        }
    }
}

/// A tokenizer, and the tokens that end what its model generates.
pub struct GgufTokenizer {
    /// Puts a token before or after a text only where special tokens are asked for, and where the file says so.
    pub tokenizer: Tokenizer,
    pub ends: BTreeSet<u32>,
}

pub fn tokenizer(metadata: Metadata<'_>) -> Result<GgufTokenizer, String> {
    let tokens = Tokens::read(metadata)?;
    let (mut tokenizer, begins) = match metadata.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level(metadata, &tokens)?,
        "llama" => (sentence_piece(metadata, &tokens)?, true),
        other => return Err(format!("has a tokenizer of kind `{other}`; supported are gpt2 and llama")),
    };
    let added = tokens.iter().filter_map(|(text, kind)| match kind {
        Kind::Control | Kind::Unknown => Some(AddedToken::from(text, true)),
        Kind::Whole => Some(AddedToken::from(text, false).normalized(false)),
        Kind::Normal | Kind::Unused | Kind::Byte => None,
    });
    tokenizer.add_tokens(added.filter(|token| !token.content.is_empty())).map_err(|e| e.to_string())?;
    let begin = metadata.flag_if("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let end = metadata.flag_if("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let wanted = |wanted: bool, key| if wanted { tokens.named(metadata, key) } else { Ok(None) };
    let begin = wanted(begin, "tokenizer.ggml.bos_token_id")?;
    let end = wanted(end, "tokenizer.ggml.eos_token_id")?;
    if begin.is_some() || end.is_some() {
        tokenizer.with_post_processor(Some(surround(begin, end)?));
    }
    // The end of a text, of a turn, of a message to a tool.
    let ends = ["eos", "eot", "eom"].map(|end| tokens.named(metadata, &format!("tokenizer.ggml.{end}_token_id")));
    let ends = ends.into_iter().filter_map(Result::transpose).map(|end| end.map(|(_, id)| id));
    Ok(GgufTokenizer { tokenizer, ends: ends.collect::<Result<_, _>>()? })
}

/// Puts `begin` and `end` around every text.
fn surround(begin: Option<(&str, u32)>, end: Option<(&str, u32)>) -> Result<TemplateProcessing, String> {
    let around = |sequence: &str| -> Vec<String> {
        let token = |token: Option<(&str, u32)>| token.map(|(text, _)| text.to_owned());
        token(begin).into_iter().chain([sequence.to_owned()]).chain(token(end)).collect()
    };
    let special: BTreeMap<String, u32> = begin.into_iter().chain(end).map(|(t, id)| (t.to_owned(), id)).collect();
    TemplateProcessing::builder()
        .try_single(around("$A"))?
        .try_pair([around("$A"), around("$B")].concat())?
        .special_tokens(special.into_iter().collect::<Vec<_>>())
        .build()
        .map_err(|e| e.to_string())
}

/// GPT-2's: bytes as visible characters, split by a pattern, merged in the order of a list. Does a text begin with the
/// token for that, where the file does not say?
fn byte_level(metadata: Metadata<'_>, tokens: &Tokens<'_>) -> Result<(Tokenizer, bool), String> {
    let split = Split::of(metadata.text_if("tokenizer.ggml.pre")?)?;
    let merge = |line: &&str| {
        let (left, right) =
            line.split_once(' ').ok_or_else(|| format!("has the merge `{line}`, which lacks a space"))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    let merges = metadata.texts("tokenizer.ggml.merges")?.iter().map(merge).collect::<Result<_, String>>()?;
    let model = BPE::builder().vocab_and_merges(tokens.vocabulary(), merges).ignore_merges(split.whole_words_first());
    let mut tokenizer = Tokenizer::new(model.build().map_err(|e| e.to_string())?);
    tokenizer.with_normalizer(split.normalizer()).map_err(|e| e.to_string())?;
    tokenizer.with_pre_tokenizer(Some(split.pre_tokenizer()?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, split.begins()))
}

/// SentencePiece's: characters merged into whichever token has the best score; what is in no token is taken byte by byte.
fn sentence_piece(metadata: Metadata<'_>, tokens: &Tokens<'_>) -> Result<Tokenizer, String> {
    let scores = metadata.numbers_if("tokenizer.ggml.scores")?;
    let scores =
        scores.filter(|s| s.len() == tokens.texts.len()).ok_or("does not give a score for each of its tokens")?;
    let mut model = BPE::builder()
        .vocab_and_merges(tokens.vocabulary(), merges(tokens, &scores))
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = tokens.first(Kind::Unknown) {
        model = model.unk_token(unknown.to_owned());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(|e| e.to_string())?);
    let prefix = metadata.flag_if("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| Replace::new(from.to_owned(), to).map_err(|e| e.to_string());
    let mut normalizers: Vec<NormalizerWrapper> = vec![replace(" ", SPACE)?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|e| e.to_string())?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Every way to make a token out of two others, best score first.
fn merges(tokens: &Tokens<'_>, scores: &[f32]) -> Vec<(String, String)> {
    let ids: BTreeMap<&str, usize> =
        (tokens.iter().enumerate()).filter(|(_, (_, kind))| is_text(*kind)).map(|(id, (text, _))| (text, id)).collect();
    let mut merges = Vec::new();
    for (text, id) in &ids {
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[*id], (*id, *l, *r), left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    merges.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// Can a token of this kind be part of a merge?
fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Normal | Kind::Whole | Kind::Unused)
}
