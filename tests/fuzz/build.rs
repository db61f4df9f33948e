//! Tells the targets where libtorch is, as the repository's own build.rs does for its programs.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("../..");
    let libtorch = env::var_os("LIBTORCH").map_or_else(|| ".libtorch".into(), PathBuf::from);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", root.join(libtorch).join("lib").display());
}
