//! The declarations of what is measured on language models, and of interventions in models of every kind.

use super::{
    Choice,
    Default::{Computed, Flag, Whole as Int, Wholes, Word as Is, Words},
    Key, Kind, Variant,
    keys::{AT, DECODED_LAYERS, LANGUAGE_MODELS, NEIGHBOURS, whole},
    words::{Word, elsewhere, word},
};

pub(super) const SYNTHETIC: &str = "`kind: pretrain`";

pub(super) const ANALYSIS: Choice =
    Choice { tag: "kind", meaning: "which measurement", short: false, common: &[], variants: MEASUREMENTS };

pub(super) const ANALYSIS_OF_CHECKPOINT: Choice =
    Choice { tag: "kind", meaning: "which measurement", short: false, common: &[AT], variants: MEASUREMENTS };

const MEASUREMENTS: &[Variant] = &[
    Variant { word: word("icl", "accuracy of greedy answers, exact match"), keys: &[PROMPTS] },
    Variant {
        word: word("td", "task decodability: leave-one-out kNN accuracy of the latent task"),
        keys: &[DECODED_LAYERS, SITES, NEIGHBOURS, PROMPTS, PAIRWISE],
    },
    Variant { word: word("lens", "logit lens: what each layer would answer"), keys: &[DECODED_LAYERS, PROMPTS] },
    Variant {
        word: word("interventions", "what moving the states of one latent task towards another does to the accuracy"),
        keys: PATCH_LANGUAGE,
    },
];

const PROMPTS: Key =
    Key { name: "samples_per_task", kind: whole(2, 100_000), default: Int(100), meaning: "prompts per latent task" };

const SITES: Key = Key {
    name: "sites",
    kind: Kind::List { of: &Kind::Word(SITE), min: 1, max: 2, distinct: true },
    default: Words(&["x"]),
    meaning: "the positions whose states are decoded",
};

const SITE: &[Word] = &[
    word("x", "the position that predicts the answer"),
    word("y", "the last answer before it"),
    elsewhere("s", SYNTHETIC),
];

const PAIRWISE: Key =
    Key { name: "pairs", kind: Kind::Flag, default: Flag(true), meaning: "also between two tasks at a time" };

const PATCH_LANGUAGE: &[Key] = &[
    Key {
        name: "layers",
        kind: Kind::WordOrList {
            words: &[
                word("best", "the one whose mean TD is highest on the same prompts"),
                word("all", "every block, one at a time"),
            ],
            list: PATCHED,
            field: "list",
        },
        default: Is("best"),
        meaning: "at the output of which blocks; 0 is the embedding",
    },
    PATCH_SITE,
    positions("last"),
    PATCH_MODE,
    Key {
        name: "pairs",
        kind: Kind::WordOrList {
            words: &[
                word("paper", "every task with itself and with Null"),
                word("matrix", "every source with every target"),
            ],
            list: PATCH_PAIRS,
            field: "list",
        },
        default: Is("paper"),
        meaning: "source and target: whose metric, moved towards whose mean state",
    },
    Key {
        name: "shots",
        kind: Kind::List { of: &whole(0, 1000), min: 1, max: 16, distinct: true },
        default: Computed("`data.shots`"),
        meaning: "numbers of demonstrations at which it is done",
    },
    PROMPTS,
    replicates(5),
];

pub(super) const PATCH_SYNTHETIC: &[Key] = &[
    Key {
        name: "layers",
        kind: Kind::WordOrList { words: &[word("all", "every block, one at a time")], list: PATCHED, field: "list" },
        default: Wholes(&[5]),
        meaning: "at the output of which blocks; 0 is the embedding",
    },
    PATCH_SITE,
    positions("all"),
    PATCH_MODE,
    Key {
        name: "pairs",
        kind: Kind::WordOrList {
            words: &[word("matrix", "every source with every target"), elsewhere("paper", LANGUAGE_MODELS)],
            list: PATCH_PAIRS,
            field: "list",
        },
        default: Is("matrix"),
        meaning: "source and target: whose metric, moved towards whose mean state",
    },
    Key { name: "samples_per_task", kind: whole(2, 100_000), default: Int(100), meaning: "sequences per latent task" },
    replicates(1),
];

const PATCHED: &Kind = &Kind::List { of: &whole(0, 256), min: 1, max: 257, distinct: true };

const PATCH_PAIRS: &Kind = &Kind::List {
    of: &Kind::List { of: &Kind::Task, min: 2, max: 2, distinct: false },
    min: 1,
    max: 10_000,
    distinct: true,
};

const PATCH_SITE: Key =
    Key { name: "site", kind: Kind::Word(SITE), default: Is("x"), meaning: "the positions whose states are changed" };

const PATCH_MODE: Key = Key {
    name: "mode",
    kind: Kind::Word(&[
        word("replace", "the state becomes the target's mean; at `x` of a synthetic model this also erases the query"),
        word("add_mean_difference", "the target's mean less the mean over tasks is added"),
    ]),
    default: Is("replace"),
    meaning: "how the state is changed",
};

const POSITIONS: &[Word] = &[word("last", "the last one of the site"), word("all", "every one of the site")];

const fn positions(default: &'static str) -> Key {
    Key { name: "positions", kind: Kind::Word(POSITIONS), default: Is(default), meaning: "which positions of the site" }
}

const fn replicates(default: u64) -> Key {
    Key { name: "replicates", kind: whole(1, 1000), default: Int(default), meaning: "independent draws of sequences" }
}
