//! A batch over the real engine, without actors: what the tests drive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use mtplx_core::batch::{Batch, BatchLimits, Deposit, Knobs, Report, RowEvent, Warm};
use mtplx_core::engine::Engine;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::request::{Limits, Request, Sharing, Usage};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Tenant, Token};
use mtplx_kernels::checkpoint::{Checkpoint, Files};
use mtplx_kernels::place::Place;
use mtplx_kernels::{EngineOptions, MlxEngine};

/// A folder of the repository.
pub fn folder(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

pub fn checkpoint(path: &str) -> Checkpoint {
    Checkpoint::load(&Files::folder(folder(path)).unwrap()).unwrap()
}

/// The small model as it is embedded, 8 bit.
pub const Q8: &str = "config/models/tiny-q8";
/// The same in bf16, as the golden data was computed from it.
pub const BF16: &str = "tests/golden/bf16";

/// Where text is promised to be the same to the bit: the CPU in fp32.
pub fn exact_place() -> Place {
    #[cfg(target_os = "linux")]
    return Place::Host;
    #[cfg(not(target_os = "linux"))]
    {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        Place::Mlx(mlx_rs::Dtype::Float32)
    }
}

/// An engine over a folder; at [`exact_place`] if none is named.
pub fn engine(path: &str, place: Option<Place>, slots: usize) -> MlxEngine {
    let place = Some(place.unwrap_or_else(exact_place));
    let options = EngineOptions { slots, place, ..EngineOptions::default() };
    mtplx_kernels::open(&checkpoint(path), &options).unwrap()
}

/// What a finished request came to.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub tokens: Vec<Token>,
    pub logprobs: Vec<Logprobs>,
    pub usage: Usage,
}

pub struct House {
    pub engine: MlxEngine,
    pub batch: Batch,
    pub deposits: Vec<Deposit>,
    pub reports: Vec<Report>,
    told: BTreeMap<RequestId, Told>,
    done: BTreeSet<RequestId>,
    next: u64,
}

impl House {
    pub fn new(engine: MlxEngine) -> Self {
        let limits = BatchLimits { snapshots_max: 64, chunk_grain: 64 };
        let batch = Batch::new(engine.info().clone(), limits);
        Self {
            engine,
            batch,
            deposits: Vec::new(),
            reports: Vec::new(),
            told: BTreeMap::new(),
            done: BTreeSet::new(),
            next: 0,
        }
    }

    /// Queues a request that starts from the warmest deposit if `warm`.
    pub fn ask(&mut self, prompt: &[Token], sampling: Sampling, n: usize, warm: bool) -> RequestId {
        // Who is to start cold shares with nobody.
        let tenant = if warm { Tenant::default() } else { Tenant((1 << 32) + self.next) };
        let request = Request {
            id: RequestId(0),
            prompt: prompt.into(),
            sampling,
            limits: Limits { new_tokens_max: n, stop_tokens: Arc::default() },
            draft_tokens: mtplx_core::request::Drafts::Tuned,
            boundaries: Vec::new(),
            resumed: 0,
            sharing: Sharing { tenant, ..Sharing::default() },
            standing: Default::default(),
        };
        let fits = self.deposits.iter().filter(|d| warm && prompt.starts_with(&d.prefix.tokens));
        let warm = fits
            .max_by_key(|d| d.prefix.tokens.len())
            .map(|d| Warm { snapshot: d.snapshot, len: d.prefix.tokens.len() });
        self.admit(request, warm)
    }

    /// Queues a request under a new name.
    pub fn admit(&mut self, request: Request, warm: Option<Warm>) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.batch.admit(Request { id, ..request }, warm);
        id
    }

    pub fn step(&mut self, depth: u8) {
        let knobs = Knobs::fixed(depth, 64, (64, 512));
        let plan = self.batch.plan(knobs);
        let outcome = self.engine.run(&plan, self.batch.rows()).unwrap();
        let settled = self.batch.settle(&plan, outcome);
        self.batch.check_integrity().unwrap();
        self.deposits.extend(settled.deposits);
        self.reports.push(settled.report);
        for (id, event) in settled.events {
            let told = self.told.entry(id).or_default();
            match event {
                RowEvent::Tokens(tokens, _) => told.tokens.extend(tokens),
                RowEvent::Logprobs(logprobs) => told.logprobs.extend(logprobs),
                RowEvent::Finished(_, usage) => {
                    told.usage = usage;
                    self.done.insert(id);
                }
                RowEvent::Seated | RowEvent::Refused(_) | RowEvent::Late => panic!("{event:?}"),
            }
        }
    }

    pub fn run(&mut self, depth: u8) {
        while self.batch.is_busy() {
            self.step(depth);
        }
    }

    pub fn told(&self, id: RequestId) -> &Told {
        assert!(self.done.contains(&id), "{id:?} has finished");
        &self.told[&id]
    }

    /// The text of one request, served alone.
    pub fn alone(&mut self, prompt: &[Token], sampling: Sampling, n: usize, depth: u8) -> Told {
        let id = self.ask(prompt, sampling, n, false);
        self.run(depth);
        self.told(id).clone()
    }
}

/// Prompts of many lengths: windows of the golden ones, which are real text of the model's kind.
pub fn prompts(n: usize) -> Vec<Vec<Token>> {
    let cases = crate::golden::cases();
    let all: Vec<Token> = cases.iter().flat_map(|c| c.ids.clone()).collect();
    (0..n)
        .map(|i| {
            let len = 3 + (i * 37) % 90;
            let start = (i * 53) % (all.len() - len);
            all[start..start + len].to_vec()
        })
        .collect()
}
