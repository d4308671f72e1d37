//! Keys of jobs on pretrained models: by the content of files, in one spelling.

use super::hash;
use serde_json::{Value as Json, json};
use taskvec_model::{
    id::Digest,
    job::{JobKind, JobWork, LensPart, Subject, TdPart},
    spec::{
        At, Decay, InterventionSpec, Layers, LoraLayers, LoraSpec, NaturalSpec, PatchLayers, PatchPairs,
        PretrainedSpec, TuneSpec,
    },
};

const TRAJECTORY_CONTEXT: &str = "taskvec fine-tuning trajectory v1";

/// What the adapters at every step follow from, as [`super::trajectory`] for training from scratch. Which numbers of
/// shots are measured has no part in it.
pub fn finetune_trajectory(
    seed: u64,
    model: &PretrainedSpec,
    data: &NaturalSpec,
    lora: &LoraSpec,
    train: &TuneSpec,
) -> Digest {
    let TuneSpec { steps, batch, accumulate, max_examples, shots, optimizer, warmup, decay, clip_norm, log_every: _ } =
        train;
    let ends_at = match decay {
        Decay::None => None,
        Decay::Cosine | Decay::Linear => Some(steps),
    };
    hash(
        TRAJECTORY_CONTEXT,
        &json!({
            "code_version": JobKind::Finetune.code_version(),
            "seed": seed,
            "model": model_by_content(model),
            "data": data_by_content(&normal_data(data.clone(), *shots)),
            "lora": normal_lora(lora.clone(), model),
            "train": {
                "steps": ends_at,
                "batch": batch,
                "accumulate": accumulate,
                "max_examples": max_examples,
                "optimizer": optimizer,
                "warmup": warmup,
                "decay": decay,
                "clip_norm": clip_norm,
            },
        }),
    )
}

/// The same work in one spelling: layers listed where the model is known, lists sorted whose order has no meaning, no
/// shots but the job's own, and at whichever checkpoint.
pub(crate) fn normal(work: JobWork) -> JobWork {
    match work {
        JobWork::Measure { seed, model, data, shots, icl, td, lens } => {
            let td = td.map(|td| TdPart { layers: normal_layers(&td.layers, &model), sites: sorted(td.sites), ..td });
            let lens = lens.map(|lens| LensPart { layers: normal_layers(&lens.layers, &model), ..lens });
            JobWork::Measure { seed, data: normal_data(data, shots), model, shots, icl, td, lens }
        }
        JobWork::Intervene { seed, subject: Subject::Synthetic { model, data }, spec } => {
            let spec = normal_patches(spec, Some(model.layers));
            JobWork::Intervene { seed, subject: Subject::Synthetic { model, data }, spec }
        }
        JobWork::Intervene { seed, subject: Subject::Language { model, data, shots }, spec } => {
            let spec = normal_patches(spec, model.identity.as_ref().map(|i| i.layers));
            let data = normal_data(data, shots);
            JobWork::Intervene { seed, subject: Subject::Language { model, data, shots }, spec }
        }
        JobWork::Finetune { seed, model, data, lora, train, checkpoints, from, to } => {
            let (data, lora) = (normal_data(data, train.shots), normal_lora(lora, &model));
            JobWork::Finetune { seed, model, data, lora, train, checkpoints, from, to }
        }
        other => other,
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list
}

fn normal_layers(layers: &Layers, model: &PretrainedSpec) -> Layers {
    match (layers, &model.identity) {
        (_, Some(identity)) => Layers::List(sorted(layers.resolve(identity.layers))),
        (Layers::List(list), None) => Layers::List(sorted(list.clone())),
        (Layers::All, None) => Layers::All,
    }
}

/// The order of the tasks has a meaning: it breaks ties.
fn normal_data(data: NaturalSpec, shots: u32) -> NaturalSpec {
    NaturalSpec { tasks: data.latent_tasks(), shots: vec![shots], ..data }
}

fn normal_lora(lora: LoraSpec, model: &PretrainedSpec) -> LoraSpec {
    let known = model.identity.as_ref().and_then(|i| lora.layers.resolve(i.layers));
    let layers = known.map_or(lora.layers, |(from, to)| LoraLayers::Range(from, to));
    LoraSpec { layers, targets: sorted(lora.targets), ..lora }
}

fn normal_patches(spec: InterventionSpec, layers: Option<u32>) -> InterventionSpec {
    let layers = match (layers.and_then(|count| spec.layers.resolve(count)), spec.layers) {
        (Some(list), _) | (None, PatchLayers::List(list)) => PatchLayers::List(sorted(list)),
        (None, unknown) => unknown,
    };
    let pairs = match spec.pairs {
        PatchPairs::List(list) => PatchPairs::List(sorted(list)),
        named => named,
    };
    InterventionSpec { at: At::All, layers, pairs, shots: Vec::new(), ..spec }
}

/// A job on a pretrained model as JSON, with the content of files in place of their names.
pub(super) fn by_content(work: &JobWork) -> Json {
    let mut json = json!(work);
    match work {
        JobWork::Measure { model, data, .. } => {
            json["model"] = model_by_content(model);
            json["data"] = data_by_content(data);
        }
        JobWork::Intervene { subject: Subject::Language { model, data, .. }, .. } => {
            json["subject"]["model"] = model_by_content(model);
            json["subject"]["data"] = data_by_content(data);
        }
        _ => {}
    }
    json
}

fn model_by_content(model: &PretrainedSpec) -> Json {
    match &model.identity {
        Some(identity) => json!({ "digest": identity.digest, "dtype": model.dtype }),
        None => json!({ "path": model.path, "revision": model.revision, "dtype": model.dtype }),
    }
}

fn data_by_content(data: &NaturalSpec) -> Json {
    let mut data = data.clone();
    if let Some(file) = data.family.file_mut().filter(|file| file.digest.is_some()) {
        file.path.clear();
    }
    json!(data)
}
