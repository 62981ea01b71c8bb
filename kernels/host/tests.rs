use std::sync::Arc;
use std::time::Instant;

use mlx_rs::memory::{active_memory, clear_cache};
use mlx_rs::transforms::async_eval;

use super::*;

#[test]
fn a_call_is_lazy_and_stands_between_mlx_operations() {
    let runs = Arc::new(());
    let seen = Arc::clone(&runs);
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
    let doubled = x.add(&x).expect("sum");
    let [squares, total] = call(
        &[&doubled],
        [OutputSpec::new(&[2, 2], Dtype::Float32), OutputSpec::new(&[1], Dtype::Int32)],
        move |inputs, outputs| {
            let _ = &seen;
            let x = inputs[0].as_slice::<f32>()?;
            for (out, x) in outputs[0].as_mut_slice::<f32>()?.iter_mut().zip(x) {
                *out = x * x;
            }
            outputs[1].as_mut_slice::<i32>()?[0] = x.iter().map(|x| *x as i32).sum();
            Ok(())
        },
    )
    .expect("call");
    let result = squares.matmul(&x).expect("product").add(&total).expect("sum");
    assert_eq!(Arc::strong_count(&runs), 2, "not evaluated, so not let go");
    assert_eq!(result.as_slice::<f32>(), &[72.0, 92.0, 248.0, 348.0]);
}

#[test]
fn a_strided_input_arrives_row_after_row() {
    let x = Array::from_iter(0..24, &[2, 3, 4]);
    let turned = x.transpose_axes(&[2, 0, 1]).expect("transpose");
    let row = Array::from_slice(&[1i32, 2, 3], &[1, 3]);
    let wide = mlx_rs::ops::broadcast_to(&row, &[2, 3]).expect("broadcast");
    let [copy, wide] = call(
        &[&turned, &wide],
        [OutputSpec::new(&[4, 2, 3], Dtype::Int32), OutputSpec::new(&[2, 3], Dtype::Int32)],
        copy_all::<i32>,
    )
    .expect("call");
    assert_eq!(copy.as_slice::<i32>()[..8], [0, 4, 8, 12, 16, 20, 1, 5]);
    let expected = turned.contiguous().expect("contiguous");
    assert_eq!(copy.as_slice::<i32>(), expected.as_slice::<i32>());
    assert_eq!(wide.as_slice::<i32>(), &[1, 2, 3, 1, 2, 3]);
}

#[test]
fn scalars_halves_and_empty_arrays_pass() {
    let one = Array::from_f32(1.5);
    let half = Array::from_slice(&[bf16::from_f32(0.5), bf16::ONE], &[2]);
    let none = Array::from_slice::<u8>(&[], &[0]);
    let [one, half, none] = call(
        &[&one, &half, &none],
        [
            OutputSpec::new(&[], Dtype::Float32),
            OutputSpec::new(&[2], Dtype::Bfloat16),
            OutputSpec::new(&[0], Dtype::Uint8),
        ],
        |inputs, outputs| {
            outputs[0].as_mut_slice::<f32>()?.copy_from_slice(inputs[0].as_slice::<f32>()?);
            outputs[1].as_mut_slice::<bf16>()?.copy_from_slice(inputs[1].as_slice::<bf16>()?);
            outputs[2].as_mut_slice::<u8>()?.copy_from_slice(inputs[2].as_slice::<u8>()?);
            assert_eq!((inputs[0].shape(), inputs[2].shape()), (&[][..], &[0][..]));
            Ok(())
        },
    )
    .expect("call");
    eval([&one, &half, &none]).expect("eval");
    assert_eq!(one.item_exact::<f32>(), 1.5);
    assert_eq!(half.as_slice::<bf16>(), &[bf16::from_f32(0.5), bf16::ONE]);
    assert_eq!(none.size(), 0);
}

#[test]
fn an_output_takes_over_its_input_in_place() {
    let mut cache = mlx_rs::ops::zeros::<f32>(&[4, 8]).expect("zeros");
    cache = cache.contiguous().expect("contiguous");
    cache.eval().expect("eval");
    let home = cache.as_slice::<f32>().as_ptr();
    for step in 0..3 {
        let row = mlx_rs::ops::full::<f32>(&[8], Array::from_f32(step as f32 + 1.0)).expect("row");
        cache = write_row(&cache, &row, step);
    }
    cache.eval().expect("eval");
    assert_eq!(cache.as_slice::<f32>().as_ptr(), home);
    let sums = cache.sum_axis(1, false).expect("sum");
    assert_eq!(sums.as_slice::<f32>(), &[8.0, 16.0, 24.0, 0.0]);
}

#[test]
fn an_input_read_beside_its_takeover_is_copied() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]);
    // SAFETY: `x` is read by this call alone, and the callee copies it.
    let spec = unsafe { OutputSpec::taking(0, &[2], Dtype::Float32) };
    let [sum] = call(&[&x, &x], [spec], |inputs, outputs| {
        assert!(inputs[0].as_slice::<f32>().is_err(), "it is the output now");
        let x = inputs[1].as_slice::<f32>()?;
        for (out, x) in outputs[0].as_mut_slice::<f32>()?.iter_mut().zip(x) {
            *out += 10.0 * x;
        }
        Ok(())
    })
    .expect("call");
    assert_eq!(sum.as_slice::<f32>(), &[11.0, 22.0]);
    assert_eq!(x.as_slice::<f32>(), &[1.0, 2.0]);
}

#[test]
fn an_output_that_cannot_be_is_refused() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]);
    let spec = OutputSpec::new(&[2, -1], Dtype::Float32);
    call(&[&x], [spec], |_, _| Ok(())).expect_err("a negative length");
    for (input, shape, dtype) in
        [(0, &[3][..], Dtype::Float32), (0, &[2][..], Dtype::Int32), (1, &[2][..], Dtype::Float32)]
    {
        // SAFETY: the call is never evaluated.
        let spec = unsafe { OutputSpec::taking(input, shape, dtype) };
        call(&[&x], [spec], |_, _| Ok(())).expect_err("does not fit");
    }
}

#[test]
fn a_failure_waits_for_the_check_and_stops_what_follows() {
    let x = Array::from_slice(&[1.0f32], &[1]);
    let spec = OutputSpec::new(&[1], Dtype::Float32);
    let [wrong] = call(&[&x], [spec], |inputs, _| inputs[0].as_slice::<i32>().map(drop)).expect("");
    let error = eval([&wrong]).expect_err("the function failed");
    assert!(error.what().contains("a view as Int32"), "{error}");
    check().expect("told once");

    let [torn] = call(&[&x], [spec], |_, outputs| {
        outputs[0].as_mut_slice::<f32>()?[0] = f32::NAN;
        panic!("torn at {}", 7)
    })
    .expect("call");
    let [after] = call(&[&torn], [spec], |_, _| Err("runs upon garbage".into())).expect("call");
    let sum = after.add(&torn).expect("sum");
    let error = eval([&sum]).expect_err("the function panicked");
    assert!(error.what().contains("torn at 7"), "{error}");
    assert_eq!(sum.item_exact::<f32>(), 0.0);

    let [torn] = call(&[&x], [spec], |_, _| panic!("later")).expect("call");
    async_eval([&torn]).expect("begun");
    torn.eval().expect("the evaluation itself succeeds");
    call(&[&x], [spec], copy_all::<f32>).expect_err("an unasked failure");

    let [fine] = call(&[&x], [spec], copy_all::<f32>).expect("call");
    eval([&fine]).expect("all is told");
    assert_eq!(fine.item_exact::<f32>(), 1.0);
}

#[test]
fn a_failure_leaves_what_is_written_in_place() {
    let cache = Array::from_slice(&[1.0f32, 2.0], &[2]);
    // SAFETY: `cache` is not read again.
    let spec = unsafe { OutputSpec::taking(0, &[2], Dtype::Float32) };
    let [kept] = call(&[&cache], [spec], |_, _| Err("no row to write".into())).expect("call");
    eval([&kept]).expect_err("the function failed");
    assert_eq!(kept.as_slice::<f32>(), &[1.0, 2.0]);
}

#[test]
fn a_thousand_failures_block_nothing() {
    let x = Array::from_slice(&[1.0f32], &[1]);
    let spec = OutputSpec::new(&[1], Dtype::Float32);
    for _ in 0..1_000 {
        let [bad] = call(&[&x], [spec], |_, _| Err("no".into())).expect("call");
        async_eval([&bad]).expect("begun");
        eval([&bad.add(&x).expect("sum")]).expect_err("the function failed");
    }
}

#[test]
fn ten_thousand_calls_leave_memory_flat() {
    let held = Arc::new(());
    let x = mlx_rs::ops::ones::<f32>(&[16, 1024]).expect("ones");
    let spec = OutputSpec::new(&[16, 1024], Dtype::Float32);
    x.eval().expect("eval");
    let before = active_memory().expect("memory");
    for _ in 0..1_000 {
        let mut y = x.clone();
        for _ in 0..10 {
            let held = Arc::clone(&held);
            [y] = call(&[&y], [spec], move |_, _| {
                let _ = &held;
                Ok(())
            })
            .expect("call");
        }
        y.eval().expect("eval");
    }
    clear_cache().expect("cache");
    let after = active_memory().expect("memory");
    // A leak would be 640 MB; the slack is for tests that run at the same time.
    assert!(after < before + (64 << 20), "{before} bytes before, {after} after");
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn the_cost_of_a_call_is_printed() {
    const CALLS: u32 = 20_000;
    const CHAIN: usize = 100;
    let x = Array::from_slice(&[1.0f32], &[1]);
    let time = |step: &dyn Fn(&Array) -> Array| {
        let start = Instant::now();
        for _ in 0..CALLS as usize / CHAIN {
            let mut y = x.clone();
            for _ in 0..CHAIN {
                y = step(&y);
            }
            y.eval().expect("eval");
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS)
    };
    let spec = OutputSpec::new(&[1], Dtype::Float32);
    let host = time(&|y| call(&[y], [spec], copy_all::<f32>).map(|[y]| y).expect("call"));
    let mlx = time(&|y| y.abs().expect("abs"));
    println!("{host:.2} µs a host call, {mlx:.2} µs an MLX operation, in chains of {CHAIN}");
}

fn write_row(cache: &Array, row: &Array, at: usize) -> Array {
    let shape = cache.shape().to_vec();
    // SAFETY: the caller replaces its cache by the result and keeps no view of it.
    let spec = unsafe { OutputSpec::taking(0, &shape, Dtype::Float32) };
    let [cache] = call(&[cache, row], [spec], move |inputs, outputs| {
        let row = inputs[1].as_slice::<f32>()?;
        outputs[0].as_mut_slice::<f32>()?[at * row.len()..][..row.len()].copy_from_slice(row);
        Ok(())
    })
    .expect("call");
    cache
}

fn copy_all<T: Element>(inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> Result<()> {
    for (input, output) in inputs.iter().zip(outputs) {
        output.as_mut_slice::<T>()?.copy_from_slice(input.as_slice()?);
    }
    Ok(())
}
