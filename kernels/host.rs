//! Rust functions inside MLX's graph, on the CPU.
//!
//! [`call`] adds a node to the lazy graph as MLX's own operations do; the function runs when the
//! graph is evaluated, on the thread of the CPU stream, with its operands as plain slices.
//! The C++ half is `native/host_primitive.cpp`.
//!
//! A function that fails cannot fail the evaluation (MLX would lose count of its tasks and hang);
//! its thread keeps the failure until [`check`] asks. [`eval`] does both.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::{ptr, slice};

use half::{bf16, f16};

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, ArrayElement, Dtype, Stream};

/// The longest message of a refused call, in bytes, with its final zero.
const ERROR_BYTES_MAX: usize = 512;

/// Adds a call of `f` to the graph and returns its results, none of them computed yet.
///
/// `f` sees its operands row after row, whatever their strides (a strided input is copied first).
/// It may run on another thread, and more than once if the graph is evaluated more than once.
/// It must write every element of every output: a fresh output starts with arbitrary bytes.
///
/// The stream is the scoped one, or the thread's default CPU stream.
///
/// If `f` fails or panics, its fresh outputs are zero, no call of this thread runs until [`check`]
/// has told of it, and the evaluation goes on.
///
/// # Errors
/// An output that does not fit the input it takes over. A failure as of [`check`], from a call
/// evaluated before. A stream that is not a CPU's fails the evaluation.
pub fn call<const N: usize, F>(
    inputs: &[&Array],
    outputs: [OutputSpec<'_>; N],
    f: F,
) -> Result<[Array; N]>
where
    F: Fn(&[Input<'_>], &mut [Output<'_>]) -> Result<()> + Send + Sync + 'static,
{
    check()?;
    let stream = Stream::thread_local_or_cpu();
    let fresh = outputs.map(|output| output.takes.is_none());
    let node = Node { f, fresh, failure: FAILURE.with(Arc::clone) };
    let inputs: Vec<mlx_sys::mlx_array> = inputs.iter().map(|input| input.as_ptr()).collect();
    let outputs = outputs.map(OutputSpec::into_raw);
    let mut results = [mlx_sys::mlx_array { ctx: ptr::null_mut() }; N];
    let mut error = [0; ERROR_BYTES_MAX];
    let closure = RawClosure {
        call: run::<F, N>,
        context: Box::into_raw(Box::new(node)).cast(),
        drop: drop_closure::<Node<F, N>>,
    };
    // SAFETY: every pointer is good for its length throughout the call, the array handles are
    // borrowed from live `Array`s, and the closure's box passes to the callee.
    let status = unsafe {
        mtplx_host_call(
            results.as_mut_ptr(),
            inputs.as_ptr(),
            inputs.len(),
            outputs.as_ptr(),
            outputs.len(),
            closure,
            stream.as_ptr(),
            error.as_mut_ptr(),
            error.len(),
        )
    };
    if status != 0 {
        // SAFETY: on failure the callee left a zero-terminated text in `error`.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        return Err(Exception::custom(text.to_string_lossy()));
    }
    // SAFETY: each result is a new handle that nobody else frees.
    Ok(results.map(|result| unsafe { Array::from_ptr(result) }))
}

/// A [`call`] with one fp32 result of `shape` in memory of its own.
///
/// # Errors
/// As [`call`].
pub fn call_one<F>(inputs: &[&Array], shape: &[i32], f: F) -> crate::error::Result<Array>
where
    F: Fn(&[Input<'_>], &mut [Output<'_>]) -> Result<()> + Send + Sync + 'static,
{
    let [result] = call(inputs, [OutputSpec::new(shape, Dtype::Float32)], f)?;
    Ok(result)
}

/// Evaluates `arrays`, then [`check`]s.
///
/// # Errors
/// What MLX or a function in the graph met.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    mlx_rs::transforms::eval(arrays)?;
    check()
}

/// Tells of the first failure since the last check, among the calls that this thread has added to
/// the graph and that were evaluated. What was computed from such a call is to be thrown away.
///
/// # Errors
/// What a function returned or panicked with.
pub fn check() -> Result<()> {
    FAILURE.with(|failure| failure.take()).map_or(Ok(()), |text| Err(Exception::custom(text)))
}

/// What one result of a [`call`] is to be.
#[derive(Clone, Copy, Debug)]
pub struct OutputSpec<'a> {
    shape: &'a [i32],
    dtype: Dtype,
    takes: Option<usize>,
}

impl<'a> OutputSpec<'a> {
    /// A result in memory of its own.
    pub fn new(shape: &'a [i32], dtype: Dtype) -> Self {
        Self { shape, dtype, takes: None }
    }

    /// A result that starts as input number `input` and lives in that input's buffer: how a cache
    /// is written in place. The dtype and the number of elements must be the input's. A strided
    /// input, or one whose buffer another input of the call shares, is copied instead.
    ///
    /// # Safety
    /// Once the call is evaluated, nothing may read that input, nor any view of it, neither
    /// directly nor through a graph not yet evaluated: the bytes there are the result's.
    pub unsafe fn taking(input: usize, shape: &'a [i32], dtype: Dtype) -> Self {
        Self { shape, dtype, takes: Some(input) }
    }

    fn into_raw(self) -> RawOutput {
        RawOutput {
            shape: self.shape.as_ptr(),
            ndim: self.shape.len(),
            dtype: self.dtype.into(),
            takes: self.takes.map_or(-1, |input| c_int::try_from(input).unwrap_or(c_int::MAX)),
        }
    }
}

/// A number that an operand may consist of: any bytes are a value of it.
pub trait Element: ArrayElement + Copy {}

macro_rules! elements {
    ($($number:ty)*) => { $(impl Element for $number {})* };
}

elements!(u8 u16 u32 u64 i8 i16 i32 i64 f16 bf16 f32 f64);

/// An operand to read.
#[repr(transparent)]
pub struct Input<'a> {
    raw: RawBuffer,
    bytes: PhantomData<&'a [u8]>,
}

/// An operand to write.
#[repr(transparent)]
pub struct Output<'a> {
    raw: RawBuffer,
    bytes: PhantomData<&'a mut [u8]>,
}

impl Input<'_> {
    /// The length of every axis, outermost first.
    pub fn shape(&self) -> &[i32] {
        self.raw.shape()
    }

    /// All elements, the last axis varying fastest.
    ///
    /// # Errors
    /// The operand's dtype is not `T`'s, or an output takes this input over.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        if self.raw.data.is_null() && self.raw.size > 0 {
            return Err(Exception::custom("an output took this input over: read it there"));
        }
        let data = self.raw.elements::<T>()?;
        // SAFETY: `elements` checked type and alignment; MLX keeps `size` elements there until
        // the call returns, and the C++ side lets no output share them.
        Ok(unsafe { slice::from_raw_parts(data, self.raw.size) })
    }
}

impl Output<'_> {
    /// The length of every axis, outermost first.
    pub fn shape(&self) -> &[i32] {
        self.raw.shape()
    }

    /// All elements, the last axis varying fastest: arbitrary values, or those of the input that
    /// this output took over.
    ///
    /// # Errors
    /// The operand's dtype is not `T`'s.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let data = self.raw.elements::<T>()?;
        // SAFETY: `elements` checked type and alignment; the memory is this output's alone until
        // the call returns, and any bytes are a value of `T`.
        Ok(unsafe { slice::from_raw_parts_mut(data, self.raw.size) })
    }
}

thread_local! {
    static FAILURE: Arc<Failure> = Arc::default();
}

/// The first failure among a thread's calls: the stream's thread writes, the owner takes.
#[derive(Default)]
struct Failure(Mutex<Option<String>>);

impl Failure {
    fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the graph's node owns.
struct Node<F, const N: usize> {
    f: F,
    /// By output: whether it began with arbitrary bytes.
    fresh: [bool; N],
    failure: Arc<Failure>,
}

impl<F, const N: usize> Node<F, N>
where
    F: Fn(&[Input<'_>], &mut [Output<'_>]) -> Result<()>,
{
    fn run(&self, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) {
        if !self.failure.is_set() {
            let text = match catch_unwind(AssertUnwindSafe(|| (self.f)(inputs, outputs))) {
                Ok(Ok(())) => return,
                Ok(Err(exception)) => exception.what().to_owned(),
                Err(panic) => format!("a host function panicked: {}", panic_text(panic.as_ref())),
            };
            self.failure.set(text);
        }
        // Whatever comes after in the graph may index by these.
        for (output, _) in outputs.iter_mut().zip(self.fresh).filter(|(_, fresh)| *fresh) {
            output.raw.zero();
        }
    }
}

/// `mtplx_buffer` of `host_primitive.h`.
#[repr(C)]
struct RawBuffer {
    data: *mut c_void,
    shape: *const i32,
    ndim: usize,
    size: usize,
    dtype: mlx_sys::mlx_dtype,
}

impl RawBuffer {
    fn zero(&mut self) {
        // SAFETY: a pure question about a dtype that MLX itself gave.
        let bytes = self.size * unsafe { mlx_sys::mlx_dtype_size(self.dtype) };
        if bytes > 0 {
            // SAFETY: an output's memory is its own until the call returns, and this long.
            unsafe { self.data.write_bytes(0, bytes) };
        }
    }

    fn shape(&self) -> &[i32] {
        // SAFETY: the shape belongs to the running task and outlives this buffer.
        unsafe { raw_slice(self.shape, self.ndim) }
    }

    /// Where the elements begin; dangling if there are none.
    fn elements<T: Element>(&self) -> Result<*mut T> {
        let wanted = T::DTYPE;
        if self.dtype != u32::from(wanted) {
            let found = Dtype::try_from(self.dtype);
            return Err(Exception::custom(format!("a view as {wanted:?} of {found:?}")));
        }
        if self.size == 0 {
            return Ok(ptr::NonNull::dangling().as_ptr());
        }
        let data = self.data.cast::<T>();
        if !data.is_aligned() {
            return Err(Exception::custom(format!("{wanted:?} elements at {data:?}: not aligned")));
        }
        Ok(data)
    }
}

/// `mtplx_output` of `host_primitive.h`.
#[repr(C)]
struct RawOutput {
    shape: *const i32,
    ndim: usize,
    dtype: mlx_sys::mlx_dtype,
    takes: c_int,
}

type RawCall = unsafe extern "C" fn(
    context: *mut c_void,
    inputs: *const RawBuffer,
    inputs_len: usize,
    outputs: *mut RawBuffer,
    outputs_len: usize,
);

/// `mtplx_host_closure` of `host_primitive.h`.
#[repr(C)]
struct RawClosure {
    call: RawCall,
    context: *mut c_void,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn mtplx_host_call(
        results: *mut mlx_sys::mlx_array,
        inputs: *const mlx_sys::mlx_array,
        inputs_len: usize,
        outputs: *const RawOutput,
        outputs_len: usize,
        closure: RawClosure,
        stream: mlx_sys::mlx_stream,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
}

/// Runs the node behind `context`; nothing unwinds from it into C++.
unsafe extern "C" fn run<F, const N: usize>(
    context: *mut c_void,
    inputs: *const RawBuffer,
    inputs_len: usize,
    outputs: *mut RawBuffer,
    outputs_len: usize,
) where
    F: Fn(&[Input<'_>], &mut [Output<'_>]) -> Result<()>,
{
    // SAFETY: `call` made the context from a box of this type, and `drop_closure` has not run.
    let node = unsafe { &*context.cast::<Node<F, N>>() };
    // SAFETY: the task owns `inputs_len` buffers, and `Input` is a `RawBuffer`.
    let inputs = unsafe { raw_slice(inputs.cast::<Input<'_>>(), inputs_len) };
    let outputs: &mut [Output<'_>] = match outputs_len {
        0 => &mut [],
        // SAFETY: the task owns `outputs_len` buffers, this call alone uses them, and `Output`
        // is a `RawBuffer`.
        _ => unsafe { slice::from_raw_parts_mut(outputs.cast(), outputs_len) },
    };
    node.run(inputs, outputs);
}

unsafe extern "C" fn drop_closure<T>(context: *mut c_void) {
    // SAFETY: `call` made the context from a box of `T`, and C++ drops it once.
    let boxed = unsafe { Box::from_raw(context.cast::<T>()) };
    // A destructor that panics ends here: C++ could not carry it on.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(boxed)));
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text")
}

/// As [`slice::from_raw_parts`], but an empty slice may come with a null pointer.
///
/// # Safety
/// As [`slice::from_raw_parts`] where `len` is not zero.
unsafe fn raw_slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    match len {
        0 => &[],
        // SAFETY: the caller vouches for it.
        _ => unsafe { slice::from_raw_parts(data, len) },
    }
}

#[cfg(test)]
mod tests;
