//! Fetching from a hub on this machine, and what comes of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod fake;

use fake::{FakeHub, Faults, Files, Repository};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
};
use taskvec_hub::{Fetched, Hub, HubError, Name, Settings, Watch};
use taskvec_science::load;
use tempfile::TempDir;

const NAME: &str = "somebody/llama";

fn fixture(name: &str) -> Files {
    fake::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../science/tests/fixtures/language").join(name))
}

fn repository(revisions: &[(&str, Files)]) -> Repository {
    let revisions = revisions.iter().map(|(name, files)| ((*name).to_owned(), files.clone())).collect();
    Repository { revisions, gated: false }
}

/// A hub with one model of three shards, and an empty cache.
struct World {
    fake: FakeHub,
    cache: TempDir,
}

impl World {
    fn with(repository: Repository) -> Self {
        Self { fake: FakeHub::with(NAME, repository), cache: tempfile::tempdir().unwrap() }
    }

    fn of(files: Files) -> Self {
        Self::with(repository(&[("main", files)]))
    }

    fn hub(&self, token: Option<&str>) -> Hub {
        let (endpoint, cache) = (self.fake.endpoint(), self.cache.path().to_owned());
        Hub::new(Settings { endpoint, cache, token: token.map(str::to_owned) })
    }

    fn fetch(&self, revision: Option<&str>) -> Result<Fetched, HubError> {
        self.hub(None).fetch(&name(), revision, &mut ())
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join("models--somebody--llama")
    }

    /// Loads what is in the cache.
    fn load(&self, revision: Option<&str>) -> Result<usize, load::LoadError> {
        load::Files::find(self.root().to_str().unwrap(), revision).map(|files| files.config().layers)
    }

    /// How often the content of a file was asked for.
    fn downloads(&self, file: &str) -> usize {
        let stored = |path: &str| path.contains("/stored/") || !file.ends_with(".safetensors");
        let asked = self.fake.asked();
        asked
            .iter()
            .filter(|a| a.path.ends_with(file) && stored(&a.path) && a.range.as_deref() != Some("bytes=0-0"))
            .count()
    }
}

fn name() -> Name {
    NAME.parse().unwrap()
}

fn names(fetched: &Fetched) -> Vec<&str> {
    fetched.files.iter().map(|file| file.name.as_str()).collect()
}

/// The error must say all of these.
fn refused<T: std::fmt::Debug>(result: Result<T, HubError>, says: &[&str]) -> HubError {
    let error = result.expect_err("is refused");
    for part in says {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    error
}

#[test]
fn what_was_fetched_loads_and_is_not_fetched_twice() {
    let mut files = fixture("llama_tied");
    files.insert("README.md".to_owned(), b"about it".to_vec());
    let world = World::of(files.clone());
    let first = world.fetch(None).unwrap();
    assert_eq!(
        names(&first),
        [
            "model.safetensors.index.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "config.json"
        ]
    );
    assert!(first.files.iter().all(|file| file.is_new && file.bytes == files[&file.name].len() as u64));
    assert_eq!((first.revision.as_str(), &first.commit), ("main", &fake::commit(&files)));
    assert_eq!((world.load(None).unwrap(), world.load(Some(&first.commit)).unwrap()), (2, 2));
    for file in &first.files {
        assert_eq!(std::fs::read(first.folder.join(&file.name)).unwrap(), files[&file.name]);
    }
    let again = world.fetch(Some("main")).unwrap();
    assert!(again.files.iter().all(|file| !file.is_new) && again.folder == first.folder);
    assert_eq!(world.downloads("model-00002-of-00003.safetensors"), 1);
}

/// What `huggingface_hub` writes: `refs/NAME` with the commit, and links from `snapshots/COMMIT` to `blobs/DIGEST`.
#[test]
fn the_cache_is_laid_out_as_that_of_huggingfaces_tools() {
    let world = World::of(fixture("llama"));
    let fetched = world.fetch(None).unwrap();
    assert_eq!(std::fs::read_to_string(world.root().join("refs/main")).unwrap(), fetched.commit);
    assert_eq!(fetched.folder, world.root().join("snapshots").join(&fetched.commit));
    let link = std::fs::read_link(fetched.folder.join("model.safetensors")).unwrap();
    let digest = link.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!((link, digest.len()), (Path::new("../../blobs").join(&digest), 64));
    assert_eq!(std::fs::read_dir(world.root().join("refs")).unwrap().count(), 1, "none for the commit");
}

#[test]
fn revisions_are_fetched_by_name_and_found_by_pattern() {
    let revisions = [
        ("main", fixture("llama")),
        ("step1000", fixture("llama_tied")),
        ("step20", fixture("olmo")),
        ("x/y", fixture("gemma2")),
    ];
    let world = World::with(repository(&revisions));
    let hub = world.hub(None);
    assert_eq!(hub.matching(&name(), "step*").unwrap(), ["step1000", "step20"]);
    for revision in ["step1000", "step20", "x/y"] {
        world.fetch(Some(revision)).unwrap();
    }
    assert_eq!(load::revisions(world.root().to_str().unwrap(), "step*").unwrap(), ["step20", "step1000"]);
    assert_eq!((world.load(Some("step1000")).unwrap(), world.load(Some("x/y")).unwrap()), (2, 3));
    assert!(world.load(None).is_err(), "main was not fetched");
    refused(hub.matching(&name(), "stage*"), &["matches `stage*`", "`main`, `step1000`, `step20`, `x/y`"]);
    refused(world.fetch(Some("step7")), &["no revision `step7`", "`step1000`"]);
    refused(world.fetch(Some("../x")), &["`../x` is not the name of a revision"]);
}

#[test]
fn what_the_hub_refuses_is_explained_and_tokens_stay_secret() {
    let world = World::with(Repository { gated: true, ..repository(&[("main", fixture("llama"))]) });
    refused(world.fetch(None), &["does not show `somebody/llama` (status 401)", "accept the terms", "HF_TOKEN"]);
    let other = world.hub(Some("hf_secret")).fetch(&"somebody/else".parse().unwrap(), None, &mut ());
    let error = refused(other, &["has no model `somebody/else`"]);
    assert!(!error.to_string().contains("hf_secret") && !error.is_passing());
    world.hub(Some("hf_secret")).fetch(&name(), None, &mut ()).unwrap();
    assert_eq!(world.load(None).unwrap(), 3);
    let asked = world.fake.asked();
    assert!(asked.iter().any(|a| a.token.as_deref() == Some("Bearer hf_secret")));
    let elsewhere: Vec<_> = asked.iter().filter(|a| a.path.starts_with("/stored/")).collect();
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|a| a.token.is_none()), "another host gets no token");
}

#[test]
fn where_there_is_no_network_that_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings { endpoint: format!("http://{closed}"), cache: cache.path().to_owned(), token: None };
    let error = refused(Hub::new(settings).fetch(&name(), None, &mut ()), &["cannot be reached", "refused"]);
    assert!(error.is_passing());
    let world = World::of(fixture("llama"));
    world.fake.faults(Faults { status: Some(503), ..Faults::default() });
    assert!(refused(world.fetch(None), &["cannot answer at the moment (status 503)"]).is_passing());
}

#[test]
fn repositories_without_a_readable_model_are_refused_before_anything_is_fetched() {
    let mut files = fixture("llama");
    let weights = files.remove("model.safetensors").unwrap();
    files.insert("model.Q4_1.gguf".to_owned(), weights);
    let world = World::of(files.clone());
    refused(world.fetch(None), &["`somebody/llama` cannot be read here", "`model.Q4_1.gguf`", "hf download"]);
    files.remove("config.json");
    refused(World::of(files).fetch(None), &["no config.json"]);
    assert!(world.load(None).is_err() && world.downloads("config.json") == 0);
}

#[test]
fn names_in_an_index_cannot_leave_the_folder() {
    let mut files = fixture("llama_tied");
    let index = serde_json::json!({"weight_map": {"w": "../../x.safetensors"}}).to_string();
    files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
    files.insert("../../x.safetensors".to_owned(), b"payload".to_vec());
    let world = World::of(files);
    refused(world.fetch(None), &["lists `../../x.safetensors`", "plain name"]);
    assert!(!world.root().join("x.safetensors").exists() && world.load(None).is_err());
    assert!(world.fake.asked().iter().all(|a| !a.path.contains("x.safetensors")), "it was not even asked for");
    let mut files = fixture("llama_tied");
    files.remove("model-00002-of-00003.safetensors");
    refused(World::of(files).fetch(None), &["lists model-00002-of-00003.safetensors, which it does not have"]);
}

const BROKEN: &str = "model-00002-of-00003.safetensors";

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let world = World::of(fixture("llama_tied"));
    world.fake.faults(Faults { breaks: Some((BROKEN.to_owned(), 1000, 3)), ..Faults::default() });
    world.fetch(None).unwrap();
    assert_eq!(world.load(None).unwrap(), 2);
    let asked = world.fake.asked();
    let stored = asked.iter().filter(|a| a.path.contains("/stored/") && a.path.ends_with(BROKEN));
    let ranges: Vec<_> = stored.map(|a| a.range.clone().unwrap()).collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=1000-", "bytes=2000-", "bytes=3000-"]);
}

#[test]
fn what_was_broken_off_does_not_load_and_goes_on_later() {
    let world = World::of(fixture("llama_tied"));
    // No byte more comes: another connection does not help.
    world.fake.faults(Faults { breaks: Some((BROKEN.to_owned(), 0, u32::MAX)), ..Faults::default() });
    assert!(refused(world.fetch(None), &["broke off"]).is_passing());
    assert!(world.load(None).is_err());
    let commit = fake::commit(&fixture("llama_tied"));
    assert!(world.load(Some(&commit)).unwrap_err().to_string().contains("no config.json"));
    world.fake.faults(Faults::default());
    world.fetch(None).unwrap();
    assert_eq!(world.load(None).unwrap(), 2);
    assert_eq!(world.downloads("model-00001-of-00003.safetensors"), 1, "what was whole was kept");
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let world = World::of(fixture("llama_tied"));
    let breaks = Some((BROKEN.to_owned(), 1000, 1));
    world.fake.faults(Faults { breaks, no_ranges: true, ..Faults::default() });
    world.fetch(None).unwrap();
    assert_eq!(world.load(None).unwrap(), 2);
}

#[test]
fn other_bytes_than_announced_are_thrown_away() {
    let world = World::of(fixture("llama"));
    world.fake.faults(Faults { damaged: Some("model.safetensors".to_owned()), ..Faults::default() });
    refused(world.fetch(None), &["model.safetensors came with another content", "SHA-256"]);
    assert!(world.load(None).is_err());
    world.fake.faults(Faults::default());
    world.fetch(None).unwrap();
    assert_eq!(world.load(None).unwrap(), 3);
}

/// Stops once so many bytes have come.
struct StopAt(u64, Cell<u64>);

impl Watch for StopAt {
    fn begins(&mut self, _: &str, _: u64, _: u64) {}

    fn received(&mut self, bytes: u64) {
        self.1.set(self.1.get() + bytes);
    }

    fn waits(&mut self) {}

    fn stops(&self) -> bool {
        self.1.get() >= self.0
    }
}

#[test]
fn whoever_watches_can_stop_it() {
    let world = World::of(fixture("llama_tied"));
    let mut watch = StopAt(5000, Cell::new(0));
    refused(world.hub(None).fetch(&name(), None, &mut watch), &["stopped on request"]);
    assert!(world.load(None).is_err());
    world.fetch(None).unwrap();
    assert_eq!(world.load(None).unwrap(), 2);
}

/// Tells when it has to wait.
struct Waits(std::sync::mpsc::Sender<()>);

impl Watch for Waits {
    fn begins(&mut self, _: &str, _: u64, _: u64) {}

    fn received(&mut self, _: u64) {}

    fn waits(&mut self) {
        self.0.send(()).unwrap();
    }

    fn stops(&self) -> bool {
        false
    }
}

#[test]
fn one_process_at_a_time_fetches_a_model() {
    let world = World::of(fixture("llama"));
    let locks = world.cache.path().join(".locks");
    std::fs::create_dir_all(&locks).unwrap();
    let other = std::fs::File::create(locks.join("models--somebody--llama.taskvec.lock")).unwrap();
    other.lock().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let hub = world.hub(None);
    let fetching = std::thread::spawn(move || hub.fetch(&name(), None, &mut Waits(tell)).map(drop));
    told.recv().unwrap();
    assert!(world.fake.asked().is_empty(), "the hub is asked by one only");
    other.unlock().unwrap();
    fetching.join().unwrap().unwrap();
    assert_eq!(world.load(None).unwrap(), 3);
}

#[test]
fn text_that_is_too_large_is_not_fetched() {
    let mut files = fixture("llama");
    files.insert("config.json".to_owned(), vec![b' '; (32 << 20) + 1]);
    let world = World::of(files);
    refused(world.fetch(None), &["cannot be read here: its config.json has 33554433 bytes"]);
    assert_eq!(world.downloads("config.json"), 0);
}

/// Small files lie behind a redirect of the hub to itself, as do renamed repositories.
#[test]
fn redirects_within_the_hub_are_followed() {
    let world = World::with(Repository { gated: true, ..repository(&[("main", fixture("llama"))]) });
    world.fake.state.lock().unwrap().renamed = Some(("somebody/old-name".to_owned(), NAME.to_owned()));
    let old = "somebody/old-name".parse().unwrap();
    let fetched = world.hub(Some("hf_secret")).fetch(&old, None, &mut ()).unwrap();
    assert_eq!(std::fs::read(fetched.folder.join("config.json")).unwrap(), fixture("llama")["config.json"]);
}

#[test]
fn a_branch_that_moved_is_followed_and_the_old_commit_stays() {
    let world = World::of(fixture("llama"));
    let old = world.fetch(None).unwrap();
    let moved = repository(&[("main", fixture("llama_tied"))]);
    world.fake.state.lock().unwrap().models.insert(NAME.to_owned(), moved);
    let new = world.fetch(None).unwrap();
    assert_ne!(old.commit, new.commit);
    assert_eq!((world.load(None).unwrap(), world.load(Some(&old.commit)).unwrap()), (2, 3));
}
