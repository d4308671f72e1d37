//! Generates the gRPC code from the proto files into OUT_DIR; protox needs no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../taskvec/v1/taskvec.proto");
    let files = protox::compile(["taskvec/v1/taskvec.proto"], [".."])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
