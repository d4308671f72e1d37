//! `taskvec model forward`.

use crate::{
    args::{Float, ModelCommand, ModelForward},
    error::CliError,
};
use taskvec_model::spec::FloatType;

pub fn run(command: ModelCommand) -> Result<(), CliError> {
    let ModelCommand::Forward(ModelForward { model, revision, adapter, input, output, dtype }) = command;
    let dtype = match dtype {
        Float::F32 => FloatType::F32,
        Float::Bf16 => FloatType::Bf16,
        Float::F16 => FloatType::F16,
    };
    taskvec_science::forward_file(&model, revision.as_deref(), adapter.as_deref(), &input, &output, dtype)?;
    println!("{}", output.display());
    Ok(())
}
