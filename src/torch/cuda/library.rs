//! Finds and loads the libraries.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::error::{CudaError, checked};
use super::ffi::{self, Bridge};

/// libtorch's CUDA operators; and what camlens needs beyond them.
const TORCH: &str = "libtorch_cuda.so";
const BRIDGE: &str = "libcamlens_cuda.so";

/// CUDA, loaded. It stays so until the process ends.
#[derive(Clone, Copy)]
pub struct Cuda {
    bridge: &'static Bridge,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cuda({})", self.kind())
    }
}

// SAFETY: the table is constant, and interface.h allows calls from any thread.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

static LOADED: OnceLock<Result<Cuda, CudaError>> = OnceLock::new();

/// Loads the libraries from `folders`, or else from where the dynamic linker finds them. The first call decides; later
/// ones return the same. It must come before any gradient is computed: libtorch counts its devices then, once.
///
/// # Errors
/// A library that is missing, cannot be loaded, or belongs to another version of camlens.
pub fn load(folders: &[PathBuf]) -> Result<Cuda, CudaError> {
    LOADED.get_or_init(|| open(folders)).clone()
}

/// Tells the libraries that the process ends without exit handlers.
pub fn close() {
    if let Some(cuda) = loaded() {
        // SAFETY: no pointers are passed.
        unsafe { (cuda.bridge.closing)() };
    }
}

/// CUDA, if it has been loaded.
pub fn loaded() -> Option<Cuda> {
    LOADED.get()?.as_ref().ok().copied()
}

fn open(folders: &[PathBuf]) -> Result<Cuda, CudaError> {
    // Without the first one the second one cannot be loaded, unless it brings libtorch's operators itself.
    let torch = open_library(TORCH, folders);
    let (path, library) = match (open_library(BRIDGE, folders), torch) {
        (Ok(bridge), _) => bridge,
        (Err(CudaError::Unloadable { .. }), Err(torch @ CudaError::Missing { .. })) => return Err(torch),
        (Err(_), Err(torch @ CudaError::Unloadable { .. })) => return Err(torch),
        (Err(error), _) => return Err(error),
    };
    // SAFETY: the symbol has this type, interface.h.
    let table = unsafe {
        library.get::<unsafe extern "C" fn(u32) -> *const Bridge>(ffi::SYMBOL).map(|function| function(ffi::VERSION))
    };
    let table = table.map_err(|error| CudaError::Unloadable { path: path.clone(), problem: error.to_string() })?;
    // SAFETY: null, or a table of this version that lives as long as the library, which is never closed.
    let bridge = unsafe { table.as_ref() }
        .filter(|bridge| bridge.version == ffi::VERSION && bridge.bytes as usize == size_of::<Bridge>());
    std::mem::forget(library);
    bridge.map(|bridge| Cuda { bridge }).ok_or(CudaError::OtherVersion { path })
}

/// A library of the first folder that has it, or else of where the dynamic linker looks. Its symbols serve libraries
/// that are loaded later.
fn open_library(name: &'static str, folders: &[PathBuf]) -> Result<(PathBuf, Library), CudaError> {
    let of_folder = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    let path = of_folder.unwrap_or_else(|| PathBuf::from(name));
    // SAFETY: the initialisers of both libraries register operators and nothing else.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => Ok((path, library)),
        Err(error) => {
            let problem = error.to_string();
            let is_missing = problem.starts_with(&format!("{name}: cannot open shared object file"));
            Err(if is_missing {
                let given = folders.iter().map(|folder| format!("{}, nor in ", folder.display())).collect::<String>();
                let searched = format!("{given}the folders that the dynamic linker searches");
                CudaError::Missing { library: name, searched }
            } else {
                CudaError::Unloadable { path, problem }
            })
        }
    }
}

/// Whether the kernels of every device in use are prepared.
static HAS_KERNELS: AtomicBool = AtomicBool::new(false);

/// CUDA with its own kernels, if both are there.
pub(super) fn with_kernels() -> Option<Cuda> {
    loaded().filter(|_| HAS_KERNELS.load(Ordering::Relaxed))
}

impl Cuda {
    /// Compiles camlens's own kernels for the devices, or reads from `folder` what an earlier process has compiled, and
    /// keeps it there. Without them, ATen's operators compute the same, more slowly.
    ///
    /// # Errors
    /// A kernel that cannot be compiled: the run-time compiler is missing.
    pub fn prepare_kernels(self, devices: &[u32], folder: Option<&Path>) -> Result<(), CudaError> {
        let folder = folder.and_then(|folder| CString::new(folder.as_os_str().as_bytes()).ok());
        let folder = folder.as_ref().map_or(ptr::null(), |folder| folder.as_ptr());
        for &device in devices {
            // SAFETY: the folder is null or a text that lives until the call returns.
            checked(self.bridge, "kernels_prepare", |error| unsafe {
                (self.bridge.kernels_prepare)(device as i32, folder, error)
            })?;
        }
        HAS_KERNELS.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn bridge(self) -> &'static Bridge {
        self.bridge
    }

    /// `cuda`, or `fake` for the device that tests use.
    pub fn kind(self) -> &'static str {
        // SAFETY: a constant text, interface.h.
        unsafe { CStr::from_ptr(self.bridge.kind) }.to_str().unwrap_or("?")
    }
}
