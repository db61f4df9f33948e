//! Streams, events, page-locked memory and graphs, in this process.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use camlens::torch::cuda::{self, Cuda, CudaError, Event, GraphPool, Pinned, Stream, Timing};
use tch::{Device, Kind, Tensor};

use super::libraries;

/// CUDA, for one test at a time: they read what the device's memory holds.
pub fn cuda() -> (Cuda, MutexGuard<'static, ()>) {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cuda = CUDA.get_or_init(|| {
        let cuda = cuda::load(&[libraries().to_owned()]).expect("the fake device is loaded");
        cuda.configure(false, false).expect("options");
        cuda.prepare_kernels(&[0], None).expect("kernels");
        cuda
    });
    (*cuda, one)
}

fn ones(stream: &Stream, count: i64) -> Tensor {
    stream.within(|| Tensor::ones([count], (Kind::Float, Device::Cuda(0)))).expect("a stream")
}

fn to_host(cuda: Cuda, stream: &Stream, tensor: &Tensor) -> Vec<f32> {
    let pinned = Pinned::new(cuda, tensor.numel() * 4).expect("page-locked memory");
    let copied = Event::new(cuda, 0, Timing::Off).expect("an event");
    let to = pinned.first(tensor.numel() * 4).expect("bytes").view_dtype(Kind::Float);
    stream.copy(&to, tensor).expect("a copy");
    stream.record(&copied).expect("an event");
    pinned.read_after(&copied, tensor.numel()).expect("the copy is over").to_vec()
}

#[test]
fn a_graph_computes_on_what_its_input_holds_at_each_launch() {
    let (cuda, _one) = cuda();
    let stream = Stream::new(cuda, 0, 0).expect("a stream");
    let input = ones(&stream, 5);
    let pool = GraphPool::new(cuda, 0).expect("a pool");
    let (graph, doubled) =
        pool.record::<_, CudaError>(&stream, || Ok(&input * 2.0)).expect("elementwise work can be recorded");
    graph.launch(&stream).expect("a launch");
    assert_eq!(to_host(cuda, &stream, &doubled), [2.0; 5]);
    stream.within(|| drop(input.shallow_clone().fill_(3.0))).expect("a stream");
    graph.launch(&stream).expect("a launch");
    assert_eq!(to_host(cuda, &stream, &doubled), [6.0; 5]);
}

#[test]
fn work_that_reads_the_device_cannot_be_recorded() {
    let (cuda, _one) = cuda();
    let stream = Stream::new(cuda, 0, 0).expect("a stream");
    let input = ones(&stream, 3);
    let pool = GraphPool::new(cuda, 0).expect("a pool");
    let recorded = pool
        .record::<_, camlens::explain::ExplainError>(&stream, || Ok(input.f_sum(Kind::Float)?.f_double_value(&[])?));
    assert!(recorded.is_err());
    // The device goes on.
    cuda.check(0).expect("it works");
    assert_eq!(to_host(cuda, &stream, &input), [1.0; 3]);
}

#[test]
fn events_order_streams_and_measure_time() {
    let (cuda, _one) = cuda();
    let [first, second] = [0, 0].map(|priority| Stream::new(cuda, 0, priority).expect("a stream"));
    let [begun, made] = [(); 2].map(|()| Event::new(cuda, 0, Timing::Measured).expect("an event"));
    first.record(&begun).expect("an event");
    let tensor = ones(&first, 7);
    first.record(&made).expect("an event");
    second.wait_for(&made).expect("a wait");
    second.uses(&tensor).expect("a use");
    let sum = second.within(|| tensor.sum(Kind::Float)).expect("a stream");
    assert_eq!(to_host(cuda, &second, &sum), [7.0]);
    made.synchronize().expect("it is over");
    assert!(made.is_over().expect("it is over") && made.since(&begun).expect("both are over") >= 0.0);
}

#[test]
fn memory_is_read_and_given_back() {
    let (cuda, _one) = cuda();
    let before = cuda.memory(0).expect("figures");
    let tensor = Tensor::ones([1 << 20], (Kind::Float, Device::Cuda(0)));
    let with = cuda.memory(0).expect("figures");
    assert!(with.allocated_bytes >= before.allocated_bytes + (4 << 20) && with.total_bytes >= with.free_bytes);
    drop(tensor);
    cuda.release_memory(0).expect("it is given back");
    assert!(cuda.memory(0).expect("figures").allocated_bytes < with.allocated_bytes);
}
