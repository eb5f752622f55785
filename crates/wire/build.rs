//! Compiles the .proto files without protoc: messages for `grpc::pb`, and the descriptors that server reflection answers with.

use prost::Message;
use std::{env, error::Error, fs, path::Path};

const FILES: [&str; 4] = ["grpc_service.proto", "health.proto", "reflection_v1.proto", "reflection_v1alpha.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut compiler = protox::Compiler::new([&folder])?;
    compiler.include_imports(true).include_source_info(false).open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(Path::new(&env::var("OUT_DIR")?).join("descriptors.binpb"), descriptors.encode_to_vec())?;
    // BTreeMap: empty ones cost nothing and answers come in one order. Bytes: fields are slices of the message.
    prost_build::Config::new().btree_map(["."]).bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
