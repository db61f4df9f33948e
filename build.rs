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
    let files = fs::read_dir("src/torch").expect("src/torch is there").filter_map(|entry| Some(entry.ok()?.path()));
    for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "h" || ending == "cpp")) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    cpp()
        .flag("-isystem")
        .flag(include.to_str().expect("a path in UTF-8"))
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").to_str().expect("a path in UTF-8"))
        .files(
            [
                "bridge",
                "folded",
                "gates",
                "gemm",
                "gradients",
                "isa",
                "kernels",
                "linear",
                "pooling",
                "products",
                "sparse",
                "sparse_rows",
                "winograd",
            ]
            .map(|file| format!("src/torch/{file}.cpp")),
        )
        .compile("camlens_bridge");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        tiles("avx2", [8, 2, 6], &["-mavx2", "-mfma", "-mprfchw"], &OF_FLOATS);
        tiles("avx512", [16, 2, 14], &["-mavx512f", "-mfma", "-mprfchw"], &OF_FLOATS);
        tiles(
            "avx512_bf16",
            [16, 2, 14],
            &["-mavx512f", "-mavx512bw", "-mavx512bf16", "-mfma", "-mprfchw"],
            &OF_BFLOAT16,
        );
    } else {
        tiles("default", [4, 4, 6], &[], &OF_FLOATS);
    }
}

/// What is compiled for each instruction set with floats, and with bfloat16.
const OF_FLOATS: [&str; 4] = ["gate_tiles", "product_tiles", "sparse_tiles", "winograd_tiles"];
const OF_BFLOAT16: [&str; 3] = ["gate_tiles", "product_tiles", "sparse_tiles"];

/// The arithmetic of gates, of matrix products, dense and sparse, and of Winograd's convolutions for one instruction set: the floats of a
/// vector, and of how many vectors and rows the registers hold sums; see product_tiles.cpp.
fn tiles(instructions: &str, [width, parts, rows]: [usize; 3], flags: &[&str], files: &[&str]) {
    let mut build = cpp();
    for flag in flags {
        build.flag(flag);
    }
    build
        // Products and sums in one instruction, and at full speed in a build for debugging too.
        .flag("-ffp-contract=fast")
        // GCC 12 means its own header's "undefined" vectors.
        .flag_if_supported("-Wno-maybe-uninitialized")
        .flag_if_supported("-Wno-uninitialized")
        .opt_level(3)
        .define("CAMLENS_WIDTH", width.to_string().as_str())
        .define("CAMLENS_PARTS", parts.to_string().as_str())
        .define("CAMLENS_ROWS", rows.to_string().as_str())
        .define("CAMLENS_GATE_TILES", format!("camlens_gate_tiles_{instructions}").as_str())
        .define("CAMLENS_PRODUCT_TILES", format!("camlens_product_tiles_{instructions}").as_str())
        .define("CAMLENS_SPARSE_TILES", format!("camlens_sparse_tiles_{instructions}").as_str())
        .define("CAMLENS_WINOGRAD_TILES", format!("camlens_winograd_tiles_{instructions}").as_str())
        .files(files.iter().map(|file| format!("src/torch/{file}.cpp")))
        .compile(&format!("camlens_tiles_{instructions}"));
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(true).extra_warnings(true);
    build
}

/// Where the dynamic linker looks: beside an installed binary (`bin/camlens`, `lib/*.so`), then where it was built.
fn run_path(libtorch: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
}
