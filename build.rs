//! Generates the protocol's types, compiles the C++ of src/torch, links libtorch into the target folder, so that the
//! program runs from there, and records what was built.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;

/// The protocol's files that define a service; they import the others.
const FILES: [&str; 3] = ["explain.proto", "model.proto", "repository.proto"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    protocol(&root);
    onnx(&root);
    let libtorch = libtorch(&root);
    bridge(&libtorch);
    let has_cuda_bridge = cuda_bridge(&root, &libtorch);
    run_path(&libtorch);
    build_facts(&root, &libtorch, has_cuda_bridge);
}

/// The folder of what is built: `target/PROFILE`, or `target/TARGET/PROFILE`.
fn profile_folder() -> PathBuf {
    // OUT_DIR is PROFILE/build/camlens-HASH/out.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    out.ancestors().nth(3).expect("OUT_DIR lies in the target folder").to_owned()
}

/// Generates messages, services and clients from `proto/`, and the descriptors for reflection. Needs no `protoc`.
fn protocol(root: &Path) {
    let directory = root.join("proto");
    println!("cargo:rerun-if-changed=proto");
    let files = FILES.map(|file| directory.join("camlens/v1").join(file));
    let descriptors = protox::compile(files, [&directory]).unwrap_or_else(|error| panic!("{error:?}"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("camlens.bin"), descriptors.encode_to_vec()).expect("OUT_DIR can be written to");
    tonic_prost_build::configure()
        // Frames and maps are large: they are shared, not copied.
        .bytes(".camlens.v1")
        // An explanation is much larger than a stream's other messages.
        .boxed(".camlens.v1.ExplainStreamResponse.message.explanation")
        .compile_fds(descriptors)
        .expect("the protocol compiles");
}

/// Generates the messages of ONNX files. Weights stay parts of the bytes that a message is read from.
fn onnx(root: &Path) {
    let directory = root.join("src/model/import/onnx");
    println!("cargo:rerun-if-changed={}", directory.join("onnx.proto").display());
    let descriptors = protox::compile(["onnx.proto"], [&directory]).unwrap_or_else(|error| panic!("{error:?}"));
    tonic_prost_build::configure().bytes(".onnx").compile_fds(descriptors).expect("ONNX's messages compile");
}

/// The libtorch to build against: `LIBTORCH`, which .cargo/config.toml sets to `.libtorch` unless it is set already.
fn libtorch(root: &Path) -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let given = env::var_os("LIBTORCH").map_or_else(|| root.join(".libtorch"), PathBuf::from);
    let libtorch = if given.is_absolute() { given } else { root.join(given) };
    if !libtorch.join("include").is_dir() {
        panic!("no libtorch in {}: run deploy/libtorch first, or set LIBTORCH", libtorch.display());
    }
    libtorch
}

/// The C++ of src/torch, by folder: the bridge, the kernels' drivers and the threads once, the micro-kernels once per
/// instruction set.
fn bridge(libtorch: &Path) {
    let include = libtorch.join("include");
    for folder in ["src/torch", "src/torch/kernels", "src/torch/kernels/micro", "src/torch/threads"] {
        files(folder, &["cpp", "h"]).iter().for_each(|file| println!("cargo:rerun-if-changed={}", file.display()));
    }
    // A new C++ file comes with a declaration there.
    println!("cargo:rerun-if-changed=src/torch/ffi.rs");
    println!("cargo:rerun-if-changed=src/torch/kernels/ffi.rs");
    println!("cargo:rerun-if-changed=src/torch/threads/mod.rs");
    let with_libtorch = || {
        let mut build = cpp();
        for folder in [include.clone(), include.join("torch/csrc/api/include")] {
            build.flag("-isystem").flag(folder.to_str().expect("a path in UTF-8"));
        }
        build
    };
    // The bridge only forwards calls: more optimisation than this takes time and saves none.
    with_libtorch().opt_level(1).files(files("src/torch", &["cpp"])).compile("camlens_bridge");
    with_libtorch().opt_level(3).files(files("src/torch/kernels", &["cpp"])).compile("camlens_kernels");
    // After the kernels, which call it: the linker searches archives in this order.
    cpp().opt_level(3).files(files("src/torch/threads", &["cpp"])).compile("camlens_threads");
    micro_kernels("default", [4, 4, 6], &[]);
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        micro_kernels("avx2", [8, 2, 6], &["-mavx2", "-mfma", "-mprfchw"]);
        micro_kernels("avx512", [16, 2, 14], &["-mavx512f", "-mfma", "-mprfchw"]);
        micro_kernels("avx512_bf16", [16, 2, 14], &["-mavx512f", "-mavx512bw", "-mavx512bf16", "-mfma", "-mprfchw"]);
    }
}

/// `libcamlens_cuda.so`, beside the program: what camlens asks of CUDA. It is loaded when a CUDA device is asked for,
/// after `libtorch_cuda.so`, whose symbols it uses; so neither a CUDA library nor a driver is needed here, only the
/// headers that deploy/libtorch fetches. Without them it is not built. Returns whether it was.
fn cuda_bridge(root: &Path, libtorch: &Path) -> bool {
    let sources = ["src/torch/cuda", "src/torch/cuda/kernels"];
    for folder in sources {
        let extensions = ["cpp", "cuh", "h"];
        files(folder, &extensions).iter().for_each(|file| println!("cargo:rerun-if-changed={}", file.display()));
    }
    let headers = libtorch.join("cuda/include");
    println!("cargo:rerun-if-changed={}", headers.display());
    if !headers.join("cuda_runtime_api.h").exists() {
        println!("cargo:warning=no CUDA headers in {}: libcamlens_cuda.so is not built", headers.display());
        return false;
    }
    let kernels = root.join("src/torch/cuda/kernels");
    let mut build = cpp();
    for folder in [libtorch.join("include"), libtorch.join("include/torch/csrc/api/include"), headers] {
        build.flag("-isystem").flag(folder.to_str().expect("a path in UTF-8"));
    }
    let is_twin = |file: &PathBuf| file.file_name().is_some_and(|name| name == "twin.cpp");
    let objects = build
        .opt_level(1)
        .pic(true)
        .flag("-fvisibility=hidden")
        .define("CAMLENS_CUDA_KERNELS", format!("\"{}\"", kernels.display()).as_str())
        .files(sources.iter().flat_map(|folder| files(folder, &["cpp"])).filter(|file| !is_twin(file)))
        .compile_intermediates();
    let beside = profile_folder().join("libcamlens_cuda.so");
    let linked = build
        .get_compiler()
        .to_command()
        .args(["-shared", "-Wl,-soname,libcamlens_cuda.so", "-o"])
        .arg(&beside)
        .args(objects)
        .arg("-ldl")
        .status();
    assert!(linked.is_ok_and(|status| status.success()), "{} cannot be linked", beside.display());
    true
}

/// Compiles the micro-kernels for one instruction set. `width` is the number of floats in a vector register; the
/// accumulators of a matrix product are `rows` rows of `parts` vectors.
fn micro_kernels(instruction_set: &str, [width, parts, rows]: [usize; 3], flags: &[&str]) {
    let mut build = cpp();
    for flag in flags {
        build.flag(flag);
    }
    build
        // Multiply and add in one instruction; at full speed in a debug build too.
        .flag("-ffp-contract=fast")
        // GCC 12 warns of the "undefined" vectors in its own header.
        .flag_if_supported("-Wno-maybe-uninitialized")
        .flag_if_supported("-Wno-uninitialized")
        .opt_level(3)
        .define("CAMLENS_INSTRUCTION_SET", instruction_set)
        .define("CAMLENS_WIDTH", width.to_string().as_str())
        .define("CAMLENS_PARTS", parts.to_string().as_str())
        .define("CAMLENS_ROWS", rows.to_string().as_str())
        .files(files("src/torch/kernels/micro", &["cpp"]))
        .compile(&format!("camlens_micro_{instruction_set}"));
}

/// The files in a folder with one of these extensions, without those of its subfolders.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension)));
    files.sort();
    files
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(true).extra_warnings(true);
    build
}

/// Where the dynamic linker looks for libtorch and `libcamlens_cuda.so`: beside the program (`bin/camlens`,
/// `lib/*.so`). Links make the target folder look like that, so that no binary holds a path of this machine:
/// `target/lib` for `target/PROFILE/camlens`, `target/PROFILE/lib` for tests and benchmarks in `target/PROFILE/deps`.
fn run_path(libtorch: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:$ORIGIN");
    let profile = profile_folder();
    let target = profile.parent().expect("a profile's folder lies in the target folder");
    for folder in [target, &profile] {
        let link = folder.join("lib");
        // Another build may read the link now: it is replaced at once.
        let new = folder.join(format!("lib.{}", std::process::id()));
        symlink(libtorch.join("lib"), &new)
            .and_then(|()| fs::rename(&new, &link))
            .unwrap_or_else(|error| panic!("{} cannot be linked to libtorch: {error}", link.display()));
    }
}

/// What `camlens --version --verbose` says; src/build_facts.rs and src/main.rs read it.
fn build_facts(root: &Path, libtorch: &Path, has_cuda_bridge: bool) {
    let set = |name: &str, value: &str| println!("cargo:rustc-env=CAMLENS_BUILD_{name}={value}");
    let rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC")).arg("--version").output();
    let rustc = rustc.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    set("RUSTC", rustc.as_deref().map_or("unknown", str::trim));
    set("TARGET", &env::var("TARGET").expect("cargo sets TARGET"));
    set("LIBTORCH", libtorch_version(libtorch).as_deref().unwrap_or("unknown"));
    set("CUDA_BRIDGE", if has_cuda_bridge { "built" } else { "not built" });
    set("GIT_LOG", git_log(root).to_str().expect("a path in UTF-8"));
}

/// `2.11.0`, from libtorch's headers.
fn libtorch_version(libtorch: &Path) -> Option<String> {
    let header = fs::read_to_string(libtorch.join("include/torch/headeronly/version.h")).ok()?;
    let number = |part: &str| {
        let rest = header.split_once(&format!("#define TORCH_VERSION_{part} "))?.1;
        rest.lines().next()?.trim().parse::<u32>().ok()
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}

/// git's log of what was checked out, whose last line names the commit; an empty file where there is none, as in a
/// release's archive. src/main.rs reads it, and nothing else is compiled again when there is a new commit.
fn git_log(root: &Path) -> PathBuf {
    let git = root.join(".git");
    // In a worktree it is a file that names the folder.
    let named = fs::read_to_string(&git).ok();
    let folder = named.as_deref().and_then(|text| text.strip_prefix("gitdir: ")).map(|path| root.join(path.trim()));
    let log = folder.unwrap_or(git).join("logs/HEAD");
    if log.is_file() {
        return log;
    }
    let none = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("no_git_log");
    fs::write(&none, "").expect("OUT_DIR can be written to");
    none
}
