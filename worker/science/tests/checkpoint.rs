//! Checkpoint files: they say what they are, come back unchanged, and are refused when anything is wrong with them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::Device;
use common::{Folder, Memory};
use std::collections::HashMap;
use taskvec_model::job::{JobWork, Purpose};
use taskvec_science::{
    Inputs, Models, ScienceError,
    checkpoint::{self, Identity},
    execute,
};

fn run() -> Identity {
    Identity { seed: 3, model: common::model(), data: common::data() }
}

/// Files of a short run.
fn files() -> Memory {
    let Identity { seed, model, data } = run();
    let (train, checkpoints) = (common::train(3), common::checkpoints());
    let mut sink = Memory::default();
    let work = JobWork::Train { seed, model, data, train, checkpoints, from: 0, to: 3 };
    execute(&work, &Inputs::default(), &Models::default(), &mut sink).unwrap();
    sink
}

/// Splits a safetensors file into its JSON header and its data.
fn split(bytes: &[u8]) -> (serde_json::Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn join(header: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let mut json = serde_json::to_vec(header).unwrap();
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json, data].concat()
}

#[test]
fn a_file_comes_back_as_it_was_and_writes_the_same_bytes_again() {
    let folder = Folder::new();
    for ((step, purpose), bytes) in files().files {
        let path = folder.put("file", &bytes);
        let read = checkpoint::read_of(&path, &run(), purpose, &Device::Cpu).unwrap();
        assert_eq!((read.header.step, read.header.purpose, &read.header.run), (step, purpose, &run()));
        let moments = (purpose == Purpose::Resume).then_some(&read.moments[..]);
        let mut again = Vec::new();
        checkpoint::write(&mut again, &run(), step, &read.network, moments).unwrap();
        assert!(again == bytes, "{purpose} of step {step}");
        assert!(read.network.parameters().iter().all(|(_, p)| !p.is_variable()));
    }
}

#[test]
fn the_safetensors_crate_finds_what_the_documentation_promises() {
    let files = files().files;
    let tensors = |key| candle_core::safetensors::load_buffer(&files[key], &Device::Cpu).unwrap();
    let weights: HashMap<_, _> = tensors(&(3, Purpose::Weights));
    let resume = tensors(&(3, Purpose::Resume));
    assert_eq!(resume.len(), 3 * weights.len());
    assert_eq!(weights["h.1.mlp.c_fc.weight"].dims(), [16, 64]);
    assert_eq!(weights["h.0.attn.c_attn.weight"].dims(), [16, 48]);
    assert_eq!(weights["read_in.weight"].dims(), [16, 4]);
    assert_eq!(weights["read_out.weight"].dims(), [1, 16]);
    assert_eq!(weights["wpe.weight"].dims(), [8, 16]);
    for (name, tensor) in &weights {
        let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(tensor), flat(&resume[name]), "{name}");
        assert_eq!(tensor.dims(), resume[&format!("adam.v.{name}")].dims());
        assert!(flat(&resume[&format!("adam.m.{name}")]).iter().any(|v| *v != 0.0), "{name} was trained");
    }
}

#[test]
fn damage_is_named() {
    let folder = Folder::new();
    let good = files().files[&(3, Purpose::Weights)].clone();
    let (header, data) = split(&good);
    let changed = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut header = header.clone();
        change(header.as_object_mut().unwrap());
        join(&header, &data)
    };
    let renamed = |from: &'static str, to: &'static str| {
        changed(&move |h| {
            let info = h.remove(from).unwrap();
            h.insert(to.to_owned(), info);
        })
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good[..good.len() - 4].to_vec(), "not an intact safetensors file"),
        (good[..100].to_vec(), "not an intact safetensors file"),
        (b"hello".to_vec(), "not an intact safetensors file"),
        (vec![], "not an intact safetensors file"),
        (renamed("h.0.ln_1.bias", "h.0.ln_9.bias"), "lacks the tensor `h.0.ln_1.bias`"),
        (
            changed(&|h| h["ln_f.bias"]["shape"] = serde_json::json!([4, 4])),
            "has `ln_f.bias` as F32 [4, 4] where F32 [16] is wanted",
        ),
        (changed(&|h| h["ln_f.bias"]["dtype"] = "I32".into()), "has `ln_f.bias` as I32 [16] where F32 [16] is wanted"),
        (changed(&|h| drop(h.remove("__metadata__"))), "its metadata has no entry `taskvec`"),
        (changed(&|h| h["__metadata__"]["taskvec"] = "{}".into()), "has a header that cannot be read: missing field"),
        (
            changed(&|h| {
                let text = h["__metadata__"]["taskvec"].as_str().unwrap().replace("\"format\":1", "\"format\":2");
                h["__metadata__"]["taskvec"] = text.into();
            }),
            "has format 2; this program reads format 1",
        ),
        (
            changed(&|h| {
                let text = h["__metadata__"]["taskvec"].as_str().unwrap().replace("\"layers\":2", "\"layers\":1");
                h["__metadata__"]["taskvec"] = text.into();
            }),
            "has a tensor that does not belong in it: `h.1.attn.c_attn.bias`",
        ),
    ];
    for (bytes, says) in cases {
        let path = folder.put("damaged", &bytes);
        let error = checkpoint::read(&path, &Device::Cpu).err().unwrap_or_else(|| panic!("accepted: {says}"));
        let message = error.to_string();
        assert!(message.contains(says) && message.contains(path.to_str().unwrap()), "{message}\nshould say: {says}");
    }
    let missing = checkpoint::read(&folder.put("x", &[]).with_file_name("none"), &Device::Cpu).err().unwrap();
    assert!(missing.to_string().contains("cannot be read"), "{missing}");
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = Folder::new();
    let path = folder.put("weights", &files().files[&(3, Purpose::Weights)]);
    let refused = |run: Identity, purpose, says: &str| {
        let error = checkpoint::read_of(&path, &run, purpose, &Device::Cpu).err().unwrap();
        assert!(matches!(error, ScienceError::BadCheckpoint { .. }) && error.to_string().contains(says), "{error}");
    };
    refused(Identity { seed: 4, ..run() }, Purpose::Weights, "its seed is 3, wanted 4");
    refused(run(), Purpose::Resume, "its purpose is weights, wanted resume");
    let mut other = run();
    other.model.heads = 4;
    refused(other, Purpose::Weights, "its model is");
}

#[test]
fn a_failing_writer_fails_the_job() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let path = Folder::new();
    let path = path.put("weights", &files().files[&(0, Purpose::Weights)]);
    let read = checkpoint::read(&path, &Device::Cpu).unwrap();
    let error = checkpoint::write(&mut Full, &run(), 0, &read.network, None).unwrap_err();
    assert!(matches!(error, ScienceError::Write(_)), "{error}");
}
