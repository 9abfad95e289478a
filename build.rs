//! Compiles `proto/` without protoc, and keeps the API's descriptor set for gRPC reflection.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let compile = |file: &str| -> Result<_, Box<dyn std::error::Error>> {
        Ok(protox::Compiler::new(["proto"])?
            .include_imports(true)
            .include_source_info(true)
            .open_files([file])?
            .file_descriptor_set())
    };
    let api = compile("thingspace/esim/v1/esim.proto")?;
    let stored = compile("gateway/storage/v1/storage.proto")?;
    // Reflection never shows the storage format.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("esim.binpb"), api.encode_to_vec())?;
    tonic_prost_build::configure().generate_default_stubs(false).compile_fds(api)?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(stored)?;
    Ok(())
}
