//! Activation patching of a language model with mean states: does the state at the site cause the answer?
//!
//! For every replicate, the mean of each task's states is taken over prompts of its own, and prompts of the source task,
//! again others, are answered twice: as they are (`baseline`), and with the state after one block moved towards a target
//! task (`patched`): replaced by the target's mean, or with the difference of that mean to the mean over all tasks added.
//! Both are accuracies. Positive interventions move towards the right task, negative ones towards Null (arXiv 2412.12276,
//! section 5); any other pair can be asked for.
//!
//! What comes before the first patched token is the same with and without: it goes through the model once, and all variants of
//! a prompt go on from there together.

use super::{
    Meter, Reader, answers, limits, measure,
    pass::{self, Begun},
    states::{self, States},
};
use crate::{
    ScienceError, Sink, analysis,
    hook::{Chain, Change, Edit, Hook, HookPoint, Tokens},
    model::language::{Batch, LanguageModel, Logits},
    task::{Prompt, Prompts, Series, Split, TaskSet},
};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    job::TdPart,
    metric::{IclMetric, Intervention, Metrics},
    spec::{InterventionSpec, Layers, NaturalSpec, PatchLayers, PatchMode},
};

/// Rows that go on together after the common beginning of their prompts.
const ROWS: usize = 256;

/// Neighbours that vote where the best layer is looked for, as in the paper.
const BEST_K: u32 = 10;

/// What is asked for: see [`taskvec_model::job::JobWork::Intervene`].
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub seed: u64,
    pub data: &'a NaturalSpec,
    pub shots: u32,
    pub spec: &'a InterventionSpec,
}

/// Patches a model.
///
/// # Errors
/// As [`super::measure::run`]; also where a pair names a task that is not there.
pub fn run(reader: &Reader, asked: Asked<'_>, sink: &mut dyn Sink) -> Result<Metrics, ScienceError> {
    let tasks = TaskSet::load(asked.data, asked.seed)?;
    let prompts = Prompts::new(&tasks, asked.data, &reader.tokenizer, reader.model.config().context, asked.seed)?;
    let names: Vec<String> = tasks.tasks().iter().map(|t| t.name.clone()).collect();
    let pairs = analysis::pairs(&names, &asked.spec.pairs)?;
    let layers = asked.spec.layers.resolve(reader.model.config().layers as u32);
    let patched = layers.as_ref().map_or(1, Vec::len) * pairs.len();
    limits::rows(patched as u64 * u64::from(asked.spec.replicates), "layers × pairs × replicates")?;
    let layers = match layers {
        Some(layers) => layers,
        None => vec![best_layer(reader, asked, sink)?],
    };
    let sources: BTreeSet<usize> = pairs.iter().map(|[source, _]| *source).collect();
    let per_replicate = u64::from(asked.spec.samples_per_task) * (names.len() + sources.len()) as u64;
    let mut meter = Meter::new(sink, per_replicate * u64::from(asked.spec.replicates));
    let lab = Lab { reader, asked, prompts: &prompts, names: &names, layers: &layers };
    let mut metrics = Metrics::default();
    for replicate in 1..=asked.spec.replicates {
        let means = lab.means(replicate, &mut meter)?;
        for &source in &sources {
            let targets: Vec<usize> = pairs.iter().filter(|[s, _]| *s == source).map(|[_, t]| *t).collect();
            metrics.interventions.extend(lab.of_source(replicate, source, &targets, &means, &mut meter)?);
        }
    }
    Ok(metrics)
}

/// The layer whose mean TD over tasks is highest at the site, the lowest of equals; the embedding is none.
fn best_layer(reader: &Reader, asked: Asked<'_>, sink: &mut dyn Sink) -> Result<u32, ScienceError> {
    debug_assert_eq!(asked.spec.layers, PatchLayers::Best);
    let count = reader.model.config().layers as u32;
    let td = TdPart {
        layers: Layers::List((1..=count).collect()),
        sites: vec![asked.spec.site],
        k: BEST_K,
        samples_per_task: asked.spec.samples_per_task,
        pairs: false,
    };
    let wanted =
        measure::Asked { seed: asked.seed, data: asked.data, shots: asked.shots, icl: None, td: Some(&td), lens: None };
    let mut sums: BTreeMap<u32, f64> = BTreeMap::new();
    for row in measure::run(reader, wanted, sink)?.td {
        *sums.entry(row.layer).or_default() += row.value;
    }
    let best = sums.iter().reduce(|best, next| if next.1 > best.1 { next } else { best });
    Ok(best.map_or(1, |(layer, _)| *layer))
}

/// The mean state of every task at every layer, by layer: (tasks, d) each.
type Means = BTreeMap<u32, Vec<Vec<f64>>>;

struct Lab<'a> {
    reader: &'a Reader,
    asked: Asked<'a>,
    prompts: &'a Prompts<'a>,
    names: &'a [String],
    layers: &'a [u32],
}

impl Lab<'_> {
    /// Prompts of a task for one purpose of a replicate: replicate r uses draws 2r − 1 (means) and 2r (effects).
    fn draw(&self, task: usize, number: u32) -> Result<Vec<Prompt>, ScienceError> {
        let series = Series { task, split: Split::Test, shots: self.asked.shots, replicate: number };
        Ok(self.prompts.batch(series, 0..u64::from(self.asked.spec.samples_per_task))?)
    }

    fn means(&self, replicate: u32, meter: &mut Meter<'_>) -> Result<Means, ScienceError> {
        let mut means = Means::new();
        for task in 0..self.names.len() {
            let prompts = self.draw(task, 2 * replicate - 1)?;
            let mut states = States::at(self.layers.iter().copied(), self.asked.spec.site, self.asked.spec.positions);
            states.look(&self.reader.model, &prompts, meter)?;
            let width = self.reader.model.config().width;
            for ((layer, _), points) in states.iter() {
                means.entry(layer).or_default().push(states::mean(points, width));
            }
        }
        Ok(means)
    }

    /// All interventions on prompts of one source task.
    fn of_source(
        &self,
        replicate: u32,
        source: usize,
        targets: &[usize],
        means: &Means,
        meter: &mut Meter<'_>,
    ) -> Result<Vec<Intervention>, ScienceError> {
        let prompts = self.draw(source, 2 * replicate)?;
        let variants: Vec<(u32, usize)> =
            self.layers.iter().flat_map(|&layer| targets.iter().map(move |&t| (layer, t))).collect();
        let changes = variants.iter().map(|&(layer, target)| self.change(means, layer, target));
        let changes = changes.collect::<Result<Vec<_>, _>>()?;
        // The first is the prompt as it is.
        let mut right = vec![0u32; 1 + variants.len()];
        let at_once = (ROWS / right.len()).max(1);
        for some in prompts.chunks(at_once) {
            for (right, more) in right.iter_mut().zip(self.answered(some, &variants, &changes)?) {
                *right += more;
            }
            meter.add(some.len())?;
        }
        let share = |right: u32| f64::from(right) / prompts.len() as f64;
        let row = |(&(layer, target), &patched): (&(u32, usize), &u32)| Intervention {
            layer,
            site: self.asked.spec.site,
            positions: self.asked.spec.positions,
            mode: self.asked.spec.mode,
            source_task: self.names[source].clone(),
            target_task: self.names[target].clone(),
            shots: self.asked.shots,
            metric: IclMetric::Accuracy,
            baseline: share(right[0]),
            patched: share(patched),
            replicate,
            n: prompts.len() as u32,
        };
        Ok(variants.iter().zip(&right[1..]).map(row).collect())
    }

    /// What moves a state towards a target task after a layer.
    fn change(&self, means: &Means, layer: u32, target: usize) -> Result<Change, ScienceError> {
        let of_layer = &means[&layer];
        let value = |i: usize| match self.asked.spec.mode {
            PatchMode::Replace => of_layer[target][i],
            PatchMode::AddMeanDifference => {
                of_layer[target][i] - of_layer.iter().map(|m| m[i]).sum::<f64>() / of_layer.len() as f64
            }
        };
        let values: Vec<f64> = (0..of_layer[target].len()).map(value).collect();
        let values = Tensor::new(values, &Device::Cpu)?;
        Ok(match self.asked.spec.mode {
            PatchMode::Replace => Change::Replace(values),
            PatchMode::AddMeanDifference => Change::Add(values),
        })
    }

    /// How many of some prompts are answered rightly: as they are, and in each variant.
    fn answered(
        &self,
        some: &[Prompt],
        variants: &[(u32, usize)],
        changes: &[Change],
    ) -> Result<Vec<u32>, ScienceError> {
        let copies = 1 + variants.len();
        let (site, positions) = (self.asked.spec.site, self.asked.spec.positions);
        let sites = some.iter().map(|p| pass::tokens_of(site, positions, p)).collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<usize> = (0..copies * some.len()).map(|row| row % some.len()).collect();
        let edit = |(variant, (&(layer, _), change)): (usize, (&(u32, usize), &Change))| {
            let from = (1 + variant) * some.len();
            let by_row = sites.iter().enumerate().map(|(i, sites)| (from + i, sites.clone()));
            Edit::new(HookPoint::hidden(layer as usize), Tokens::by_row(by_row), change.clone())
        };
        let mut edits: Vec<Edit> = variants.iter().zip(changes).enumerate().map(edit).collect();
        let mut hook = Chain(edits.iter_mut().map(|e| e as &mut dyn Hook).collect());
        let first: Vec<usize> = sites.iter().map(|s| s[0]).collect();
        let begun = go_on_from(&self.reader.model, some, &first, &rows, &mut hook)?;
        let asked: Vec<&Prompt> = rows.iter().map(|&i| &some[i]).collect();
        let right = answers::right(&self.reader.model, self.prompts, &asked, begun)?;
        Ok(right.chunks(some.len()).map(|part| part.iter().map(|r| u32::from(*r)).sum()).collect())
    }
}

/// Passes over prompt `rows[i]` in row i, with a hook that changes nothing before token `first` of each prompt: what comes
/// before it is computed once for all rows of the prompt.
fn go_on_from(
    model: &LanguageModel,
    prompts: &[Prompt],
    first: &[usize],
    rows: &[usize],
    hook: &mut dyn Hook,
) -> Result<Begun, ScienceError> {
    let rest = |from: fn(usize) -> usize| {
        Batch::new(rows.iter().map(|&i| &prompts[i].tokens[from(first[i])..]))
            .expect("the query is not before its site")
    };
    let (mut cache, batch) = if first.contains(&0) {
        (model.cache(rows.len())?, rest(|_| 0))
    } else {
        let mut beginning = model.cache(prompts.len())?;
        let common = prompts.iter().zip(first).map(|(p, &first)| &p.tokens[..first]);
        let common = Batch::new(common).expect("every site is after the first token");
        model.forward(&common, Some(&mut beginning), None, Logits::None)?;
        (beginning.branch(rows)?, rest(|first| first))
    };
    let logits = model.forward(&batch, Some(&mut cache), Some(hook), Logits::Last)?;
    Ok(Begun { cache, logits: logits.expect("logits were asked for") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Files, Room};
    use candle_core::{D, DType};
    use taskvec_model::spec::{PatchPositions, Site};

    fn prompt(tokens: Vec<u32>, x_sites: Vec<usize>) -> Prompt {
        Prompt {
            series: Series { task: 0, split: Split::Test, shots: 1, replicate: 0 },
            index: 0,
            text: String::new(),
            tokens,
            answer: String::new(),
            answer_tokens: Vec::new(),
            x_sites,
            y_sites: Vec::new(),
            most_generated: 1,
        }
    }

    /// Logits of each prompt passed whole and alone, with a change after `layer` at its `sites`.
    fn alone(model: &LanguageModel, prompt: &Prompt, layer: usize, sites: &[usize], change: Option<&Change>) -> Tensor {
        let batch = Batch::new([&prompt.tokens]).unwrap();
        let mut edit = change
            .map(|change| Edit::new(HookPoint::hidden(layer), Tokens::by_row([(0, sites.to_vec())]), change.clone()));
        let hook = edit.as_mut().map(|e| e as &mut dyn Hook);
        model.forward(&batch, None, hook, Logits::Last).unwrap().unwrap()
    }

    #[test]
    fn variants_that_share_a_beginning_are_what_each_is_alone() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/language/llama");
        let model = Files::find(folder, None).unwrap().load(DType::F32, &[Room::cpu()]).unwrap();
        let prompts = [prompt(vec![3, 1, 4, 1, 5, 9, 2], vec![2, 6]), prompt(vec![6, 5, 3, 5], vec![1, 3])];
        let values = |from: f64| {
            let values: Vec<f64> = (0..model.config().width).map(|i| (from + i as f64).sin()).collect();
            Tensor::new(values, &Device::Cpu).unwrap()
        };
        let changes = [(1, Change::Replace(values(0.0))), (2, Change::Add(values(1.0)))];
        for positions in [PatchPositions::Last, PatchPositions::All] {
            let sites: Vec<Vec<usize>> =
                prompts.iter().map(|p| pass::tokens_of(Site::X, positions, p).unwrap()).collect();
            let mut edits: Vec<Edit> = (changes.iter().enumerate())
                .map(|(v, (layer, change))| {
                    let by_row = sites.iter().enumerate().map(|(i, s)| (2 * (1 + v) + i, s.clone()));
                    Edit::new(HookPoint::hidden(*layer), Tokens::by_row(by_row), change.clone())
                })
                .collect();
            let mut hook = Chain(edits.iter_mut().map(|e| e as &mut dyn Hook).collect());
            let first: Vec<usize> = sites.iter().map(|s| s[0]).collect();
            let begun = go_on_from(&model, &prompts, &first, &[0, 1, 0, 1, 0, 1], &mut hook).unwrap();
            for row in 0..6_usize {
                let change = (row / 2).checked_sub(1).map(|v| &changes[v]);
                let (layer, change) = change.map_or((0, None), |(layer, change)| (*layer, Some(change)));
                let want = alone(&model, &prompts[row % 2], layer, &sites[row % 2], change);
                let got = begun.logits.narrow(0, row, 1).unwrap();
                let off = (got - &want).unwrap().abs().unwrap().max(D::Minus1).unwrap().max(0).unwrap();
                assert!(off.to_scalar::<f32>().unwrap() < 1e-5, "row {row}");
                if change.is_some() {
                    let plain = alone(&model, &prompts[row % 2], 0, &[], None);
                    let moved = (plain - want).unwrap().abs().unwrap().max(D::Minus1).unwrap().max(0).unwrap();
                    assert!(moved.to_scalar::<f32>().unwrap() > 1e-3, "row {row}: the change has no effect");
                }
            }
        }
    }
}
