//! The declarations for fine-tuning a language model (`kind: finetune`).

use super::{
    Default::{Number as Num, Numbers, Required, Section as Inner, Whole as Int, Word as Is, Words},
    Key, Kind, Range,
    keys::{
        BETAS, CLIP_NORM, DECAY, EPSILON, LOG_EVERY, MAX_STEPS, OPTIMIZER_KIND, RESUME_EVERY, STEPS, WARMUP,
        WEIGHT_DECAY, whole,
    },
    measure::ANALYSIS_OF_CHECKPOINT,
    natural::{DATA, MODEL},
    words::{Word, word},
};

pub(super) const FINETUNE: &[Key] = &[
    MODEL,
    DATA,
    Key { name: "lora", kind: Kind::Section(LORA), default: Inner, meaning: "the low-rank adapters (Hu et al. 2021)" },
    Key {
        name: "train",
        kind: Kind::Section(TRAIN),
        default: Required,
        meaning: "how the adapters are trained: on the answer tokens, in 32-bit floats",
    },
    Key {
        name: "checkpoints",
        kind: Kind::Section(CHECKPOINTS),
        default: Inner,
        meaning: "when adapters are kept for analysis, and how often the full state for resuming",
    },
    Key {
        name: "analyses",
        kind: Kind::List { of: &Kind::Choice(&ANALYSIS_OF_CHECKPOINT), min: 0, max: 32, distinct: false },
        default: Required,
        meaning: "what is measured at the checkpoints; jobs as with `kind: evaluate`, for each of them",
    },
];

const LORA: &[Key] = &[
    Key { name: "rank", kind: whole(1, 4096), default: Int(16), meaning: "rank of the update of each matrix" },
    Key {
        name: "alpha",
        kind: Kind::Number(Range::above(0.0, 1e6)),
        default: Num(16.0),
        meaning: "the update is scaled by alpha / rank",
    },
    Key {
        name: "dropout",
        kind: Kind::Number(Range::below(0.0, 1.0)),
        default: Num(0.1),
        meaning: "on the inputs of the adapters, in training",
    },
    Key { name: "layers", kind: Kind::Blocks, default: Is("all"), meaning: "which blocks get adapters, from 1" },
    Key {
        name: "targets",
        kind: Kind::List { of: &Kind::Word(MODULES), min: 1, max: 12, distinct: true },
        default: Words(&["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        meaning: "the matrices that get adapters",
    },
];

const MODULES: &[Word] = &[
    word("q_proj", "queries (llama, gemma2, olmo, olmo2; so the next six)"),
    word("k_proj", "keys"),
    word("v_proj", "values"),
    word("o_proj", "output of attention"),
    word("gate_proj", "gate of the MLP"),
    word("up_proj", "into the MLP"),
    word("down_proj", "out of the MLP"),
    word("c_attn", "queries, keys and values together (gpt2)"),
    word("c_fc", "into the MLP (gpt2)"),
    word("c_proj", "out of attention, and out of the MLP (gpt2)"),
    word("in_proj", "into the mixer (mamba2)"),
    word("out_proj", "out of the mixer (mamba2); refused, since PEFT refuses adapters of it"),
];

const TRAIN: &[Key] = &[
    STEPS,
    Key {
        name: "batch",
        kind: whole(1, 65_536),
        default: Required,
        meaning: "prompts per update, over all its pieces",
    },
    Key {
        name: "accumulate",
        kind: whole(1, 65_536),
        default: Int(1),
        meaning: "pieces in which the gradient of a batch is computed, to save memory; divides `batch`",
    },
    Key {
        name: "max_examples",
        kind: whole(1, 100_000_000),
        default: Int(10_000),
        meaning: "different training prompts over all tasks; used again once all were seen",
    },
    Key { name: "shots", kind: whole(0, 1000), default: Int(4), meaning: "demonstrations in a training prompt" },
    Key { name: "optimizer", kind: Kind::Section(OPTIMIZER), default: Inner, meaning: "the optimiser" },
    WARMUP,
    DECAY,
    CLIP_NORM,
    LOG_EVERY,
];

const OPTIMIZER: &[Key] = &[
    OPTIMIZER_KIND,
    Key {
        name: "learning_rate",
        kind: Kind::Number(Range::above(0.0, 10.0)),
        default: Num(2e-4),
        meaning: "step size, after the warm-up and before the decay; the paper gives none, Hu et al. 2021 use this one",
    },
    Key {
        name: "betas",
        kind: BETAS,
        default: Numbers(&[0.9, 0.999]),
        meaning: "decay of the first and the second moment",
    },
    EPSILON,
    WEIGHT_DECAY,
];

const CHECKPOINTS: &[Key] = &[
    Key {
        name: "schedule",
        kind: Kind::Word(&[
            word("log", "0, 1 and on to the last step in equal factors"),
            word("linear", "0 to the last step in equal distances"),
        ]),
        default: Is("linear"),
        meaning: "how the checkpoints for analysis are spread",
    },
    Key {
        name: "count",
        kind: whole(2, 1000),
        default: Int(2),
        meaning: "checkpoints for analysis, before training and the last step included; equal steps fall together",
    },
    Key { name: "resume_every", kind: whole(1, MAX_STEPS), default: Int(500), meaning: RESUME_EVERY },
];
