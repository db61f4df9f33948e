//! What plans take of a device's memory, and give back.

use std::path::Path;

use camlens::explain::{Explainer, MapKind, MapSet, Method, Mode};
use camlens::model::{LoadLimits, Model};
use camlens::plan::Never;
use tch::{Device, Kind, Tensor};

use super::streams::cuda;

#[test]
fn plans_that_are_evicted_leave_nothing_behind() {
    let (cuda, _one) = cuda();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance/dyn_hw/1");
    let model = Model::load("dyn_hw", 1, &path, &LoadLimits::default()).expect("the fixture loads");
    let mut explainer = Explainer::new(model, Device::Cuda(0));
    let mut explain = |mode: Mode, side: i64| {
        let method = Method { maps: MapSet::of(&MapKind::ALL), mode, ..Method::default() };
        let input = Tensor::arange(3 * side * side, (Kind::Float, Device::Cpu)).sin().view([1, 3, side, side]);
        let forward = explainer.forward(&method, &input, &Never).expect("the model takes it");
        forward.reverse(&[vec![0]], &Never).expect("it runs in reverse").fuse().expect("it has maps");
    };
    let mut taken = Vec::new();
    for round in 0..4 {
        for side in 32..57 {
            explain(Mode::Default, side);
            explain(Mode::Exact, side);
        }
        cuda.release_memory(0).expect("it is given back");
        let memory = cuda.memory(0).expect("figures");
        taken.push((memory.allocated_bytes, memory.reserved_bytes));
        assert_eq!(taken[0], taken[round], "200 plans, 16 of them kept: {taken:?}");
    }
}
