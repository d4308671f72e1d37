//! The declarations for pretrained language models: the model, its tasks in words, and `kind: evaluate`. Defaults are
//! those of arXiv 2412.12276 where it has a value.

use super::{
    Choice,
    Default::{Null, Required, Section as Inner, Text, Whole as Int, Wholes, Word as Is},
    Key, Kind, Variant,
    keys::whole,
    measure::{ANALYSIS, SYNTHETIC},
    words::{elsewhere, word},
};

pub(super) const EVALUATE_PRETRAINED: &[Key] = &[
    MODEL,
    DATA,
    Key {
        name: "analyses",
        kind: Kind::List { of: &Kind::Choice(&ANALYSIS), min: 1, max: 32, distinct: false },
        default: Required,
        meaning: "what is measured; one job for each number of shots does `icl`, `td` and `lens` together, and one \
                  for each does `interventions`",
    },
];

pub(super) const MODEL: Key =
    Key { name: "model", kind: Kind::Section(PRETRAINED), default: Required, meaning: "the pretrained model" };

pub(super) const DATA: Key = Key {
    name: "data",
    kind: Kind::Choice(&TASKS),
    default: Required,
    meaning: "the tasks in words, and how prompts are made of them",
};

const PRETRAINED: &[Key] = &[
    Key {
        name: "path",
        kind: path("the path of a model"),
        default: Required,
        meaning: "a folder as downloaded from the HuggingFace hub, a GGUF file, or a hub name; as server and workers \
                  see it",
    },
    Key {
        name: "revision",
        kind: Kind::OrNull(&Kind::Text { what: "the name of a revision", min: 1, max: 200 }),
        default: Null,
        meaning: "a folder below `path`, or a revision of the hub; with `*` or `?` a run for each that matches",
    },
    Key {
        name: "dtype",
        kind: Kind::Word(&[word("f32", "32-bit floats"), word("bf16", "bfloat16"), word("f16", "16-bit floats")]),
        default: Is("f32"),
        meaning: "what weights are held in; activations are 32-bit floats, which products with `bf16` weights round to bf16",
    },
];

const fn path(what: &'static str) -> Kind {
    Kind::Text { what, min: 1, max: 4000 }
}

const TASKS: Choice = Choice {
    tag: "family",
    meaning: "the family of latent tasks",
    short: false,
    common: &[
        Key {
            name: "shots",
            kind: Kind::List { of: &whole(0, 1000), min: 1, max: 16, distinct: true },
            default: Wholes(&[1, 4, 10]),
            meaning: "demonstrations before the query; every number is measured",
        },
        Key {
            name: "tasks",
            kind: Kind::WordOrList {
                words: &[word("all", "every task of the family")],
                list: &Kind::List { of: &Kind::Task, min: 1, max: 1000, distinct: true },
                field: "list",
            },
            default: Is("all"),
            meaning: "the latent tasks by name",
        },
        Key {
            name: "template",
            kind: Kind::Section(TEMPLATE),
            default: Inner,
            meaning: "a prompt is `input TEXT arrow gap OUTPUT separator` for each demonstration, then the query",
        },
        Key {
            name: "instruction",
            kind: Kind::Word(&[
                word("none", "the prompt starts with the first demonstration"),
                word("named", "the first line names the latent task"),
            ]),
            default: Is("none"),
            meaning: "is the true task named?",
        },
    ],
    variants: &[
        Variant {
            word: word(
                "bitwise",
                "two binary numbers to AND, NAND, OR, NOR, XOR or XNOR of them, or to random digits (Null)",
            ),
            keys: &[Key {
                name: "digits",
                kind: whole(1, 64),
                default: Int(5),
                meaning: "binary digits of each number",
            }],
        },
        Variant {
            word: word(
                "pos",
                "a sentence to its first Noun, Adjective, Verb, Adverb, Preposition or Pronoun, or a random word (Null)",
            ),
            keys: &[Key {
                name: "corpus",
                kind: Kind::Choice(&CORPUS),
                default: Is("bundled"),
                meaning: "the tagged sentences",
            }],
        },
        Variant {
            word: word("pairs", "rows of a task, an input and an output from a file"),
            keys: &[Key {
                name: "file",
                kind: path("the path of a JSONL or CSV file, or of a folder of them"),
                default: Required,
                meaning: "the rows; as server and workers see it",
            }],
        },
        Variant { word: elsewhere("sparse_linear", SYNTHETIC), keys: &[] },
    ],
};

const CORPUS: Choice = Choice {
    tag: "format",
    meaning: "where the sentences come from",
    short: true,
    common: &[],
    variants: &[
        Variant { word: word("bundled", "the small corpus that comes with the program"), keys: &[] },
        Variant {
            word: word("treebank", "NLTK's Penn Treebank sample: treebank.zip or its folder"),
            keys: CORPUS_PATH,
        },
        Variant { word: word("conllu", "CoNLL-U"), keys: CORPUS_PATH },
        Variant { word: word("brown", "word/TAG, as the Brown corpus"), keys: CORPUS_PATH },
    ],
};

const CORPUS_PATH: &[Key] = &[Key {
    name: "path",
    kind: path("the path of a corpus"),
    default: Required,
    meaning: "a file or folder; as server and workers see it",
}];

const TEMPLATE: &[Key] = &[
    Key { name: "input", kind: piece(0), default: Text(""), meaning: "before every input" },
    Key {
        name: "arrow",
        kind: piece(1),
        default: Text(" ->"),
        meaning: "after every input; site `x` is the last token before the output, the arrow's or the gap's",
    },
    Key { name: "gap", kind: piece(0), default: Text(" "), meaning: "between arrow and output" },
    Key {
        name: "separator",
        kind: piece(1),
        default: Text("\n"),
        meaning: "between output and the next input; ends the model's answer",
    },
];

const fn piece(min: usize) -> Kind {
    Kind::Text { what: "text in quotes", min, max: 1000 }
}
