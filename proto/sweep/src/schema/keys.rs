//! The declarations: all keys of a sweep file. Defaults are the paper's (arXiv 2412.12276) where it has a value.

use super::{
    Choice,
    Default::{
        Absent, Computed, Null, Number as Num, Numbers, Required, Section as Inner, Whole as Int, Word as Is, Words,
    },
    Key, Kind, Range, Variant,
    measure::PATCH_SYNTHETIC,
    natural::EVALUATE_PRETRAINED,
    tune::FINETUNE,
    words::{elsewhere, later, word},
};

pub(super) const fn whole(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max }
}

pub(super) const MAX_STEPS: u64 = 1_000_000_000;

pub(crate) const ROOT: Kind = Kind::Choice(&Choice {
    tag: "kind",
    meaning: "what a run of the sweep is",
    short: false,
    common: &[
        Key { name: "version", kind: whole(1, 1), default: Required, meaning: "version of the file format" },
        Key { name: "name", kind: Kind::Name, default: Required, meaning: "what the sweep is called in listings" },
        Key {
            name: "seed",
            // What a bigint column of the database holds.
            kind: whole(0, i64::MAX as u64),
            default: Int(0),
            meaning: "what all random numbers of a run follow from; usually varied by the grid",
        },
        Key {
            name: "grid",
            kind: Kind::Grid,
            default: Absent,
            meaning: "dotted paths with lists of values; a run for every combination, the last path varying fastest",
        },
    ],
    variants: &[
        Variant {
            word: word(
                "pretrain",
                "train a transformer from scratch on synthetic sequences and analyse its checkpoints",
            ),
            keys: PRETRAIN,
        },
        Variant {
            word: word("finetune", "fine-tune a pretrained language model with adapters and analyse its checkpoints"),
            keys: FINETUNE,
        },
        Variant { word: word("evaluate", "analyse a pretrained language model"), keys: EVALUATE_PRETRAINED },
        Variant {
            word: word("selftest", "jobs that compute nothing, to see that an installation works"),
            keys: &[Key {
                name: "selftest",
                kind: Kind::Section(SELFTEST),
                default: Required,
                meaning: "the jobs of a self-test",
            }],
        },
    ],
});

const PRETRAIN: &[Key] = &[
    Key { name: "model", kind: Kind::Section(MODEL), default: Required, meaning: "the network" },
    Key { name: "data", kind: Kind::Choice(&DATA), default: Required, meaning: "where the sequences come from" },
    Key { name: "train", kind: Kind::Section(TRAIN), default: Required, meaning: "how the network is trained" },
    Key {
        name: "checkpoints",
        kind: Kind::Section(CHECKPOINTS),
        default: Inner,
        meaning: "when weights are kept for analysis, and how often the full state for resuming",
    },
    Key { name: "evaluate", kind: Kind::Section(EVALUATE), default: Inner, meaning: "the held-out sequences" },
    Key {
        name: "analyses",
        kind: Kind::List { of: &Kind::Choice(&ANALYSIS), min: 0, max: 32, distinct: false },
        default: Required,
        meaning: "what is measured; one job per analysis and checkpoint",
    },
];

const MODEL: &[Key] = &[
    Key {
        name: "arch",
        kind: Kind::Word(&[
            word("gpt2", "pre-LN blocks, learned positions, GELU (tanh), linear read-in and read-out"),
            later("lstm"),
        ]),
        default: Required,
        meaning: "the architecture",
    },
    Key { name: "layers", kind: whole(1, 256), default: Required, meaning: "number of blocks, L" },
    Key { name: "width", kind: whole(1, 65_536), default: Required, meaning: "width of the residual stream, d" },
    Key { name: "heads", kind: whole(1, 1024), default: Required, meaning: "attention heads; divides `width`" },
    Key {
        name: "init",
        kind: Kind::Section(INIT),
        default: Inner,
        meaning: "standard deviations of the initial weights; they decide how long the plateau lasts",
    },
];

const INIT: &[Key] = &[
    Key {
        name: "std",
        kind: Kind::Number(Range::above(0.0, 10.0)),
        default: Num(0.02),
        meaning: "weights of the blocks; projections into the residual stream get std / sqrt(2 L)",
    },
    Key {
        name: "read_in_std",
        kind: Kind::Number(Range::above(0.0, 10.0)),
        default: Computed("1 / sqrt(3 · channels of a token)"),
        meaning: "weights of the read-in",
    },
    Key {
        name: "position_std",
        kind: Kind::Number(Range::closed(0.0, 10.0)),
        default: Num(0.02),
        meaning: "learned positions",
    },
];

pub(super) const LANGUAGE_MODELS: &str = "`kind: evaluate` and `kind: finetune`";

const DATA: Choice = Choice {
    tag: "family",
    meaning: "the family of latent tasks",
    short: false,
    common: &[],
    variants: &[
        Variant {
            word: word("sparse_linear", "y = W·x + e, where W is zero outside the coordinates of the sequence's basis"),
            keys: SPARSE_LINEAR,
        },
        Variant { word: elsewhere("bitwise", LANGUAGE_MODELS), keys: &[] },
        Variant { word: elsewhere("pos", LANGUAGE_MODELS), keys: &[] },
        Variant { word: elsewhere("pairs", LANGUAGE_MODELS), keys: &[] },
    ],
};

const SPARSE_LINEAR: &[Key] = &[
    Key { name: "dim", kind: whole(1, 4096), default: Required, meaning: "dimension of x, D" },
    Key { name: "bases", kind: whole(1, 1024), default: Required, meaning: "number of latent tasks" },
    Key { name: "rank", kind: whole(1, 4096), default: Required, meaning: "coordinates in a basis, r" },
    Key {
        name: "overlap",
        kind: Kind::Word(&[
            word("disjoint", "every basis has coordinates of its own: bases · rank ≤ dim"),
            word("grouped", "two groups of bases, each in its half of the coordinates, overlapping within the group"),
        ]),
        default: Is("disjoint"),
        meaning: "how the bases share coordinates",
    },
    Key { name: "examples", kind: whole(1, 4096), default: Required, meaning: "(x, y) pairs in a sequence, K" },
    Key {
        name: "noise_variance",
        kind: Kind::Number(Range::closed(1e-9, 1e6)),
        default: Num(0.01),
        meaning: "variance (not deviation) of the noise on y",
    },
    Key {
        name: "weight_mean",
        kind: Kind::Number(Range::closed(-1000.0, 1000.0)),
        default: Num(0.0),
        meaning: "mean of W on the active coordinates; 0 is the paper",
    },
    Key {
        name: "y_channel",
        kind: Kind::Word(&[
            word("shared", "coordinate 0, which x uses too (the paper)"),
            word("own", "a channel of its own: tokens have D + 1 channels"),
        ]),
        default: Is("shared"),
        meaning: "which input channel carries y",
    },
];

pub(super) const STEPS: Key = Key { name: "steps", kind: whole(1, MAX_STEPS), default: Required, meaning: "updates" };

pub(super) const WARMUP: Key = Key {
    name: "warmup",
    kind: whole(0, MAX_STEPS),
    default: Int(0),
    meaning: "updates over which the learning rate rises from 0; at most `steps`",
};

pub(super) const DECAY: Key = Key {
    name: "decay",
    kind: Kind::Word(&[
        word("none", "the learning rate stays"),
        word("cosine", "half a cosine to 0 at the last update"),
        word("linear", "a straight line to 0 at the last update"),
    ]),
    default: Is("none"),
    meaning: "what the learning rate does after the warm-up",
};

pub(super) const CLIP_NORM: Key = Key {
    name: "clip_norm",
    kind: Kind::OrNull(&Kind::Number(Range::above(0.0, 1e9))),
    default: Null,
    meaning: "global gradient norm above which gradients are scaled down; null: never",
};

pub(super) const LOG_EVERY: Key = Key {
    name: "log_every",
    kind: whole(1, MAX_STEPS),
    default: Int(10),
    meaning: "the loss of every n-th update is recorded",
};

const TRAIN: &[Key] = &[
    STEPS,
    Key { name: "batch", kind: whole(1, 65_536), default: Required, meaning: "sequences per update" },
    Key { name: "optimizer", kind: Kind::Section(OPTIMIZER), default: Inner, meaning: "the optimiser" },
    WARMUP,
    DECAY,
    CLIP_NORM,
    Key {
        name: "precision",
        kind: Kind::Word(&[
            word("f32", "as they are"),
            word("tf32", "to 10 bits behind the point"),
            word("bf16", "to bfloat16, 7 bits"),
        ]),
        default: Is("f32"),
        meaning: "what factors of products with weights are rounded to in training; everything else is 32-bit floats",
    },
    LOG_EVERY,
];

const OPTIMIZER: &[Key] = &[
    OPTIMIZER_KIND,
    Key {
        name: "learning_rate",
        kind: Kind::Number(Range::above(0.0, 10.0)),
        default: Num(1e-4),
        meaning: "step size, after the warm-up and before the decay",
    },
    Key {
        name: "betas",
        kind: BETAS,
        default: Numbers(&[0.9, 0.9999]),
        meaning: "decay of the first and the second moment",
    },
    EPSILON,
    WEIGHT_DECAY,
];

pub(super) const OPTIMIZER_KIND: Key = Key {
    name: "kind",
    kind: Kind::Word(&[word("adam", "Kingma & Ba 2015; with `weight_decay`, AdamW")]),
    default: Is("adam"),
    meaning: "the method",
};

pub(super) const BETAS: Kind =
    Kind::List { of: &Kind::Number(Range::below(0.0, 1.0)), min: 2, max: 2, distinct: false };

pub(super) const EPSILON: Key = Key {
    name: "epsilon",
    kind: Kind::Number(Range::above(0.0, 1.0)),
    default: Num(1e-8),
    meaning: "keeps the quotient of the moments finite",
};

pub(super) const WEIGHT_DECAY: Key = Key {
    name: "weight_decay",
    kind: Kind::Number(Range::closed(0.0, 10.0)),
    default: Num(0.0),
    meaning: "decoupled (Loshchilov & Hutter 2019): times the learning rate, the part of itself that every parameter loses \
              at an update",
};

const CHECKPOINTS: &[Key] = &[
    Key {
        name: "schedule",
        kind: Kind::Word(&[
            word("log", "0, 1 and on to the last step in equal factors"),
            word("linear", "0 to the last step in equal distances"),
        ]),
        default: Is("log"),
        meaning: "how the checkpoints for analysis are spread",
    },
    Key {
        name: "count",
        kind: whole(2, 1000),
        default: Int(24),
        meaning: "checkpoints for analysis, the untrained model and the last step included; equal steps fall together",
    },
    Key { name: "resume_every", kind: whole(1, MAX_STEPS), default: Int(2000), meaning: RESUME_EVERY },
];

pub(super) const RESUME_EVERY: &str =
    "training is cut into jobs of this many updates; each keeps the full state from which the next goes on";

const EVALUATE: &[Key] = &[Key {
    name: "sequences",
    kind: whole(2, 10_000_000),
    default: Int(1000),
    meaning: "held-out sequences for ICL performance and the baselines; at least 2 per basis",
}];

const ANALYSIS: Choice = Choice {
    tag: "kind",
    meaning: "which measurement",
    short: false,
    common: &[AT],
    variants: &[
        Variant { word: word("icl", "squared error per latent task and position, with the baselines"), keys: &[] },
        Variant { word: word("td", "task decodability: leave-one-out kNN accuracy of the latent task"), keys: TD },
        Variant {
            word: word("interventions", "what moving the states of one latent task towards another does to the error"),
            keys: PATCH_SYNTHETIC,
        },
    ],
};

pub(super) const AT: Key = Key {
    name: "at",
    kind: Kind::WordOrList {
        words: &[word("all", "every checkpoint"), word("last", "only the last")],
        list: &Kind::List { of: &whole(0, MAX_STEPS), min: 1, max: 1000, distinct: true },
        field: "steps",
    },
    default: Is("all"),
    meaning: "which checkpoints are analysed; steps must be checkpoints of every run",
};

pub(super) const DECODED_LAYERS: Key = Key {
    name: "layers",
    kind: Kind::WordOrList {
        words: &[word("all", "the embedding (0) and every block")],
        list: &Kind::List { of: &whole(0, 256), min: 1, max: 257, distinct: true },
        field: "list",
    },
    default: Is("all"),
    meaning: "whose output is decoded: 0 is the embedding, 1 the first block",
};

pub(super) const NEIGHBOURS: Key =
    Key { name: "k", kind: whole(1, 100_000), default: Int(10), meaning: "neighbours that vote" };

const TD: &[Key] = &[
    DECODED_LAYERS,
    Key {
        name: "sites",
        kind: Kind::List {
            of: &Kind::Word(&[
                word("x", "the position that predicts the answer"),
                word("y", "the last answer before it"),
                word("s", "as x, with one query shared by all sequences"),
            ]),
            min: 1,
            max: 3,
            distinct: true,
        },
        default: Words(&["x", "y"]),
        meaning: "the positions whose states are decoded",
    },
    NEIGHBOURS,
    Key { name: "samples_per_task", kind: whole(2, 100_000), default: Int(100), meaning: "sequences per latent task" },
];

const SELFTEST: &[Key] = &[
    Key { name: "jobs", kind: whole(1, 1_000_000), default: Required, meaning: "independent jobs in a run" },
    Key {
        name: "behaviour",
        kind: Kind::Word(&[
            word("succeed", "end well"),
            word("fail", "report an error"),
            word("panic", "panic on the worker"),
        ]),
        default: Is("succeed"),
        meaning: "what each job does",
    },
    Key { name: "millis", kind: whole(0, 3_600_000), default: Int(0), meaning: "how long each job takes" },
];
