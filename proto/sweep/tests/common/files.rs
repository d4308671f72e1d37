//! A few models and data files that are only told of.

use taskvec_model::{
    id::Digest,
    spec::{Family, ModelIdentity},
};
use taskvec_sweep::{Files, Unseen};

/// `models/tiny` (llama, 4 layers), `models/mamba` (mamba2, 4 layers), `models/gpt2.gguf` (2 layers), `models/steps` (olmo,
/// 32 layers) with revisions `step0`, `step1000` and `step20000`, and `rows.csv`. `models/copy` is `models/tiny` in another
/// place.
#[derive(Debug)]
pub struct Told;

const STEPS: [u64; 3] = [0, 1000, 20_000];

fn identity(name: &str, arch: &str, layers: u32, width: u32, step: u64) -> ModelIdentity {
    let digest = Digest(*blake3::hash(name.as_bytes()).as_bytes());
    let (arch, parameters) = (arch.to_owned(), u64::from(layers) * 12 * u64::from(width).pow(2));
    ModelIdentity { digest, arch, layers, width, heads: 4, vocabulary: 100, parameters, context: Some(2048), step }
}

impl Files for Told {
    fn model(&self, path: &str, revision: Option<&str>) -> Result<ModelIdentity, Unseen> {
        match (path, revision) {
            ("models/tiny" | "models/copy", None) => Ok(identity("tiny", "llama", 4, 64, 0)),
            ("models/mamba", None) => Ok(identity("mamba", "mamba2", 4, 64, 0)),
            ("models/gpt2.gguf", None) => Ok(identity("gpt2", "gpt2", 2, 32, 0)),
            ("models/steps", Some(name)) => {
                let step = STEPS.into_iter().find(|s| name == format!("step{s}"));
                let missing = || format!("there is no folder models/steps/{name}; it has step0, step1000");
                let step = step.ok_or_else(|| Unseen::Absent(missing()))?;
                Ok(identity(name, "olmo", 32, 4096, step))
            }
            _ => Err(Unseen::Absent(format!("there is no folder or file {path}; place it there"))),
        }
    }

    fn revisions(&self, path: &str, pattern: &str) -> Result<Vec<String>, Unseen> {
        if path != "models/steps" {
            return Err(Unseen::Absent(format!("there is no folder {path}; place it there")));
        }
        let (head, _) = pattern.split_once('*').unwrap_or((pattern, ""));
        Ok(STEPS.iter().map(|s| format!("step{s}")).filter(|name| name.starts_with(head)).collect())
    }

    fn data(&self, family: &Family) -> Result<Family, Unseen> {
        let mut family = family.clone();
        let file = family.file_mut().ok_or(Unseen::Unusable("these tasks come from no file".to_owned()))?;
        if !["rows.csv", "copy.csv"].contains(&file.path.as_str()) {
            return Err(Unseen::Absent(format!("there is no file {}; place it there", file.path)));
        }
        file.digest = Some(Digest(*blake3::hash(b"rows").as_bytes()));
        Ok(family)
    }
}
