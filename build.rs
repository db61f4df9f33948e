//! Generates the protocol, builds the C++ bridge and, where the program runs without installing, tells it where libtorch is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

/// The protocol's files with a service; the others are imported.
const FILES: [&str; 2] = ["explain.proto", "model.proto"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    protocol(&root);
    let libtorch = libtorch(&root);
    bridge(&libtorch);
    run_path(&libtorch);
}

/// Messages, services and clients from `proto/`, and the descriptors for reflection. No `protoc` is needed.
fn protocol(root: &Path) {
    let directory = root.join("proto");
    println!("cargo:rerun-if-changed=proto");
    let files = FILES.map(|file| directory.join("camlens/v1").join(file));
    let descriptors = protox::compile(files, [&directory]).unwrap_or_else(|error| panic!("{error:?}"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("camlens.bin"), descriptors.encode_to_vec()).expect("OUT_DIR can be written to");
    tonic_prost_build::configure()
        // Frames and maps are large: they are shared, never copied.
        .bytes(".camlens.v1")
        // An answer is much larger than what else a stream may say.
        .boxed(".camlens.v1.ExplainStreamResponse.message.explanation")
        .compile_fds(descriptors)
        .expect("the protocol compiles");
}

/// The libtorch to build against: `LIBTORCH`, which .cargo/config.toml sets to `.libtorch` when nobody else does.
fn libtorch(root: &Path) -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let given = env::var_os("LIBTORCH").map_or_else(|| root.join(".libtorch"), PathBuf::from);
    let libtorch = if given.is_absolute() { given } else { root.join(given) };
    if !libtorch.join("include").is_dir() {
        panic!("no libtorch in {}: run deploy/libtorch first, or set LIBTORCH", libtorch.display());
    }
    libtorch
}

fn bridge(libtorch: &Path) {
    let include = libtorch.join("include");
    for file in ["bridge.h", "bridge.cpp", "kernels.h", "kernels.cpp", "status.h"] {
        println!("cargo:rerun-if-changed=src/torch/{file}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-isystem")
        .flag(include.to_str().expect("a path in UTF-8"))
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").to_str().expect("a path in UTF-8"))
        .warnings(true)
        .extra_warnings(true)
        .files(["src/torch/bridge.cpp", "src/torch/kernels.cpp"])
        .compile("camlens_bridge");
}

/// Where the dynamic linker looks: beside an installed binary (`bin/camlens`, `lib/*.so`), then where it was built.
fn run_path(libtorch: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
}
