#![no_main]

libfuzzer_sys::fuzz_target!(init: camlens_fuzz::panics::are_told_when_they_matter(), |data: &[u8]| {
    camlens_fuzz::panics::end_the_process(|| camlens_fuzz::stream::run(data));
});
