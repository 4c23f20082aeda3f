//! Compiles the `.proto` files with protox (no protoc binary) and keeps the descriptor set for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 3] =
    ["regent/types/v1/types.proto", "regent/agent/v1/agent.proto", "regent/coordinator/v1/coordinator.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Maps are ordered so that the same message always has the same bytes: a step's digest depends on it.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=regent");
    Ok(())
}
