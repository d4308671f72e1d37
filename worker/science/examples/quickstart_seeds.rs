//! Does the phenomenon appear in every seed? `quickstart_seeds STEPS SEED…` trains the quickstart's model and prints, by
//! seed, its error on 20 000 held-out sequences at all positions and at the last, and the bounds to compare with.

mod common;

use common::{Configuration, Nowhere, QUICKSTART};
use taskvec_model::{metric::Estimator, spec::DataSpec};
use taskvec_science::{analysis, train::Trainer};

const SEQUENCES: u32 = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    taskvec_kernels::process::prepare();
    let numbers: Vec<u64> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let [steps, seeds @ ..] = &numbers[..] else { return Err("usage: quickstart_seeds STEPS SEED…".into()) };
    let mut configuration = Configuration::parse(QUICKSTART)?;
    configuration.train.steps = *steps;
    let Configuration { data, .. } = &configuration;
    let DataSpec::SparseLinear(mixture) = data;
    let last = Some(mixture.examples);
    for &seed in seeds {
        let mut trainer = Trainer::fresh(&configuration.whole_run(seed))?;
        let before = analysis::icl::run(&trainer.network()?, seed, data, SEQUENCES, &mut Nowhere)?.icl;
        for _ in 0..*steps {
            trainer.advance()?;
        }
        let after = analysis::icl::run(&trainer.network()?, seed, data, SEQUENCES, &mut Nowhere)?.icl;
        let error = |rows: &[taskvec_model::metric::Icl], position| {
            mean(rows.iter().filter(|r| r.position == position).map(|r| r.value))
        };
        let bounds = analysis::baselines::run(seed, data, SEQUENCES, None, &mut Nowhere)?.baselines;
        let bound = |estimator: Estimator, position| {
            mean(bounds.iter().filter(|b| b.estimator == estimator && b.position == position).map(|b| b.mse))
        };
        println!(
            "seed {seed}: all positions {:.3} → {:.3} (ridge {:.3}, mixture {:.3}); last {:.3} → {:.3} (ridge {:.3})",
            error(&before, None),
            error(&after, None),
            bound(Estimator::Ridge, None),
            bound(Estimator::BayesMixture, None),
            error(&before, last),
            error(&after, last),
            bound(Estimator::Ridge, last),
        );
    }
    Ok(())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}
