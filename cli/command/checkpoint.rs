//! `taskvec checkpoint list|download|gc`.

use crate::{
    args::{CheckpointCommand, Global, Id},
    client::Client,
    error::CliError,
    output::{self, Format},
};
use serde_json::json;
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};
use taskvec_wire::pb;

pub async fn run(global: &Global, args: CheckpointCommand) -> Result<(), CliError> {
    let client = Client::connect(global).await?;
    let done = match args {
        CheckpointCommand::List(args) => super::list(&client, "checkpoints", args).await,
        CheckpointCommand::Download { id, file } => download(&client, id, file).await,
        CheckpointCommand::Gc { dry_run, out } => gc(&client, dry_run, out.format).await,
    };
    client.close().await.and(done)
}

async fn download(client: &Client, id: Id, file: Option<PathBuf>) -> Result<(), CliError> {
    let id = client.checkpoint_id(id).await?;
    let path = file.unwrap_or_else(|| format!("checkpoint-{id}.safetensors").into());
    let partial = path.with_extension("part");
    let done = stream(client, id, &partial).await;
    let kept = done.and_then(|bytes| keep(&partial, &path).map(|()| bytes));
    match kept {
        Ok(bytes) => {
            println!("{} ({bytes} bytes)", path.display());
            Ok(())
        }
        Err(e) => {
            // Nothing half-written is left; that removal itself fails is not worth hiding the error for.
            let _ = std::fs::remove_file(&partial);
            Err(e)
        }
    }
}

/// Puts what has come where it belongs: as a file, or its adapters into a folder.
fn keep(partial: &Path, path: &Path) -> Result<(), CliError> {
    let is_folder = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !is_folder {
        return std::fs::rename(partial, path).map_err(CliError::io(path));
    }
    taskvec_science::lora::peft::write_folder(partial, path)?;
    std::fs::remove_file(partial).map_err(CliError::io(partial))
}

/// Writes the chunks as they come, so memory does not grow with the checkpoint.
async fn stream(client: &Client, id: i64, path: &Path) -> Result<u64, CliError> {
    let request = pb::CheckpointRequest { checkpoint_id: id };
    let mut chunks = client.blobs().get_checkpoint(request).await.map_err(|s| client.fault(s))?.into_inner();
    let mut file = File::create(path).map_err(CliError::io(path))?;
    let mut bytes = 0;
    while let Some(chunk) = chunks.message().await.map_err(|s| client.fault(s))? {
        file.write_all(&chunk.data).map_err(CliError::io(path))?;
        bytes += chunk.data.len() as u64;
    }
    file.sync_all().map_err(CliError::io(path))?;
    Ok(bytes)
}

async fn gc(client: &Client, dry_run: bool, format: Format) -> Result<(), CliError> {
    let reply = client.admin().gc(pb::GcRequest { dry_run }).await.map_err(|s| client.fault(s))?.into_inner();
    let facts = [
        ("checkpoints", json!(reply.checkpoints)),
        ("chunks", json!(reply.chunks)),
        ("bytes", json!(reply.bytes)),
        ("removed", json!(!dry_run)),
    ];
    output::print_facts(&facts, format).map_err(CliError::io("stdout"))
}
