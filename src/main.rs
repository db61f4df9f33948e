//! The `camlens` program: reads its arguments and does what they say.

/// Frames, answers and spans pass from thread to thread, and are freed where they were not made.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    camlens::cli::main()
}
