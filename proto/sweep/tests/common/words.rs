//! Two small sweeps on a language model, and ways to plan them.
#![allow(dead_code, reason = "each test uses a part of it")]

use crate::files::Told;
use taskvec_model::plan::Plan;
use taskvec_sweep::{Faults, Limits, plan, plan_with};

pub const EVALUATE: &str = "
version: 1
name: words
kind: evaluate
model: { path: models/tiny }
data: { family: bitwise }
analyses: [{ kind: td }, { kind: icl }, { kind: interventions, shots: [4] }]
";

pub const FINETUNE: &str = "
version: 1
name: tuned
kind: finetune
model: { path: models/tiny }
data: { family: bitwise, shots: [1, 4] }
lora: { layers: first:2 }
train: { steps: 100, batch: 8 }
checkpoints: { count: 3, resume_every: 60 }
analyses: [{ kind: icl }, { kind: td, at: last }, { kind: interventions, at: last, shots: [4] }]
";

pub fn blind(yaml: &str) -> Plan {
    plan(yaml, "test.yaml", &Limits::default()).unwrap_or_else(|faults| panic!("{faults}"))
}

pub fn seen(yaml: &str) -> Plan {
    try_seen(yaml).unwrap_or_else(|faults| panic!("{faults}"))
}

pub fn try_seen(yaml: &str) -> Result<Plan, Faults> {
    plan_with(yaml, "test.yaml", &Limits::default(), &Told)
}

/// `yaml` with some text replaced.
pub fn changed(yaml: &str, pairs: &[(&str, &str)]) -> Plan {
    let mut text = yaml.to_owned();
    for (from, to) in pairs {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    seen(&text)
}
