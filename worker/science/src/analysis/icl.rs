//! ICL performance of a checkpoint: its error on held-out sequences.

use super::{held_out, in_batches, stats, widen};
use crate::{ScienceError, Sink, data::Sequences, model::Transformer};
use candle_core::Device;
use taskvec_model::{
    metric::{Icl, IclMetric, Metrics},
    spec::DataSpec,
};

/// Mean squared error of `network` by latent task and position, and averaged over positions, on `sequences` held-out
/// sequences drawn from the mixture. Standard errors are over sequences.
///
/// # Errors
/// [`ScienceError::Stopped`] when the sink asks for it; tensor errors, also where a prediction is not finite.
pub fn run(
    network: &Transformer,
    seed: u64,
    data: &DataSpec,
    sequences: u32,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(data) = data;
    let (mut basis, mut errors) = (Vec::new(), Vec::new());
    in_batches(u64::from(sequences), sink, |indices| {
        let batch = held_out(seed, data, indices);
        errors.extend(squared_errors(network, &batch)?);
        basis.extend(batch.basis);
        Ok(())
    })?;
    let names = data.latent_tasks();
    let row = |c: stats::Cell| Icl {
        latent_task: names[c.task].clone(),
        shots: data.examples - 1,
        position: c.position,
        metric: IclMetric::Mse,
        value: c.error.mean,
        stderr: c.error.stderr,
        n: c.error.n,
    };
    let cells = stats::by_task_and_position(data.bases, data.examples as usize, &basis, &errors);
    Ok(Metrics { icl: cells.into_iter().map(row).collect(), ..Metrics::default() })
}

/// (B, K), row-major.
fn squared_errors(network: &Transformer, batch: &Sequences) -> Result<Vec<f64>, ScienceError> {
    let predicted = network.forward(&batch.tokens(&Device::Cpu)?, None)?.flatten_all()?.to_vec1::<f32>()?;
    if predicted.iter().any(|p| !p.is_finite()) {
        return Err(candle_core::Error::Msg("the model's predictions are not finite".into()).into());
    }
    Ok(widen(&predicted).iter().zip(widen(&batch.y)).map(|(p, y)| (p - y) * (p - y)).collect())
}
