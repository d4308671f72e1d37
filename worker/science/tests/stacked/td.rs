//! Task decodability with states and neighbours from a machine, against that of the CPU.

use crate::{
    common::Memory,
    on_machines,
    runs::{Own, SHAPES, Shape, bits, runs},
};
use candle_core::{Device, Tensor};
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::{
    metric::Td,
    spec::{At, DataSpec, Layers, Site, TdSpec},
};
use taskvec_science::{
    analysis::{knn, td},
    data::{Bases, generate},
    engine::stacked::states::{Place, Reading, Readings, States},
    hook::HookPoint,
    model::Transformer,
    rng::{Purpose, Stream},
};

on_machines!(
    states_and_neighbours_are_those_of_the_cpu,
    decodability_is_that_of_the_cpu,
    identical_states_tie_as_on_the_cpu,
    only_what_is_asked_for_is_reported_and_with_the_same_numbers,
    what_is_not_finite_is_refused,
);

/// How far two orders of summing may lead states apart, relative to the largest: as for a step of training, on its way
/// forward.
fn rounding(shape: Shape) -> f64 {
    let longest = (2 * shape.examples).max(4 * shape.width);
    let sums = 8 * shape.layers + 2;
    f64::from(longest * sums).sqrt() * f64::from(f32::EPSILON) / 2.0
}

/// The states of some sequences at all layers and a token: (layer) of n × d.
fn on_the_cpu(network: &Transformer, tokens: &Tensor, token: usize) -> Vec<Vec<f32>> {
    let mut states = vec![Vec::new(); network.sizes().layers + 1];
    let mut read = |point: HookPoint, x: &Tensor| {
        for (layer, states) in states.iter_mut().enumerate() {
            if point == HookPoint::hidden(layer) {
                *states = x.narrow(1, token, 1)?.flatten_all()?.to_vec1::<f32>()?;
            }
        }
        Ok(None)
    };
    network.forward(tokens, Some(&mut read)).unwrap();
    states
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Two readings, the second of them of the last token alone, all at once and in parts of which the last overlaps another.
fn states_and_neighbours_are_those_of_the_cpu(machine: &impl Machine) {
    for (shape, n) in SHAPES.into_iter().zip([7, 40, 2, 33]) {
        let own = &runs(shape)[0];
        let network = shape.network(own);
        let (last, layers) = (2 * shape.examples as usize - 1, shape.layers as usize);
        let sequences = |from: u64| generate(&own.data, own.stream(1), from..from + n as u64, Bases::InTurn);
        let reading = |from: u64, places| {
            let tokens = sequences(from).tokens(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            Reading { tokens, places }
        };
        let all = [last - 1, last].into_iter();
        let all = all.flat_map(|token| (0..=layers).map(move |layer| Place { layer, token })).collect();
        let readings = [reading(0, all), reading(9, vec![Place { layer: layers - 1, token: last }])];
        let of = |from, token| on_the_cpu(&network, &sequences(from).tokens(&Device::Cpu).unwrap(), token);
        let mut want = [of(0, last - 1), of(0, last)].concat();
        want.push(of(9, last).swap_remove(layers - 1));
        let dim = shape.width as usize;
        // Three sequences of a part, and all.
        let three = 3 * 12 * dim * (last + 1) * size_of::<f32>();
        for memory in [three, usize::MAX] {
            let common = Readings { sequences: n, nearest: 5, memory };
            let states = States::of(machine, &network, &readings, common).unwrap();
            assert!(states.finite().unwrap());
            let (values, neighbours) = (states.values().unwrap(), states.neighbours().unwrap());
            assert_eq!((values.len(), neighbours.len()), (want.len(), want.len()));
            for ((got, near), want) in values.iter().zip(neighbours).zip(&want) {
                let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert_eq!(got.len(), want.len());
                assert!(f64::from(apart) <= rounding(shape) * f64::from(largest), "{shape:?}: off by {apart}");
                assert_eq!(near, knn::neighbours(&widen(got), dim, 5), "{shape:?}");
            }
        }
    }
}

fn spec(layers: Layers, sites: &[Site], samples_per_task: u32) -> TdSpec {
    TdSpec { layers, sites: sites.to_vec(), k: 5, samples_per_task, at: At::All }
}

/// Sites that sequences of such a length have.
fn sites(shape: Shape) -> &'static [Site] {
    if shape.examples > 1 { &Site::ALL } else { &[Site::X, Site::S] }
}

fn both(machine: &impl Machine, network: &Transformer, own: &Own, spec: &TdSpec) -> [Vec<Td>; 2] {
    let data = DataSpec::SparseLinear(own.data.clone());
    let (mut ours, mut theirs) = (Memory::default(), Memory::default());
    let rows = [
        td::run_on(machine, network, own.seed, &data, spec, &mut ours).unwrap(),
        td::run(network, own.seed, &data, spec, &mut theirs).unwrap(),
    ];
    let end = |sink: &Memory| sink.progress.last().map(|progress| (progress.done, progress.total));
    assert_eq!(end(&ours), end(&theirs));
    assert!(rows.iter().all(|metrics| metrics.rows() == metrics.td.len()));
    rows.map(|metrics| metrics.td)
}

/// For each task the points whose vote rounding may change: those two of whose neighbours have other labels, and distances
/// that are as close as the roundings of three states may move them. No point where all states are the same number for number.
fn uncertain(states: &[f32], dim: usize, tasks: usize, rounding: f64) -> Vec<usize> {
    let mut counts = vec![0; tasks];
    let points: Vec<&[f32]> = states.chunks_exact(dim).collect();
    if points.iter().all(|point| bits(point) == bits(points[0])) {
        return counts;
    }
    let largest = states.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    // A distance is moved by its two ends.
    let moved = 2.0 * rounding * f64::from(largest) * (dim as f64).sqrt();
    for (i, a) in points.iter().enumerate() {
        let distance = |b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let others = (0..points.len()).filter(|&j| j != i);
        let mut others: Vec<(f64, usize)> = others.map(|j| (distance(points[j]), j % tasks)).collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Of those that are close to each other one after the other, any may come first.
        let close = others.windows(2).scan(others[0].1, |first, pair| {
            let together = pair[1].0 - pair[0].0 <= 2.0 * moved;
            let differs = together && pair[1].1 != *first;
            *first = if together { *first } else { pair[1].1 };
            Some(differs)
        });
        counts[i % tasks] += usize::from(close.into_iter().any(|close| close));
    }
    counts
}

/// Rows are the same but for what rounding may change: one sequence of a task for each uncertain point. Values of halves
/// change by that many of half as many sequences, and their deviation by no more than the root of their mean square.
fn agree([ours, theirs]: &[Vec<Td>; 2], mut uncertain: impl FnMut(&Td) -> usize) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        let points = uncertain(theirs) as f64;
        let (n, half) = (f64::from(theirs.n), f64::from(theirs.n / 2));
        let stderr = points / half.max(1.0) * (half / (n - half)).sqrt() * (40.0f64 / 39.0).sqrt();
        assert!(
            (ours.value - theirs.value).abs() <= points / n + 1e-12,
            "{ours:?}, not {theirs:?}: {points} uncertain"
        );
        assert!((ours.stderr - theirs.stderr).abs() <= stderr + 1e-12, "{ours:?}, not {theirs:?}: {points} uncertain");
        let same = Td { value: theirs.value, stderr: theirs.stderr, ..ours.clone() };
        assert_eq!(&same, theirs);
    }
}

/// Every shape with every mixture of its own: more and fewer neighbours than a point has, one task, both ways to lay out y.
fn decodability_is_that_of_the_cpu(machine: &impl Machine) {
    let (mut all, mut certain, mut equal) = (0, 0, 0);
    for shape in SHAPES {
        for (own, samples) in runs(shape).iter().zip([41, 17, 9]) {
            let network = shape.network(own);
            let rows = both(machine, &network, own, &spec(Layers::All, sites(shape), samples));
            let tasks = own.data.bases as usize;
            assert_eq!(rows[0].len(), (shape.layers as usize + 1) * sites(shape).len() * tasks);
            let states = StatesOf::new(&network, own, samples);
            let dim = shape.width as usize;
            agree(&rows, |row| {
                let of_tasks = uncertain(&states.at(row), dim, tasks, rounding(shape));
                let task = own.data.latent_tasks().iter().position(|name| *name == row.latent_task).unwrap();
                certain += usize::from(of_tasks[task] == 0);
                of_tasks[task]
            });
            all += rows[0].len();
            equal += rows[0].iter().zip(&rows[1]).filter(|(ours, theirs)| ours == theirs).count();
        }
    }
    println!("of {all} rows {certain} leave nothing to rounding, and {equal} are equal");
    assert!(2 * certain > all, "the test says little: {certain} of {all} rows are certain");
}

/// The CPU's states of the sequences of task decodability.
struct StatesOf {
    /// By site and layer.
    x: Vec<Vec<f32>>,
    y: Vec<Vec<f32>>,
    s: Vec<Vec<f32>>,
}

impl StatesOf {
    fn new(network: &Transformer, own: &Own, samples: u32) -> Self {
        let n = u64::from(samples * own.data.bases);
        let stream = |purpose| Stream { seed: own.seed, purpose, step: 0 };
        let mut sequences = generate(&own.data, stream(Purpose::Td), 0..n, Bases::InTurn);
        let last_x = 2 * own.data.examples as usize - 2;
        let tokens = sequences.tokens(&Device::Cpu).unwrap();
        let [x, y] = [last_x, last_x.saturating_sub(1)].map(|token| on_the_cpu(network, &tokens, token));
        let mut query = vec![0.0; own.data.dim as usize];
        stream(Purpose::Query).at(0).normals(&mut query);
        for x in sequences.x.chunks_exact_mut(own.data.examples as usize * query.len()) {
            let from = x.len() - query.len();
            x[from..].iter_mut().zip(&query).for_each(|(x, q)| *x = *q as f32);
        }
        let s = on_the_cpu(network, &sequences.tokens(&Device::Cpu).unwrap(), last_x);
        Self { x, y, s }
    }

    fn at(&self, row: &Td) -> Vec<f32> {
        let of_site = match row.site {
            Site::X => &self.x,
            Site::Y => &self.y,
            Site::S => &self.s,
        };
        of_site[row.layer as usize].clone()
    }
}

/// Where the query is shared, what enters the first block is the same for all sequences.
fn identical_states_tie_as_on_the_cpu(machine: &impl Machine) {
    let shape = SHAPES[1];
    for own in runs(shape) {
        let network = shape.network(&own);
        let [ours, theirs] = both(machine, &network, &own, &spec(Layers::List(vec![0]), &[Site::S], 23));
        assert_eq!(ours, theirs);
    }
}

fn only_what_is_asked_for_is_reported_and_with_the_same_numbers(machine: &impl Machine) {
    let shape = SHAPES[3];
    let own = &runs(shape)[2];
    let network = shape.network(own);
    let run = |layers, sites: &[Site], samples| both(machine, &network, own, &spec(layers, sites, samples));
    let [all, _] = run(Layers::All, &Site::ALL, 6);
    let [some, _] = run(Layers::List(vec![2, 0]), &[Site::Y, Site::S], 6);
    let wanted = |row: &&Td| [0, 2].contains(&row.layer) && row.site != Site::X;
    assert_eq!(some, all.iter().filter(wanted).cloned().collect::<Vec<_>>());
    // Nothing to read, and nothing to compare with.
    let [none, _] = run(Layers::All, &[], 6);
    assert!(none.is_empty());
    let single = &runs(shape)[1];
    let [ours, theirs] = both(machine, &shape.network(single), single, &spec(Layers::All, &Site::ALL, 1));
    assert_eq!(ours, theirs);
}

fn what_is_not_finite_is_refused(machine: &impl Machine) {
    let shape = SHAPES[0];
    let own = &runs(shape)[0];
    let network = shape.network(own);
    let (data, mut sink) = (DataSpec::SparseLinear(own.data.clone()), Memory::default());
    for factor in [f64::NAN, 1e38] {
        let wild = network.map(|t| t.affine(factor, 0.0)).unwrap();
        let spec = spec(Layers::All, &[Site::X], 4);
        let ours = td::run_on(machine, &wild, own.seed, &data, &spec, &mut sink).unwrap_err().to_string();
        assert_eq!(ours, td::run(&wild, own.seed, &data, &spec, &mut sink).unwrap_err().to_string());
        assert!(ours.contains("not finite"), "{ours}");
    }
}
