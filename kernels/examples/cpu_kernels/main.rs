//! Times the CPU kernels: the shortest of many repeats for each shape.
//!
//! `cargo run --release --example cpu_kernels [linear|experts|gdn|attention|other]`

#[cfg(target_os = "linux")]
mod timings;

#[cfg(target_os = "linux")]
fn main() -> timings::Result<()> {
    timings::run(std::env::args().nth(1).as_deref())
}

#[cfg(not(target_os = "linux"))]
fn main() {}
