//! Metric rows to and from their wire form.

use crate::{convert::BadMessage, pb};
use taskvec_model::metric::{Baseline, Icl, Intervention, Lens, Metrics, Td, TdBound, TdPair, TrainLoss};

fn all<A, B: From<A>>(rows: Vec<A>) -> Vec<B> {
    rows.into_iter().map(Into::into).collect()
}

fn try_all<A, B: TryFrom<A, Error = BadMessage>>(rows: Vec<A>) -> Result<Vec<B>, BadMessage> {
    rows.into_iter().map(TryInto::try_into).collect()
}

impl From<Metrics> for pb::Metrics {
    fn from(m: Metrics) -> Self {
        Self {
            train_loss: all(m.train_loss),
            icl: all(m.icl),
            baselines: all(m.baselines),
            td: all(m.td),
            td_bound: all(m.td_bound),
            td_pairs: all(m.td_pairs),
            interventions: all(m.interventions),
            lens: all(m.lens),
        }
    }
}

impl TryFrom<pb::Metrics> for Metrics {
    type Error = BadMessage;
    fn try_from(m: pb::Metrics) -> Result<Self, BadMessage> {
        Ok(Self {
            train_loss: all(m.train_loss),
            icl: try_all(m.icl)?,
            baselines: try_all(m.baselines)?,
            td: try_all(m.td)?,
            td_bound: all(m.td_bound),
            td_pairs: try_all(m.td_pairs)?,
            interventions: try_all(m.interventions)?,
            lens: all(m.lens),
        })
    }
}

/// Both directions for a row whose fields carry over as they are, or through the conversion of a name.
macro_rules! same_fields {
    ($ty:ident { $($field:ident),+ }) => {
        impl From<$ty> for pb::$ty {
            fn from(row: $ty) -> Self {
                Self { $($field: row.$field),+ }
            }
        }

        impl From<pb::$ty> for $ty {
            fn from(row: pb::$ty) -> Self {
                Self { $($field: row.$field),+ }
            }
        }
    };
    ($ty:ident { $($field:ident),+ } named $($name:ident),+) => {
        impl From<$ty> for pb::$ty {
            fn from(row: $ty) -> Self {
                Self { $($field: row.$field,)+ $($name: row.$name.as_str().to_owned()),+ }
            }
        }

        impl TryFrom<pb::$ty> for $ty {
            type Error = BadMessage;
            fn try_from(row: pb::$ty) -> Result<Self, BadMessage> {
                Ok(Self {
                    $($field: row.$field,)+
                    $($name: row.$name.parse().map_err(BadMessage::because)?),+
                })
            }
        }
    };
}

same_fields!(TrainLoss { step, loss, learning_rate, sequences_per_second });
same_fields!(TdBound { latent_task, shots, value });
same_fields!(Icl { latent_task, shots, position, value, stderr, n } named metric);
same_fields!(Baseline { latent_task, position, mse } named estimator);
same_fields!(Td { layer, latent_task, shots, k, n, value, stderr } named site);
same_fields!(TdPair { layer, latent_task_a, latent_task_b, shots, value } named site);
same_fields!(Intervention {
    layer, source_task, target_task, shots, baseline, patched, replicate, n
} named site, positions, mode, metric);
same_fields!(Lens { layer, latent_task, shots, accuracy, log_prob, rank, n });
