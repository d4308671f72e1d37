//! Every CUDA source compiles for the oldest and the newest architecture that we ship for, on any machine that has NVRTC,
//! which needs no GPU.

use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use taskvec_kernels::cuda::{OPTIONS, SOURCES};

/// The A100; the H100 and H200, and by its PTX whatever is newer.
const ARCHITECTURES: [(&str, &str); 2] = [("compute_80", "sm_80"), ("compute_90", "sm_90")];

/// Libraries of NVRTC, the one that the other loads first.
const LIBRARIES: [&str; 2] = ["libnvrtc-builtins.so", "libnvrtc.so"];

/// Where CUDA may be: what `make nvrtc` installs, and the usual places.
fn homes() -> Vec<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cuda/nvidia/cu13");
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.chain([fetched, "/usr/local/cuda".into()]).collect()
}

/// Loads NVRTC from a place where the system's loader would not look, for good: whoever asks for it by name then gets it.
fn load(home: &Path) -> bool {
    let folder = ["lib64", "lib"].map(|lib| home.join(lib)).into_iter().find(|lib| lib.is_dir());
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return false };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    LIBRARIES.iter().all(|library| {
        let named = |file: &&PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(library));
        files.iter().find(named).is_some_and(|file| {
            // SAFETY: NVIDIA's library, whose initialisers only set up itself. It is never unloaded.
            unsafe { libloading::Library::new(file) }.map(std::mem::forget).is_ok()
        })
    })
}

fn nvrtc_is_here() -> bool {
    // SAFETY: asks whether the library can be loaded.
    let found = || unsafe { cudarc::nvrtc::sys::is_culib_present() };
    found() || (homes().iter().any(|home| load(home)) && found())
}

fn ptxas() -> Option<PathBuf> {
    homes().into_iter().map(|home| home.join("bin/ptxas")).find(|program| program.is_file())
}

#[test]
fn every_file_is_a_source_and_every_kernel_is_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let files = std::fs::read_dir(folder).expect("the folder of sources").flatten().map(|entry| entry.path());
    let cuda = files.filter(|file| file.extension().is_some_and(|e| e == "cu"));
    let mut names: Vec<String> = cuda.map(|f| f.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, SOURCES.map(|source| source.name));
    for source in SOURCES {
        let text = source.text();
        assert!(!text.contains("#include"), "{} includes what NVRTC has not", source.name);
        assert!(source.kernels().count() > 0 && source.kernels().count() == text.matches("__global__").count());
    }
}

#[test]
fn every_source_compiles_for_every_architecture() {
    if !nvrtc_is_here() {
        eprintln!(
            "\nSKIPPED: CUDA kernels are not compiled, since there is no NVRTC. `make nvrtc` puts it into target/cuda \
             (pip install --target target/cuda nvidia-cuda-nvrtc==13.0.88); it needs no GPU.\n"
        );
        return;
    }
    let ptxas = ptxas();
    for source in SOURCES {
        for (virtual_, real) in ARCHITECTURES {
            let options = CompileOptions {
                arch: Some(virtual_),
                name: Some(format!("{}.cu", source.name)),
                options: OPTIONS.map(str::to_owned).to_vec(),
                ..Default::default()
            };
            let ptx = match compile_ptx_with_opts(source.text(), options) {
                Ok(ptx) => ptx.to_src(),
                Err(CompileError::CompileError { log, .. }) => {
                    panic!("{} does not compile for {virtual_}:\n{}", source.name, log.to_string_lossy())
                }
                Err(other) => panic!("{}: NVRTC fails: {other:?}", source.name),
            };
            let entries: Vec<&str> = ptx.lines().filter_map(|line| line.split_once(".entry ").map(|l| l.1)).collect();
            assert_eq!(entries.len(), source.kernels().count(), "{}: {entries:?}", source.name);
            for name in source.kernels() {
                assert!(entries.iter().any(|entry| entry.trim_end_matches('(') == name), "{name} has lost its name");
            }
            if let Some(ptxas) = &ptxas {
                assemble(ptxas, source.name, real, &ptx);
            }
        }
    }
    if ptxas.is_none() {
        eprintln!("\nNOT CHECKED: registers of CUDA kernels, since there is no ptxas (`make nvrtc` brings it)\n");
    }
}

/// Machine code arises from the PTX, and no kernel spills registers to memory.
fn assemble(ptxas: &Path, name: &str, architecture: &str, ptx: &str) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{architecture}.ptx"));
    std::fs::write(&file, ptx).expect("the PTX is written");
    let out = Command::new(ptxas)
        .args(["-v", "-arch", architecture, "-o", "/dev/null"])
        .arg(&file)
        .output()
        .expect("ptxas runs");
    let log = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name}: ptxas fails for {architecture}:\n{log}");
    println!("{name} for {architecture}\n{log}");
    let spills = log.lines().filter(|line| line.contains("spill stores") && !line.contains(" 0 bytes spill stores"));
    assert_eq!(spills.collect::<Vec<_>>(), Vec::<&str>::new(), "{name} spills registers on {architecture}");
}
