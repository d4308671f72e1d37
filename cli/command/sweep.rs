//! `taskvec sweep …`.

use crate::{
    args::{Global, Id, SweepCommand},
    client::Client,
    error::CliError,
    files::{self, Noting},
    live,
    output::{self, Format},
};
use serde_json::json;
use std::{path::Path, time::Duration};
use taskvec_model::{job::JobKind, plan::Plan, table::Table};
use taskvec_sweep::{Estimate, Files, Limits};
use taskvec_wire::pb::{self, control_sweep_request::Action};
use tonic::Code;

pub async fn run(global: &Global, args: SweepCommand) -> Result<(), CliError> {
    if let SweepCommand::Plan { file, out } = &args {
        return plan(global, file, out.format).await;
    }
    // A bad file is refused before a server is looked for.
    let text = match &args {
        SweepCommand::Submit { file, .. } => Some(read(file)?.0),
        _ => None,
    };
    let client = Client::connect(global).await?;
    let done = dispatch(&client, args, text.unwrap_or_default()).await;
    client.close().await.and(done)
}

async fn dispatch(client: &Client, args: SweepCommand, text: String) -> Result<(), CliError> {
    match args {
        SweepCommand::Plan { .. } => Ok(()),
        SweepCommand::Submit { file, wait, priority, out } => {
            let reply = submit(client, &file, text, priority).await?;
            let facts = [
                ("sweep_id", json!(reply.sweep_id)),
                ("runs", json!(reply.runs)),
                ("jobs", json!(reply.jobs)),
                ("cached", json!(reply.cached)),
            ];
            output::print_facts(&facts, out.format).map_err(CliError::io("stdout"))?;
            if wait { live::watch(client, reply.sweep_id).await.map(|_| ()) } else { Ok(()) }
        }
        SweepCommand::List(args) => super::list(client, "sweeps", args).await,
        SweepCommand::Status { id, out } => status(client, id, out.format).await,
        SweepCommand::Pause { id } => control(client, id, Action::Pause(pb::Empty {}), "is paused").await,
        SweepCommand::Resume { id } => control(client, id, Action::Resume(pb::Empty {}), "goes on").await,
        SweepCommand::Cancel { id } => control(client, id, Action::Cancel(pb::Empty {}), "is cancelled").await,
        SweepCommand::Retry { id } => control(client, id, Action::Retry(pb::Empty {}), "will be tried again").await,
        SweepCommand::Priority { id, priority } => {
            control(client, id, Action::Priority(priority), "has its new priority").await
        }
        SweepCommand::Wait { id } => {
            let sweep = client.sweep_id(id).await?;
            live::watch(client, sweep).await.map(|_| ())
        }
    }
}

/// Reads and validates a sweep file, so that a bad one is refused with all its faults before anything else happens. The
/// plan is made without a look at models and data.
pub fn read(file: &Path) -> Result<(String, Plan), CliError> {
    let text = std::fs::read_to_string(file).map_err(CliError::io(file))?;
    let plan = validated(file, &text)?;
    Ok((text, plan))
}

fn validated(file: &Path, text: &str) -> Result<Plan, CliError> {
    taskvec_sweep::plan(text, &file.display().to_string(), &Limits::default()).map_err(not_valid)
}

fn not_valid(faults: taskvec_sweep::Faults) -> CliError {
    CliError::Usage(format!("the sweep file is not valid\n{faults}"))
}

/// The plan with the models and data that are here; where some are not, the plan without a look at any, and what is
/// missing. What is here and cannot be used is a fault, as it would be at the server.
fn planned(file: &Path, text: &str, files: &dyn Files) -> Result<(Plan, Option<String>), CliError> {
    let blind = validated(file, text)?;
    let noting = Noting::new(files);
    let seen = taskvec_sweep::plan_with(text, &file.display().to_string(), &Limits::default(), &noting);
    match (seen, noting.absent()) {
        (Ok(plan), _) => Ok((plan, None)),
        (Err(_), Some(missing)) => Ok((blind, Some(missing))),
        (Err(faults), None) => Err(not_valid(faults)),
    }
}

/// How often a submission whose answer was lost is sent again, and the first pause; each is twice the one before.
const RESENDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Submits once, however often the connection breaks: the server knows the request again.
pub async fn submit(client: &Client, file: &Path, yaml: String, priority: i32) -> Result<pb::SubmitReply, CliError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| CliError::Failed(format!("the system gives no random numbers: {e}")))?;
    let request = pb::SubmitRequest { yaml, file: file.display().to_string(), priority, request: id.into() };
    let mut pauses = (0..RESENDS).map(|n| FIRST_PAUSE * 2u32.pow(n));
    loop {
        let status = match client.sweeps().submit(request.clone()).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => status,
        };
        let pause = pauses.next().filter(|_| matches!(status.code(), Code::Unavailable | Code::Unknown));
        let Some(pause) = pause else { return Err(client.fault(status)) };
        eprintln!("taskvec: the server's answer was lost ({}); asking again", status.message());
        tokio::time::sleep(pause).await;
    }
}

async fn control(client: &Client, id: Id, action: Action, outcome: &str) -> Result<(), CliError> {
    let sweep_id = client.sweep_id(id).await?;
    let request = pb::ControlSweepRequest { sweep_id, action: Some(action) };
    client.sweeps().control_sweep(request).await.map_err(|s| client.fault(s))?;
    println!("sweep {sweep_id} {outcome}");
    Ok(())
}

/// Validation and counting need no server; only cache hits do, and without one the plan says so. Models and data that
/// are not here are not looked at, and the plan says that too.
async fn plan(global: &Global, file: &Path, format: Format) -> Result<(), CliError> {
    let text = std::fs::read_to_string(file).map_err(CliError::io(file))?;
    let (plan, missing) = planned(file, &text, &*files::seen())?;
    let cached = cache_hits(global, file, text, plan.jobs.len()).await;
    let known = cached.as_ref().map_or_else(|_| vec![false; plan.jobs.len()], Clone::clone);
    let estimate = taskvec_sweep::estimate(&plan, &known);
    if format == Format::Json {
        let mut facts = estimate_facts(&estimate, cached.is_ok());
        facts.push(("files_seen", json!(missing.is_none())));
        return output::print_facts(&facts, format).map_err(CliError::io("stdout"));
    }
    output::print(&by_kind(&estimate, cached.is_ok()), format).map_err(CliError::io("stdout"))?;
    println!("\n{}", in_words(&plan, &estimate));
    if let Some(missing) = missing {
        println!("planned without a look at models and data, so their work is not counted ({missing})");
    }
    match cached {
        Ok(_) => Ok(()),
        Err(reason) => {
            println!("cache hits: unknown ({})", reason.to_string().lines().next().unwrap_or_default());
            Ok(())
        }
    }
}

/// GFLOP/s that one CPU core is taken to do: what small models reach with AVX-512. Only estimates depend on it.
const GFLOPS_PER_CORE: f64 = 80.0;

/// Jobs and work by kind; cache hits are empty where no server could say.
fn by_kind(estimate: &Estimate, cache_known: bool) -> Table {
    let columns = ["kind", "jobs", "cached", "gflop"];
    let row = |(kind, e): (&JobKind, &taskvec_sweep::KindEstimate)| {
        let cached = if cache_known { json!(e.cached) } else { json!(null) };
        vec![json!(kind.as_str()), json!(e.jobs), cached, json!((e.flops / 1e9).round())]
    };
    Table { columns: columns.map(str::to_owned).to_vec(), rows: estimate.kinds.iter().map(row).collect() }
}

fn in_words(plan: &Plan, estimate: &Estimate) -> String {
    let seconds = estimate.seconds(GFLOPS_PER_CORE);
    let megabytes = |bytes: f64| bytes / 1e6;
    let memory = match estimate.memory_bytes {
        0.0 => String::new(),
        bytes => format!("; the largest job takes about {:.0} MB of memory", megabytes(bytes).ceil()),
    };
    format!(
        "sweep “{}”: {} runs, {} jobs; about {} of one core at {GFLOPS_PER_CORE} GFLOP/s; {:.1} MB of weights, {:.1} MB of \
         resume states before gc{memory}",
        plan.name,
        estimate.runs,
        estimate.jobs(),
        live::span(seconds),
        megabytes(estimate.weight_bytes),
        megabytes(estimate.resume_bytes),
    )
}

fn estimate_facts(estimate: &Estimate, cache_known: bool) -> Vec<(&'static str, serde_json::Value)> {
    vec![
        ("runs", json!(estimate.runs)),
        ("jobs", json!(estimate.jobs())),
        ("cached", if cache_known { json!(estimate.cached()) } else { json!(null) }),
        ("flops", json!(estimate.flops())),
        ("weight_bytes", json!(estimate.weight_bytes)),
        ("resume_bytes", json!(estimate.resume_bytes)),
        ("memory_bytes", json!(estimate.memory_bytes)),
    ]
}

/// `jobs`: how many there are when the sweep is planned here.
async fn cache_hits(global: &Global, file: &Path, yaml: String, jobs: usize) -> Result<Vec<bool>, CliError> {
    let client = Client::connect(global).await?;
    let request = pb::PlanRequest { yaml, file: file.display().to_string() };
    let reply = client.sweeps().plan(request).await.map_err(|s| client.fault(s));
    client.close().await?;
    let cached = reply?.into_inner().cached;
    if cached.len() != jobs {
        let message = format!("the server sees other models than are here, and plans {} jobs", cached.len());
        return Err(CliError::Failed(message));
    }
    Ok(cached)
}

async fn status(client: &Client, id: Id, format: Format) -> Result<(), CliError> {
    let sweep_id = client.sweep_id(id).await?;
    let mut stream =
        client.sweeps().watch(pb::SweepRequest { sweep_id }).await.map_err(|s| client.fault(s))?.into_inner();
    let now = stream.message().await.map_err(|s| client.fault(s))?;
    let now = now.ok_or_else(|| CliError::Failed("the server ended the answer early".to_owned()))?;
    output::print(&live::as_table(&now), format).map_err(CliError::io("stdout"))?;
    if format == Format::Table {
        println!("\n{}", live::headline(&now));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::spec::{Family, ModelIdentity};
    use taskvec_sweep::Unseen;

    /// A model of four layers at `models/tiny`.
    #[derive(Debug)]
    struct Tiny;

    impl Files for Tiny {
        fn model(&self, path: &str, _: Option<&str>) -> Result<ModelIdentity, Unseen> {
            let digest = taskvec_model::id::Digest([1; 32]);
            let (arch, heads, vocabulary) = ("llama".to_owned(), 2, 100);
            let (layers, width, parameters, context, step) = (4, 8, 4000, None, 0);
            let tiny = ModelIdentity { digest, arch, layers, width, heads, vocabulary, parameters, context, step };
            match path {
                "models/tiny" => Ok(tiny),
                "models/broken" => Err(Unseen::Unusable(format!("{path} is cut short"))),
                _ => Err(Unseen::Absent(format!("{path} is not here"))),
            }
        }

        fn revisions(&self, _: &str, _: &str) -> Result<Vec<String>, Unseen> {
            Ok(Vec::new())
        }

        fn data(&self, family: &Family) -> Result<Family, Unseen> {
            Ok(family.clone())
        }
    }

    fn evaluate(path: &str, layer: u32) -> String {
        format!(
            "version: 1\nname: w\nkind: evaluate\nmodel: {{ path: {path} }}\ndata: {{ family: bitwise }}\n\
             analyses: [{{ kind: td, layers: [{layer}] }}]\n"
        )
    }

    #[test]
    fn a_plan_looks_at_models_that_are_here_and_says_which_are_not() {
        let file = Path::new("w.yaml");
        let (plan, missing) = planned(file, &evaluate("models/tiny", 4), &Tiny).unwrap();
        assert!(missing.is_none() && plan.jobs.iter().all(|job| job.flops > 0.0));
        let estimate = taskvec_sweep::estimate(&plan, &[]);
        assert_eq!(estimate.memory_bytes, 4.0 * 4000.0, "its parameters in f32");
        assert!(in_words(&plan, &estimate).ends_with("; the largest job takes about 1 MB of memory"));
        let (plan, missing) = planned(file, &evaluate("models/large", 40), &Tiny).unwrap();
        assert_eq!(missing.as_deref(), Some("models/large is not here"));
        assert_eq!((plan.jobs.len(), plan.jobs[0].flops), (3, 0.0));
        let error = planned(file, &evaluate("models/broken", 4), &Tiny).unwrap_err();
        assert!(error.to_string().contains("w.yaml:4:16: `model.path`: models/broken is cut short"), "{error}");
        // Also where something else is merely not here.
        let both = evaluate("models/large", 4) + "grid: { model.path: [models/large, models/broken] }\n";
        assert!(planned(file, &both, &Tiny).unwrap_err().to_string().contains("is cut short"));
        let error = planned(file, &evaluate("models/tiny", 40), &Tiny).unwrap_err();
        assert!(error.to_string().contains("there is no layer 40"), "{error}");
    }
}
