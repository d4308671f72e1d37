//! Every CUDA source compiles for the oldest and the newest architecture that we ship for, on any machine that has NVRTC,
//! which needs no GPU; and the PTX that is part of the program is theirs.
//!
//! `make ptx` (with `UPDATE_PTX=1`, this test) writes `worker/kernels/ptx`.
// There NVRTC is what the program was linked with, and is not looked for.
#![cfg(not(feature = "candle-cuda"))]

use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use taskvec_kernels::cuda::{OPTIONS, SOURCES, Source};

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

/// Not by `eprintln!`, which is hidden where the test passes.
fn say(text: std::fmt::Arguments<'_>) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("\n{text}\n")).expect("somewhere to say it");
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
fn shipped_ptx_is_of_the_sources_as_they_are() {
    if updating() {
        return;
    }
    for source in SOURCES {
        let (name, ptx) = (source.name, source.ptx());
        let belongs = ptx.starts_with(&format!("// {name} {} ", digest(&source)));
        assert!(
            belongs,
            "worker/kernels/ptx/{name}.ptx is not of {name}.cu as it is: run `make ptx` and commit what it writes"
        );
        assert_eq!(entries(ptx), source.kernels().count(), "{name}");
        assert!(ptx.contains("\n.target sm_80\n") && ptx.contains(&format!("\n{VERSION}\n")), "{name}");
        // What says how it is rounded is not contracted by the driver.
        let arithmetic = |word: &&str| {
            let (operation, kind) = word.split_once('.').unwrap_or_default();
            let floats = kind.split('.').any(|part| part == "f32" || part == "f64");
            floats && ["add", "sub", "mul", "mad", "fma", "div", "rcp", "sqrt"].contains(&operation)
        };
        let loose = |word: &&str| !word.contains(".rn.");
        assert_eq!(ptx.split_whitespace().filter(arithmetic).find(loose), None, "{name}: may be rounded otherwise");
    }
}

#[test]
fn every_source_compiles_for_every_architecture() {
    if !nvrtc_is_here() {
        assert!(!updating(), "PTX is made by NVRTC, which is not here: `make nvrtc` brings it");
        say(format_args!(
            "SKIPPED: CUDA kernels are not compiled, since there is no NVRTC. `make nvrtc` puts it into target/cuda \
             (pip install --target target/cuda nvidia-cuda-nvrtc==13.0.88); it needs no GPU."
        ));
        return;
    }
    let ptxas = ptxas();
    for source in SOURCES {
        for (virtual_, real) in ARCHITECTURES {
            let ptx = compiled(&source, virtual_);
            assert_eq!(entries(&ptx), source.kernels().count(), "{}", source.name);
            for name in source.kernels() {
                assert!(ptx.contains(&format!(".entry {name}(\n")), "{name} has lost its name");
            }
            if virtual_ == SHIPPED {
                assert_shipped(&source, &ptx);
            }
            // Before it is written it is that of another text, or empty.
            if let Some(ptxas) = ptxas.as_deref().filter(|_| !updating()) {
                assemble(ptxas, source.name, real, source.ptx());
            }
        }
    }
    if ptxas.is_none() {
        say(format_args!("NOT CHECKED: registers of CUDA kernels, since there is no ptxas (`make nvrtc` brings it)"));
    }
}

fn compiled(source: &Source, architecture: &'static str) -> String {
    let options = CompileOptions {
        arch: Some(architecture),
        name: Some(format!("{}.cu", source.name)),
        options: OPTIONS.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    match compile_ptx_with_opts(source.text(), options) {
        Ok(ptx) => ptx.to_src(),
        Err(CompileError::CompileError { log, .. }) => {
            panic!("{} does not compile for {architecture}:\n{}", source.name, log.to_string_lossy())
        }
        Err(other) => panic!("{}: NVRTC fails: {other:?}", source.name),
    }
}

fn entries(ptx: &str) -> usize {
    ptx.lines().filter(|line| line.contains(".entry ")).count()
}

/// The architecture that PTX is shipped for.
const SHIPPED: &str = "compute_80";
/// The oldest version of PTX that knows sm_80: drivers from CUDA 11.0 on take it. NVRTC writes its own version, whatever of
/// it is used; ptxas, which refuses what a version does not have, is asked below.
const VERSION: &str = ".version 7.0";

fn updating() -> bool {
    std::env::var_os("UPDATE_PTX").is_some()
}

/// Of all that PTX is made of.
fn digest(source: &Source) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&source.text(), SHIPPED, VERSION].into_iter().chain(OPTIONS) {
        hasher.update(part.as_bytes()).update(&[0]);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// NVRTC's version, as it writes it: V13.0.88.
fn version(ptx: &str) -> &str {
    let line = ptx.lines().find(|line| line.starts_with("// Cuda compilation tools"));
    line.and_then(|line| line.rsplit(' ').next()).expect("NVRTC says which version it is")
}

/// PTX as it is shipped: without comments and white space, for old drivers too, and with a line that says what it is of.
fn shipped(source: &Source, ptx: &str) -> String {
    let mut out = format!("// {} {} {SHIPPED} NVRTC {}\n", source.name, digest(source), version(ptx));
    for line in ptx.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        if !line.is_empty() {
            out.push_str(if line.starts_with(".version ") { VERSION } else { line });
            out.push('\n');
        }
    }
    out
}

/// What is part of the program is what the compiler gives, or becomes it where that is asked for.
fn assert_shipped(source: &Source, ptx: &str) {
    let (name, now) = (source.name, shipped(source, ptx));
    if updating() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("ptx/{name}.ptx"));
        return std::fs::write(file, now).expect("the PTX is written");
    }
    let made_by = source.ptx().lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
    if made_by != version(ptx) {
        say(format_args!("NOT CHECKED: {name}.ptx was made by NVRTC {made_by}, and here is {}", version(ptx)));
        return;
    }
    assert!(
        source.ptx() == now,
        "{name}.ptx is not what NVRTC makes of {name}.cu: run `make ptx` and commit what it writes"
    );
}

/// Machine code arises from the PTX that is shipped, and no kernel spills registers to memory.
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
