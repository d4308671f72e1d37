//! The six tags in the tag sets of the corpora; the table is in [`super`].

use super::Tag;

/// Of a Penn Treebank tag. Where annotators left two (`NN|JJ`) the first counts.
pub(super) fn penn(tag: &str) -> Option<Tag> {
    Some(match tag.split('|').next().unwrap_or(tag) {
        "NN" | "NNS" | "NNP" | "NNPS" => Tag::Noun,
        "JJ" | "JJR" | "JJS" => Tag::Adjective,
        "VB" | "VBD" | "VBG" | "VBN" | "VBP" | "VBZ" | "MD" => Tag::Verb,
        "RB" | "RBR" | "RBS" | "WRB" => Tag::Adverb,
        "IN" => Tag::Preposition,
        "PRP" | "PRP$" | "WP" | "WP$" => Tag::Pronoun,
        _ => return None,
    })
}

/// Of a universal tag (UPOS); `Err` for what is none of the seventeen.
pub(super) fn universal(tag: &str) -> Result<Option<Tag>, ()> {
    Ok(Some(match tag {
        "NOUN" | "PROPN" => Tag::Noun,
        "ADJ" => Tag::Adjective,
        "VERB" | "AUX" => Tag::Verb,
        "ADV" => Tag::Adverb,
        "ADP" => Tag::Preposition,
        "PRON" => Tag::Pronoun,
        "CCONJ" | "DET" | "INTJ" | "NUM" | "PART" | "PUNCT" | "SCONJ" | "SYM" | "X" | "_" => return Ok(None),
        _ => return Err(()),
    }))
}

/// Of a Brown tag, in either case.
pub(super) fn brown(tag: &str) -> Option<Tag> {
    let tag = tag.to_ascii_uppercase();
    let mut tag = tag.as_str();
    while let Some(rest) = ["-HL", "-TL", "-NC"].iter().find_map(|mark| tag.strip_suffix(mark)) {
        tag = rest;
    }
    let tag = tag.split('+').next().unwrap_or(tag);
    // The tag of `not` is a star alone.
    let tag = if tag.len() > 1 { tag.trim_end_matches('*') } else { tag };
    Some(match tag.trim_end_matches('$') {
        "NN" | "NNS" | "NP" | "NPS" | "NR" | "NRS" => Tag::Noun,
        "JJ" | "JJR" | "JJS" | "JJT" | "AP" => Tag::Adjective,
        "VB" | "VBD" | "VBG" | "VBN" | "VBZ" | "MD" => Tag::Verb,
        "BE" | "BED" | "BEDZ" | "BEG" | "BEM" | "BEN" | "BER" | "BEZ" => Tag::Verb,
        "DO" | "DOD" | "DOG" | "DON" | "DOZ" | "HV" | "HVD" | "HVG" | "HVN" | "HVZ" => Tag::Verb,
        "RB" | "RBR" | "RBT" | "RN" | "WRB" | "QL" | "QLP" | "WQL" | "*" => Tag::Adverb,
        "IN" => Tag::Preposition,
        "PN" | "PP" | "PPL" | "PPLS" | "PPO" | "PPS" | "PPSS" | "WP" | "WPO" | "WPS" => Tag::Pronoun,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brown_tags_lose_their_marks() {
        for (tag, want) in [
            ("nn-tl", Some(Tag::Noun)),
            ("NN$-TL-HL", Some(Tag::Noun)),
            ("ppss+bem", Some(Tag::Pronoun)),
            ("pp$$", Some(Tag::Pronoun)),
            ("md*", Some(Tag::Verb)),
            ("*", Some(Tag::Adverb)),
            ("*-hl", Some(Tag::Adverb)),
            ("ql", Some(Tag::Adverb)),
            ("ap", Some(Tag::Adjective)),
            ("in-nc", Some(Tag::Preposition)),
            ("fw-nn", None),
            ("cs", None),
            ("to", None),
            ("rp", None),
            ("$", None),
            ("", None),
        ] {
            assert_eq!(brown(tag), want, "{tag}");
        }
    }

    #[test]
    fn what_is_no_universal_tag_is_told_from_what_is_none_of_the_six() {
        assert_eq!(universal("PROPN"), Ok(Some(Tag::Noun)));
        assert_eq!(universal("DET"), Ok(None));
        assert_eq!(universal("NN"), Err(()));
        assert_eq!(penn("JJ|VBG"), Some(Tag::Adjective));
        assert_eq!(penn("TO"), None);
    }
}
