#![no_main]

libfuzzer_sys::fuzz_target!(init: camlens_fuzz::panics::record(), |data: &[u8]| {
    camlens_fuzz::panics::abort_after(|| camlens_fuzz::onnx::run(data));
});
