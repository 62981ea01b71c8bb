//! The project's own GPU kernels, beside the plain path of MLX's own operations, which is always
//! there. A kernel is compiled and tried against the plain path when the model is loaded; one that
//! fails is switched off with a warning, and the plain path does its work.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use mtplx_core::engine::Kernel;

use crate::error::Result;
use device::{Kernel as Compiled, Launch, Source};

pub mod accept;
pub mod attention;
pub mod device;
pub mod draw;
pub mod gdn;
pub mod layout;
pub mod qmm;
pub mod top;
pub(crate) mod trial;

thread_local! {
    static GPU: Rc<Gpu> = Rc::new(Gpu { known: device::is_known(), ..Gpu::default() });
}

/// The kernels of the thread that owns the device.
#[derive(Debug, Default)]
pub struct Gpu {
    known: bool,
    /// What was tried, and why it failed if it did.
    trials: RefCell<BTreeMap<String, Option<String>>>,
    kernels: RefCell<BTreeMap<String, Rc<Compiled>>>,
    compilations: Cell<u64>,
    /// The numbers last sent to the device.
    sent: RefCell<VecDeque<(Vec<i32>, Array)>>,
    /// For calls that need no input.
    nothing: OnceCell<Array>,
}

const NUMBERS: Source = Source {
    name: "numbers",
    cuda: include_str!("gpu/numbers.cu"),
    metal: "",
    inputs: &[],
    output: "",
};

/// Numbers that one launch can take along, as the source knows.
const PIECES: [usize; 3] = [32, 256, 960];
/// Launches after which it is no dearer to wait once for the device to page in an array: by the
/// profiler 10 µs each, and 150 to 250.
const PIECES_MAX: usize = 12;

/// Sets of numbers that are remembered: a pass uses two, and one for each long row.
const SENT_MAX: usize = 32;

/// This thread's kernels.
#[must_use]
pub fn gpu() -> Rc<Gpu> {
    GPU.with(Rc::clone)
}

impl Gpu {
    /// Whether there is a GPU that the kernels are written for, and activations of this type are
    /// what they take. `MTPLX_KERNELS=0` switches all of them off, to compare.
    #[must_use]
    pub fn serves(&self, dtype: Dtype) -> bool {
        let wanted = std::env::var_os("MTPLX_KERNELS").is_none_or(|v| v != "0");
        self.known && matches!(dtype, Dtype::Bfloat16 | Dtype::Float16) && wanted
    }

    /// Kernels compiled so far: one for every type and constant in use, whatever the shapes.
    #[must_use]
    pub fn compilations(&self) -> u64 {
        self.compilations.get()
    }

    /// A kernel of these settings, compiled once.
    ///
    /// # Errors
    /// What the compiler finds wrong.
    pub fn kernel(&self, source: &Source, settings: &[(&str, String)]) -> Result<Rc<Compiled>> {
        let key = format!("{} {settings:?}", source.name);
        if let Some(kernel) = self.kernels.borrow().get(&key) {
            return Ok(Rc::clone(kernel));
        }
        let kernel = Rc::new(Compiled::compile(source, settings)?);
        self.compilations.set(self.compilations.get() + 1);
        self.kernels.borrow_mut().insert(key, Rc::clone(&kernel));
        Ok(kernel)
    }

    /// `numbers` on the device: all layers of a pass ask for the same ones, and get one array. It
    /// may be longer than they are.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn numbers(&self, numbers: Vec<i32>) -> Result<Array> {
        let mut sent = self.sent.borrow_mut();
        if let Some(at) = sent.iter().position(|(held, _)| *held == numbers)
            && let Some(known) = sent.remove(at)
        {
            let array = known.1.clone();
            sent.push_front(known);
            return Ok(array);
        }
        let array = self.send(&numbers)?;
        sent.truncate(SENT_MAX - 1);
        sent.push_front((numbers, array.clone()));
        Ok(array)
    }

    fn send(&self, numbers: &[i32]) -> Result<Array> {
        let far = device::HOST_IS_FAR && self.known;
        let is_said = far && self.passed_once("numbers".into(), || self.say_and_compare());
        let Some(pieces) = pieces(numbers.len()).filter(|_| is_said) else {
            let mut numbers = numbers.to_vec();
            // Never so few that a kernel would take them from elsewhere.
            numbers.resize(numbers.len().max(PIECES[0]), 0);
            return Ok(Array::from_slice(&numbers, &[numbers.len() as i32]));
        };
        self.say(numbers, pieces)
    }

    fn say(&self, numbers: &[i32], pieces: Vec<usize>) -> Result<Array> {
        let mut said = self.nothing.get_or_init(|| Array::from_int(0)).clone();
        let mut held = 0;
        for count in pieces {
            let kernel = self.kernel(&NUMBERS, &[("COUNT", count.to_string())])?;
            let here = &numbers[held..numbers.len().min(held + count)];
            let mut scalars = [&[held as i32], here].concat();
            scalars.resize(1 + count, 0);
            let launch = Launch { scalars: &scalars, blocks: 1, threads: 256, shared_bytes: 0 };
            held += count;
            // SAFETY: the kernel reads what was said before, and writes its one output, whole.
            [said] = unsafe { kernel.call(&[&said], [(&[held as i32], Dtype::Int32)], launch) }?;
        }
        Ok(said)
    }

    /// Says numbers in pieces of every size.
    fn say_and_compare(&self) -> Result<()> {
        for len in [7, 200, 2 * PIECES[2] + 50] {
            let numbers: Vec<i32> = (0..len as i32).map(|i| i * 7919 - 5).collect();
            let said = self.say(&numbers, pieces(len).unwrap_or_default())?;
            crate::place::eval([&said])?;
            if said.as_slice::<i32>()[..len] != numbers {
                return Err(Exception::custom(format!("{len} numbers arrived as others")).into());
            }
        }
        Ok(())
    }

    /// Whether `what` passed its trial with activations of this type, which runs once.
    pub fn passed(&self, what: &str, dtype: Dtype, trial: impl FnOnce() -> Result<()>) -> bool {
        let kind = if dtype == Dtype::Float16 { "fp16" } else { "bf16" };
        self.passed_once(format!("{what}, {kind}"), trial)
    }

    fn passed_once(&self, what: String, trial: impl FnOnce() -> Result<()>) -> bool {
        if let Some(fault) = self.trials.borrow().get(&what) {
            return fault.is_none();
        }
        let fault = trial().err().map(|error| error.to_string());
        let passed = fault.is_none();
        self.trials.borrow_mut().insert(what, fault);
        passed
    }
}

/// The kernels that this thread's engine tried, and what came of it.
#[must_use]
pub fn tried(dtype: Dtype) -> Vec<Kernel> {
    let gpu = gpu();
    // The others were, with the layers that they serve.
    accept::serves(&gpu, dtype);
    let trials = gpu.trials.borrow();
    trials.iter().map(|(name, fault)| Kernel { name: name.clone(), fault: fault.clone() }).collect()
}

/// How many numbers each launch says, that together say `len`; `None` where they are too many.
fn pieces(len: usize) -> Option<Vec<usize>> {
    let [.., most] = PIECES;
    let mut pieces = vec![most; len / most];
    let rest = len % most;
    if rest > 0 || len == 0 {
        pieces.extend(PIECES.into_iter().find(|&count| rest <= count));
    }
    (pieces.len() <= PIECES_MAX).then_some(pieces)
}

/// The name of a type in the sources.
fn scalar(dtype: Dtype) -> String {
    if dtype == Dtype::Float16 { "Half" } else { "Brain" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_batch_are_said_in_as_few_pieces_as_hold_them() {
        let said = |len| pieces(len).unwrap();
        assert_eq!(said(0), [32]);
        assert_eq!((said(32), said(33), said(256)), (vec![32], vec![256], vec![256]));
        assert_eq!((said(257), said(960)), (vec![960], vec![960]));
        // Settings of the draws of 64 rows at depth 4; their pages at 4 096 tokens each.
        assert_eq!(said(64 * 5 * 8), [960, 960, 960]);
        assert_eq!(said(64 * (4 + 10 + 128)).len(), 10);
        for len in 0..=PIECES_MAX * 960 {
            let room: usize = said(len).iter().sum();
            assert!(room >= len && room < len + 960, "{len}");
        }
        assert_eq!(pieces(PIECES_MAX * 960 + 1), None, "the device pages them in");
    }
}
