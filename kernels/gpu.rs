//! The project's own GPU kernels, beside the plain path of MLX's own operations, which is always
//! there. A kernel is compiled and tried against the plain path when the model is loaded; one that
//! fails is switched off with a warning, and the plain path does its work.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

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
        let count = [32, 256].into_iter().find(|&count| numbers.len() <= count);
        let mut scalars = numbers.to_vec();
        // Never so few that a kernel would take them from elsewhere.
        scalars.resize(count.unwrap_or(numbers.len()), 0);
        let Some(count) = count.filter(|_| device::HOST_IS_FAR) else {
            return Ok(Array::from_slice(&scalars, &[scalars.len() as i32]));
        };
        let kernel = self.kernel(&NUMBERS, &[("COUNT", count.to_string())])?;
        let launch = Launch { scalars: &scalars, blocks: 1, threads: 32, shared_bytes: 0 };
        // SAFETY: the kernel writes its one output, whole.
        let [array] = unsafe {
            let nothing = self.nothing.get_or_init(|| Array::from_int(0));
            kernel.call(&[nothing], [(&[count as i32], Dtype::Int32)], launch)
        }?;
        Ok(array)
    }

    /// Whether `what` passed its trial with activations of this type, which runs once.
    pub fn passed(&self, what: &str, dtype: Dtype, trial: impl FnOnce() -> Result<()>) -> bool {
        let kind = if dtype == Dtype::Float16 { "fp16" } else { "bf16" };
        let what = format!("{what}, {kind}");
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

/// The name of a type in the sources.
fn scalar(dtype: Dtype) -> String {
    if dtype == Dtype::Float16 { "Half" } else { "Brain" }.to_owned()
}
