//! Takes the kernel object that `cargo xtask build` made, so that the daemon can embed it.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    let object = workspace.join("target/ebpf/mtls-ebpf.o");
    // A path that is not there makes cargo run this again every time, which is right: it may appear.
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.exists() {
        println!(
            "cargo::error=the kernel object target/ebpf/mtls-ebpf.o is missing: run `cargo xtask build` \
             first, which makes it (and installs its toolchain)"
        );
        return Ok(());
    }
    fs::copy(&object, PathBuf::from(env::var("OUT_DIR")?).join("mtls-ebpf.o"))?;
    Ok(())
}
