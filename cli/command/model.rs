//! `taskvec model …`.

use crate::{
    args::{Float, ModelCommand, ModelFetch, ModelForward},
    error::CliError,
    hub,
};
use indicatif::DecimalBytes;
use taskvec_model::spec::FloatType;

pub fn run(command: ModelCommand) -> Result<(), CliError> {
    match command {
        ModelCommand::Forward(args) => forward(args),
        ModelCommand::Fetch(args) => fetch(&args),
    }
}

fn forward(args: ModelForward) -> Result<(), CliError> {
    let ModelForward { model, revision, adapter, input, output, dtype } = args;
    let dtype = match dtype {
        Float::F32 => FloatType::F32,
        Float::Bf16 => FloatType::Bf16,
        Float::F16 => FloatType::F16,
    };
    taskvec_science::forward_file(&model, revision.as_deref(), adapter.as_deref(), &input, &output, dtype)?;
    println!("{}", output.display());
    Ok(())
}

fn fetch(ModelFetch { model, revision }: &ModelFetch) -> Result<(), CliError> {
    for fetched in hub::fetch(model, revision.as_deref())? {
        println!("{model} {}, commit {}:\n{}", fetched.revision, fetched.commit, fetched.folder.display());
        for file in fetched.files {
            let when = if file.is_new { "fetched" } else { "was here" };
            println!("  {}  {}, {when}", file.name, DecimalBytes(file.bytes));
        }
    }
    Ok(())
}
