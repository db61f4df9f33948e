use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::torch::relative_error;

#[test]
fn libtorchs_parallel_loops_run_on_the_pool() {
    assert!(runs_libtorch());
}

#[test]
fn two_threads_of_sixteen_each_compute_what_one_does() {
    let compute = |threads| {
        tch::set_num_threads(threads);
        let of =
            |size: &[i64]| Tensor::arange(size.iter().product::<i64>(), (Kind::Float, Device::Cpu)).sin().view(size);
        let (image, weight) = (of(&[1, 16, 60, 60]), of(&[16, 16, 3, 3]));
        let convolved = image.conv2d(&weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1).relu();
        let tokens = convolved.flatten(2, 3).squeeze_dim(0);
        let scores = tokens.matmul(&tokens.tr());
        (tokens.sum_dim_intlist(1, false, Kind::Float), (&scores / scores.max()).softmax(-1, Kind::Float), scores)
    };
    let threads: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn(move || {
                let _run = ModelRun::begin();
                let (sums, weights, scores) = compute(1);
                for _ in 0..20 {
                    let found = compute(16);
                    assert!(relative_error(&found.0, &sums) < 1e-5);
                    assert!(relative_error(&found.1, &weights) < 1e-5);
                    assert!(relative_error(&found.2, &scores) < 1e-5);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A function of OpenMP that is not defined here would run in libgomp, which knows nothing of these threads.
#[test]
fn every_function_of_openmp_that_libtorch_calls_is_defined_here() {
    let loaded = fs::read_to_string("/proc/self/maps").unwrap();
    let library = loaded.split_whitespace().find(|word| word.ends_with("/libtorch_cpu.so")).expect("it is loaded");
    let listed = Command::new("nm").args(["-D", "--undefined-only", library]).output().expect("binutils' nm");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let called: BTreeSet<_> = listed
        .split_whitespace()
        .filter_map(|word| word.split('@').next())
        .filter(|name| ["GOMP_", "omp_", "kmp_", "__kmp"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    assert!(called.contains("GOMP_parallel"), "{called:?}");
    let source = include_str!("openmp.cpp");
    let missing: Vec<_> = called.iter().filter(|name| !source.contains(&format!(" {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
