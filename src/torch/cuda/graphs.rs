//! CUDA graphs: work that is recorded once and launched as a whole.

use std::ptr;
use std::sync::Arc;

use super::error::{CudaError, checked};
use super::ffi::{RawGraph, RawPool};
use super::library::Cuda;
use super::streams::Stream;

/// Memory that graphs share which never run at the same time.
#[derive(Clone)]
pub struct GraphPool(Arc<Pool>);

struct Pool {
    cuda: Cuda,
    raw: *mut RawPool,
}

// SAFETY: interface.h allows calls from any thread, and no call of a pool changes it but that which frees it.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// Recorded work.
pub struct Graph {
    pool: GraphPool,
    raw: *mut RawGraph,
}

// SAFETY: interface.h allows calls from any thread.
unsafe impl Send for Graph {}

impl GraphPool {
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: Cuda, device: u32) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        let bridge = cuda.bridge();
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "pool_new", |error| unsafe { (bridge.pool_new)(device as i32, &raw mut raw, error) })?;
        Ok(GraphPool(Arc::new(Pool { cuda, raw })))
    }

    /// Records what `run` queues on `stream`, which does not run. Tensors that it makes keep their memory as long as
    /// the graph; a launch fills them.
    ///
    /// # Errors
    /// What `run` says, and work that cannot be recorded: waiting for the device, or reading its memory.
    pub fn record<T, E: From<CudaError>>(
        &self,
        stream: &Stream,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Graph, T), E> {
        let mut raw = ptr::null_mut();
        let bridge = self.0.cuda.bridge();
        // SAFETY: pool and stream are alive, the pointer valid for writes.
        checked(bridge, "graph_begin", |error| unsafe {
            (bridge.graph_begin)(self.0.raw, stream.raw(), &raw mut raw, error)
        })?;
        let graph = Graph { pool: self.clone(), raw };
        let result = stream.within(run);
        // The recording ends whatever `run` says.
        // SAFETY: the graph is alive.
        let ended = checked(bridge, "graph_end", |error| unsafe { (bridge.graph_end)(graph.raw, error) });
        let result = result??;
        ended?;
        Ok((graph, result))
    }
}

impl Graph {
    /// Queues the recorded work on a stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        let bridge = self.pool.0.cuda.bridge();
        // SAFETY: both are alive.
        checked(bridge, "graph_launch", |error| unsafe { (bridge.graph_launch)(self.raw, stream.raw(), error) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nothing else frees it, and its pool is still alive.
        unsafe { (self.pool.0.cuda.bridge().graph_free)(self.raw) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: nothing else frees it, and no graph of it is left.
        unsafe { (self.cuda.bridge().pool_free)(self.raw) };
    }
}
