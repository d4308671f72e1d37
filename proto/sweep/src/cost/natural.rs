//! What jobs on pretrained language models cost, roughly. Without a look at the model nothing is known, and counted as
//! 0.

use taskvec_model::{
    job::{JobWork, Subject},
    spec::{Family, Instruction, LoraSpec, NaturalSpec, PatchLayers, PretrainedSpec},
};

/// Tasks of a file that was not read.
const SOME_TASKS: f64 = 10.0;

/// Floating-point operations of a job on a language model; none for other jobs.
pub(super) fn flops(work: &JobWork) -> Option<f64> {
    Some(match work {
        JobWork::Measure { model, data, shots, icl, td, lens, .. } => {
            let answered = f64::from(icl.unwrap_or(0));
            let parts = [*icl, td.as_ref().map(|t| t.samples_per_task), lens.as_ref().map(|l| l.samples_per_task)];
            let prompts = f64::from(parts.into_iter().flatten().max().unwrap_or(0));
            let tokens = tasks(data) * (prompts * prompt_tokens(data, *shots) + answered * answer_tokens(data));
            let points = tasks(data) * td.as_ref().map_or(0.0, |t| f64::from(t.samples_per_task));
            let spaces = td.as_ref().map_or(0, |t| t.layers.resolve(layers(model)).len() * t.sites.len()) as f64;
            per_token(model) * tokens + 3.0 * points * points * width(model) * spaces
        }
        JobWork::Intervene { subject: Subject::Language { model, data, shots }, spec, .. } => {
            let names = data.latent_tasks();
            let patched_layers = match &spec.layers {
                PatchLayers::Best => 1,
                other => other.resolve(layers(model)).map_or(1, |l| l.len()),
            };
            let samples = f64::from(spec.samples_per_task);
            let means = tasks(data) * samples * prompt_tokens(data, *shots);
            // Whatever comes before the patched position is not computed again.
            let patched = (spec.pairs.count(&names) * patched_layers) as f64 * samples * answer_tokens(data);
            per_token(model) * f64::from(spec.replicates) * (means + patched)
        }
        JobWork::Finetune { model, data, train, from, to, .. } => {
            // Forward, forward again from the checkpoint of each block, and the gradients of the activations.
            let tokens = f64::from(train.batch) * (prompt_tokens(data, train.shots) + answer_tokens(data));
            3.0 * per_token(model) * tokens * (to - from) as f64
        }
        _ => return None,
    })
}

/// Numbers in the adapters of a model, roughly: MLPs are taken to be four times as wide as the residual stream.
pub(super) fn adapter_parameters(model: &PretrainedSpec, lora: &LoraSpec) -> f64 {
    let blocks = lora.layers.resolve(layers(model)).map_or(0, |(from, to)| to - from + 1);
    let sides = |target: &String| match target.as_str() {
        "q_proj" | "k_proj" | "v_proj" | "o_proj" | "out_proj" => 2.0,
        "c_attn" => 4.0,
        _ => 5.0,
    };
    let sides: f64 = lora.targets.iter().map(sides).sum();
    f64::from(blocks) * f64::from(lora.rank) * width(model) * sides
}

fn per_token(model: &PretrainedSpec) -> f64 {
    model.identity.as_ref().map_or(0.0, |i| 2.0 * i.parameters as f64)
}

fn layers(model: &PretrainedSpec) -> u32 {
    model.identity.as_ref().map_or(0, |i| i.layers)
}

fn width(model: &PretrainedSpec) -> f64 {
    model.identity.as_ref().map_or(0.0, |i| i.width.into())
}

fn tasks(data: &NaturalSpec) -> f64 {
    match data.latent_tasks().len() {
        0 => SOME_TASKS,
        n => n as f64,
    }
}

/// Tokenizers differ; a digit is taken to be a token.
fn prompt_tokens(data: &NaturalSpec, shots: u32) -> f64 {
    let example = match data.family {
        Family::Bitwise { digits } => 3.0 * f64::from(digits) + 4.0,
        Family::Pos { .. } => 35.0,
        Family::Pairs { .. } => 12.0,
    };
    let named = if data.instruction == Instruction::Named { 10.0 } else { 0.0 };
    named + example * f64::from(shots + 1)
}

fn answer_tokens(data: &NaturalSpec) -> f64 {
    match data.family {
        Family::Bitwise { digits } => f64::from(digits) + 1.0,
        Family::Pos { .. } | Family::Pairs { .. } => 3.0,
    }
}
