//! Accuracy, task decodability and the logit lens of a language model, all from one pass over each prompt.
//!
//! | metric | on what | definition |
//! | --- | --- | --- |
//! | accuracy | the greedy answer | the whole answer equals the output ([`crate::task::Verdict`]); standard error over prompts |
//! | TD | residual stream at the site | leave-one-out kNN, pooled over tasks ([`crate::analysis::decode`]) |
//! | pairwise TD | the same | the same among the prompts of two tasks |
//! | lens | residual stream before the answer | first token of the right answer under final norm and unembedding |

use super::{
    Meter, Reader, TOKENS, all_tasks, answers, cuts,
    lens::{Lenses, Wanted},
    limits, pass,
    states::States,
};
use crate::{
    ScienceError, Sink,
    analysis::{decode::Decoder, stats::Summary, td::halves},
    hook::{Capture, Chain, HookPoint},
    load::Room,
    model::language::Config,
    task::{Prompt, Prompts, TaskSet},
};
use std::collections::BTreeMap;
use taskvec_model::{
    job::{LensPart, TdPart},
    metric::{Icl, IclMetric, Metrics, Td, TdPair},
    spec::{NaturalSpec, PatchPositions, Site},
};

/// What a measurement is asked for: see [`taskvec_model::job::JobWork::Measure`].
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub seed: u64,
    pub data: &'a NaturalSpec,
    pub shots: u32,
    pub icl: Option<u32>,
    pub td: Option<&'a TdPart>,
    pub lens: Option<&'a LensPart>,
}

impl Asked<'_> {
    /// Prompts of each task that are looked at for anything.
    fn prompts_per_task(&self) -> u32 {
        let wanted = [self.icl, self.td.map(|t| t.samples_per_task), self.lens.map(|l| l.samples_per_task)];
        wanted.into_iter().flatten().max().unwrap_or(0)
    }
}

/// Measures a model.
///
/// # Errors
/// Tasks that cannot be read, or so many that results or states would be too many; prompts that cannot be made or are too
/// long; states that are not finite; [`ScienceError::Stopped`] when the sink asks for it.
pub fn run(reader: &Reader, asked: Asked<'_>, sink: &mut dyn Sink) -> Result<Metrics, ScienceError> {
    let tasks = TaskSet::load(asked.data, asked.seed)?;
    let Config { context, layers, width, .. } = *reader.model.config();
    limits::measurement(&asked, tasks.tasks().len(), layers as u32, width, Room::cpu().bytes)?;
    let prompts = Prompts::new(&tasks, asked.data, &reader.tokenizer, context, asked.seed)?;
    let mut all = all_tasks(&prompts, tasks.tasks().len(), asked.shots, asked.prompts_per_task())?;
    // Prompts that begin alike come together: what they share is computed once. What is found is put in order again.
    all.sort_by(|a, b| a.tokens.cmp(&b.tokens));
    let mut found = Found::new(reader, asked, tasks.tasks().len());
    let mut meter = Meter::new(sink, all.len() as u64);
    match (&mut found.states, asked.icl, asked.lens) {
        (Some(states), None, None) => {
            states.look(&reader.model, &all, &mut meter)?;
            found.decoded = all.iter().map(|p| (p.series.task, p.index)).collect();
        }
        _ => {
            for cut in cuts(&all, TOKENS, 1) {
                found.look(reader, &prompts, &all[cut.clone()])?;
                meter.add(cut.len())?;
            }
        }
    }
    let names: Vec<String> = tasks.tasks().iter().map(|t| t.name.clone()).collect();
    Ok(found.metrics(asked, &names))
}

/// What was found so far.
struct Found<'a> {
    asked: Asked<'a>,
    states: Option<States>,
    lens_layers: Vec<u32>,
    lenses: Lenses,
    /// By task and index of the prompt: 1 for a right answer, 0 for a wrong one.
    right: Vec<BTreeMap<u64, f64>>,
    /// Task and index of every decoded prompt.
    decoded: Vec<(usize, u64)>,
}

impl<'a> Found<'a> {
    fn new(reader: &Reader, asked: Asked<'a>, tasks: usize) -> Self {
        let layers = reader.model.config().layers as u32;
        Self {
            asked,
            states: asked.td.map(|td| States::new(td.layers.resolve(layers), &td.sites)),
            lens_layers: asked.lens.map_or(Vec::new(), |l| l.layers.resolve(layers)),
            lenses: Lenses::default(),
            right: vec![BTreeMap::new(); tasks],
            decoded: Vec::new(),
        }
    }

    /// One pass over some prompts, and the answers to those that are asked.
    fn look(&mut self, reader: &Reader, prompts: &Prompts<'_>, some: &[Prompt]) -> Result<(), ScienceError> {
        let among = |most: Option<u32>| -> Vec<usize> {
            (0..some.len()).filter(|&i| most.is_some_and(|most| some[i].index < u64::from(most))).collect()
        };
        let decoded = among(self.asked.td.map(|t| t.samples_per_task));
        let lensed = among(self.asked.lens.map(|l| l.samples_per_task));
        let answered = among(self.asked.icl);
        let of = |rows: &[usize]| rows.iter().map(|&i| (i, &some[i])).collect::<Vec<_>>();
        let mut for_td = self.states.as_ref().map(|s| s.capture(of(&decoded).into_iter())).transpose()?;
        let layers = self.lens_layers.iter().copied().collect();
        let mut for_lens = pass::capture(&layers, &[Site::X], PatchPositions::Last, of(&lensed).into_iter())?;
        let mut hook = Chain(vec![&mut for_lens]);
        if let Some(capture) = &mut for_td {
            hook.0.push(capture);
        }
        let begun = match answered.is_empty() {
            false => Some(pass::begin(&reader.model, some, &mut hook)?),
            // Nothing goes on from there.
            true => pass::look(&reader.model, some, PatchPositions::Last, &mut hook).map(|()| None)?,
        };
        if let (Some(states), Some(captured), false) = (&mut self.states, for_td, decoded.is_empty()) {
            states.add(captured)?;
            self.decoded.extend(decoded.iter().map(|&i| (some[i].series.task, some[i].index)));
        }
        if !lensed.is_empty() {
            self.look_through(reader, &of(&lensed), for_lens)?;
        }
        if let Some(mut begun) = begun {
            begun.keep(&answered)?;
            let asked: Vec<&Prompt> = answered.iter().map(|&i| &some[i]).collect();
            let right = answers::right(&reader.model, prompts, &asked, begun)?;
            asked.iter().zip(right).for_each(|(p, right)| {
                self.right[p.series.task].insert(p.index, f64::from(u8::from(right)));
            });
        }
        Ok(())
    }

    fn look_through(
        &mut self,
        reader: &Reader,
        prompts: &[(usize, &Prompt)],
        mut states: Capture,
    ) -> Result<(), ScienceError> {
        let wanted = |p: &Prompt| {
            let token = p.answer_tokens.first().copied()?;
            Some(Wanted { task: p.series.task, index: p.index, token })
        };
        // An answer without tokens has no first one; templates and tasks do not make such.
        let wanted: Vec<Wanted> = prompts.iter().filter_map(|(_, p)| wanted(p)).collect();
        for &layer in &self.lens_layers {
            let states = states.take(HookPoint::hidden(layer as usize))?;
            self.lenses.add(&reader.model, layer, &states, &wanted)?;
        }
        Ok(())
    }

    fn metrics(self, asked: Asked<'_>, names: &[String]) -> Metrics {
        let mut metrics = Metrics { lens: self.lenses.rows(names, asked.shots), ..Metrics::default() };
        for (name, right) in names.iter().zip(&self.right) {
            let right: Vec<f64> = right.values().copied().collect();
            metrics.icl.extend(Summary::of(&right).map(|s| accuracy(name, asked.shots, s)));
        }
        if let (Some(td), Some(states)) = (asked.td, self.states) {
            let mut order: Vec<usize> = (0..self.decoded.len()).collect();
            order.sort_by_key(|&i| self.decoded[i]);
            let labels: Vec<u32> = order.iter().map(|&i| self.decoded[i].0 as u32).collect();
            decodability(asked, td, &states.arranged(&order), &labels, names, &mut metrics);
        }
        metrics
    }
}

fn accuracy(task: &str, shots: u32, right: Summary) -> Icl {
    Icl {
        latent_task: task.to_owned(),
        shots,
        position: None,
        metric: IclMetric::Accuracy,
        value: right.mean,
        stderr: right.stderr,
        n: right.n,
    }
}

/// Adds TD, and pairwise TD where it is wanted.
fn decodability(
    asked: Asked<'_>,
    td: &TdPart,
    states: &States,
    labels: &[u32],
    names: &[String],
    metrics: &mut Metrics,
) {
    let decoder = Decoder::new(labels, names.len() as u32, td.k as usize, halves(asked.seed));
    for ((layer, site), points) in states.iter() {
        let neighbours = decoder.neighbours(points, points.len() / labels.len().max(1), td.pairs);
        let decoded = decoder.decode_by(&neighbours);
        metrics.td.extend(names.iter().zip(decoded).map(|(task, decoded)| Td {
            layer,
            site,
            latent_task: task.clone(),
            shots: asked.shots,
            k: td.k,
            n: td.samples_per_task,
            value: decoded.value,
            stderr: decoded.stderr,
        }));
        let pairs = if td.pairs { decoder.pairs(&neighbours) } else { Vec::new() };
        metrics.td_pairs.extend(pairs.into_iter().map(|(a, b, value)| TdPair {
            layer,
            site,
            latent_task_a: names[a as usize].clone(),
            latent_task_b: names[b as usize].clone(),
            shots: asked.shots,
            value,
        }));
    }
}
