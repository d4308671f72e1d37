//! `taskvec model …`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum ModelCommand {
    /// One forward pass over the inputs of a file: predictions and all hidden states, for checks against other tools
    #[command(
        after_help = "Input of a language model: {\"input_ids\": [[…]], \"attention_mask\": [[…]]}, B × T, padded on
the left where rows are shorter. Output: logits (B × T × V) and hidden.0 … hidden.L
(B × T × d), the residual stream as it enters block 1 and as each block leaves it, before the
final norm; zero where there is padding.
Input of a synthetic model: {\"x\": [[[…]]], \"y\": [[…]]}, B × K × D and B × K. Output:
predictions (B × K) and hidden.0 … hidden.L (B × 2K × d).
Examples:
  taskvec model forward --model ~/models/SmolLM2-135M --input prompts.json -o states.safetensors
  taskvec model forward --model checkpoint-7.safetensors --input sequences.json -o states.safetensors"
    )]
    Forward(ModelForward),
    /// Fetch a model from the HuggingFace hub into its cache on this machine
    #[command(after_help = "Fetched is what is read here: config.json, the tokenizer, and the weights as safetensors.
Sweeps then name the model as OWNER/NAME. What was broken off goes on where it stopped.
Environment, as of HuggingFace's own tools: HF_HUB_CACHE or HF_HOME (where to), HF_TOKEN (for
what is not public), HF_ENDPOINT (another hub), HF_HUB_OFFLINE=1 (fetch nothing).
Without a network, copy config.json, tokenizer.json and model.safetensors (or its index with
every shard) from elsewhere into one folder, and give sweeps its path instead.
Examples:
  taskvec model fetch HuggingFaceTB/SmolLM2-135M
  taskvec model fetch allenai/OLMo-1B-hf --revision 'step1*000-*'")]
    Fetch(ModelFetch),
}

#[derive(Args)]
pub struct ModelFetch {
    /// The model's name on the hub
    #[arg(value_name = "OWNER/NAME")]
    pub model: String,
    /// A branch, a tag or a commit; with `*` or `?` all branches and tags that match. Default: main
    #[arg(long)]
    pub revision: Option<String>,
}

#[derive(Args)]
pub struct ModelForward {
    /// A folder as downloaded from the HuggingFace hub, the hub name of one in the hub cache, or a run's checkpoint
    /// (.safetensors)
    #[arg(long)]
    pub model: String,
    /// A folder below the model's, or a revision in the hub cache
    #[arg(long)]
    pub revision: Option<String>,
    /// Adapters for a language model: a folder as HuggingFace's PEFT writes it
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// The inputs, as JSON
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Where the tensors go
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
    /// What a language model is held and computed in
    #[arg(long, value_enum, default_value_t = Float::F32)]
    pub dtype: Float,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Float {
    F32,
    Bf16,
    F16,
}
