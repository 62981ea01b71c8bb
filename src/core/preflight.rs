//! What a model and a wish need in memory, on paper: before anything is loaded, from shapes alone.

/// A model's shape. Widths in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Whether the embedding is the output head as well.
    pub tied: bool,
    /// Gated DeltaNet layers.
    pub gdn_layers: usize,
    /// Full-attention layers.
    pub attention_layers: usize,
    /// Heads of full attention.
    pub attention: Heads,
    /// Heads of the DeltaNet layers: keys, values and their widths.
    pub gdn: GdnHeads,
    /// The feed-forward block of every layer.
    pub ffn: Ffn,
    /// Whether there is an MTP head: one more full-attention layer and a joint of two inputs.
    pub mtp: bool,
}

/// Heads of full attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Heads {
    pub queries: usize,
    pub kv: usize,
    pub dim: usize,
}

/// Heads of a DeltaNet layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct GdnHeads {
    pub keys: usize,
    pub values: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

/// A feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ffn {
    /// One of this inner width.
    Dense(usize),
    /// A router over `experts` of `inner` each, `active` of them for a token, and a shared one.
    Experts {
        /// How many.
        experts: usize,
        /// How many a token passes.
        active: usize,
        /// Inner width of each.
        inner: usize,
        /// Inner width of the shared one.
        shared: usize,
    },
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Bits of a weight of a matrix.
    pub weight_bits: usize,
    /// Weights that share a scale and a bias, each of `float_bytes`; 0 where there are none.
    pub group: usize,
    /// Bytes of an activation, a key or a value.
    pub float_bytes: usize,
    /// Bytes of all weights, MTP head included, where the files are known.
    pub weights_total: Option<u64>,
}

/// What is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Tokens of each client's sequence, prompt and answer.
    pub context_tokens: usize,
    /// Sequences at once.
    pub clients: usize,
    /// Slots beside those of clients, in which states are set aside in the middle of a chunk.
    pub spare_slots: usize,
    /// States parked in the bank, besides their pages.
    pub snapshots: usize,
    /// Deepest draft.
    pub depth: usize,
    /// Tokens of the largest step.
    pub step_tokens: usize,
    /// Positions of a KV page.
    pub page_tokens: usize,
}

/// Bytes by what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Weights of the trunk, embedding and output head included.
    pub weights: u64,
    /// Weights of the MTP head.
    pub mtp_weights: u64,
    /// Keys and values of one token, the MTP head's included.
    pub kv_token: u64,
    /// Keys and values of everybody's sequence, in whole pages.
    pub kv: u64,
    /// Recurrent state of one sequence.
    pub state_slot: u64,
    /// Recurrent states of all, and of spare slots.
    pub states: u64,
    /// Tapes of a verify cycle and convolution windows of these.
    pub tapes: u64,
    /// States parked in the bank.
    pub snapshots: u64,
    /// What lives during the largest step, all layers using the same room.
    pub activations: u64,
    /// Of a step's attention: the scores of its tokens over a whole context, for one layer, where
    /// no fused kernel saves them.
    pub scores: u64,
}

impl Estimate {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let parts = [
            self.weights,
            self.mtp_weights,
            self.kv,
            self.states,
            self.tapes,
            self.snapshots,
            self.activations,
            self.scores,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// An estimate beside a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// What is needed.
    pub estimate: Estimate,
    /// What there is.
    pub budget: u64,
    /// Most clients of the context wished for.
    pub clients_max: usize,
    /// Longest context for the clients wished for, up to the one wished for.
    pub context_max: usize,
}

impl Fit {
    /// Whether the wish can be granted.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.estimate.total() <= self.budget
    }
}

/// Numbers in 128 bits: whatever a file says of shapes, no product overflows.
type Wide = u128;

fn wide(n: usize) -> Wide {
    n as Wide
}

fn bytes(n: Wide) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Elements of a part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weights {
    /// In matrices, which may be quantised.
    matrix: Wide,
    /// In norms, convolutions and the like, which never are.
    vector: Wide,
}

impl Weights {
    fn of(matrix: Wide, vector: Wide) -> Self {
        Self { matrix, vector }
    }

    fn and(self, other: Self) -> Self {
        Self::of(self.matrix + other.matrix, self.vector + other.vector)
    }

    fn times(self, n: usize) -> Self {
        Self::of(self.matrix * wide(n), self.vector * wide(n))
    }

    fn bytes(self, p: &Precision) -> Wide {
        let groups = if p.group == 0 { 0 } else { self.matrix.div_ceil(wide(p.group)) };
        let floats = 2 * groups + self.vector;
        (self.matrix * wide(p.weight_bits)).div_ceil(8) + floats * wide(p.float_bytes)
    }
}

impl Shape {
    fn attention_layer(&self) -> Weights {
        let (h, a) = (wide(self.hidden), &self.attention);
        let (q, kv) = (wide(a.queries) * wide(a.dim), wide(a.kv) * wide(a.dim));
        // Queries bring their gates along.
        Weights::of(h * (2 * q + 2 * kv) + q * h, 2 * wide(a.dim) + 2 * h)
    }

    fn channels(&self) -> Wide {
        let g = &self.gdn;
        2 * wide(g.keys) * wide(g.key_dim) + self.values()
    }

    fn values(&self) -> Wide {
        wide(self.gdn.values) * wide(self.gdn.value_dim)
    }

    fn gdn_layer(&self) -> Weights {
        let (h, g) = (wide(self.hidden), &self.gdn);
        let per_head = 2 * wide(g.values);
        let matrix = h * (self.channels() + 2 * self.values() + per_head);
        Weights::of(matrix, 4 * self.channels() + per_head + wide(g.value_dim) + 2 * h)
    }

    fn ffn_layer(&self) -> Weights {
        let h = wide(self.hidden);
        match self.ffn {
            Ffn::Dense(inner) => Weights::of(3 * h * wide(inner), 0),
            Ffn::Experts { experts, inner, shared, .. } => {
                let all = wide(experts) * wide(inner) + wide(shared);
                Weights::of(3 * h * all + h * wide(experts) + h, 0)
            }
        }
    }

    fn trunk(&self) -> Weights {
        let h = wide(self.hidden);
        let tables = if self.tied { 1 } else { 2 };
        let embed = Weights::of(tables * wide(self.vocab) * h, h);
        let ffn = self.ffn_layer().times(self.gdn_layers + self.attention_layers);
        let gdn = self.gdn_layer().times(self.gdn_layers);
        embed.and(ffn).and(gdn).and(self.attention_layer().times(self.attention_layers))
    }

    fn head(&self) -> Weights {
        let h = wide(self.hidden);
        if !self.mtp {
            return Weights::default();
        }
        Weights::of(2 * h * h, 3 * h).and(self.attention_layer()).and(self.ffn_layer())
    }

    /// Elements that a token of a step has in flight at the widest place of a layer.
    fn widest(&self) -> Wide {
        let (h, a) = (wide(self.hidden), &self.attention);
        let ffn = match self.ffn {
            Ffn::Dense(inner) => 3 * wide(inner),
            Ffn::Experts { active, inner, shared, experts } => {
                3 * (wide(active) * wide(inner) + wide(shared)) + wide(active) * h + wide(experts)
            }
        };
        let gdn = 2 * self.channels() + 2 * self.values();
        let attention = wide(a.dim) * (3 * wide(a.queries) + 2 * wide(a.kv));
        // The residual, its norm and the block's result beside it.
        3 * h + ffn.max(gdn).max(attention)
    }
}

/// What `wish` needs of a model of this shape.
#[must_use]
pub fn estimate(shape: &Shape, precision: &Precision, wish: &Wish) -> Estimate {
    let float = wide(precision.float_bytes);
    let (g, a) = (&shape.gdn, &shape.attention);
    let caches = wide(shape.attention_layers) + Wide::from(shape.mtp);
    let kv_token = caches * 2 * wide(a.kv) * wide(a.dim) * float;
    let pages = wide(wish.context_tokens).div_ceil(wide(wish.page_tokens.max(1)));
    let kv_client = pages * wide(wish.page_tokens.max(1)) * kv_token;
    let layers = wide(shape.gdn_layers);
    // In fp32 whatever the activations are.
    let state = layers * wide(g.values) * wide(g.value_dim) * wide(g.key_dim) * 4;
    let cycle = 1 + wide(wish.depth);
    let tape = cycle * wide(g.values) * (wide(g.key_dim) + wide(g.value_dim) + 2) * 4;
    let window = |tokens: Wide| tokens * shape.channels() * float;
    let carry = wide(shape.hidden) * float;
    let parked = state + layers * window(3) + carry;
    let clients = wide(wish.clients);
    let slots = clients + wide(wish.spare_slots);
    let tokens = wide(wish.step_tokens).max(clients * cycle);
    // Logits come in the model's type and are judged in fp32.
    let logits = clients * cycle * wide(shape.vocab) * (float + 4);
    let mtp_weights = bytes(shape.head().bytes(precision));
    let trunk = || bytes(shape.trunk().bytes(precision));
    Estimate {
        weights: precision.weights_total.map_or_else(trunk, |n| n.saturating_sub(mtp_weights)),
        mtp_weights,
        kv_token: bytes(kv_token),
        kv: bytes(clients * kv_client),
        state_slot: bytes(state),
        states: bytes(slots * state),
        tapes: bytes(slots * (layers * (tape + window(3 + cycle)) + carry * cycle)),
        snapshots: bytes(wide(wish.snapshots) * parked),
        activations: bytes(tokens * shape.widest() * float + logits),
        scores: bytes(wide(a.queries) * tokens * wide(wish.context_tokens) * float),
    }
}

/// The estimate beside a budget, and how far the wish would have to come down.
#[must_use]
pub fn fit(shape: &Shape, precision: &Precision, wish: &Wish, budget: u64) -> Fit {
    let fits = |wish: &Wish| estimate(shape, precision, wish).total() <= budget;
    let clients = |clients| Wish { clients, ..*wish };
    let context = |context_tokens| Wish { context_tokens, ..*wish };
    Fit {
        estimate: estimate(shape, precision, wish),
        budget,
        clients_max: most(wish.clients.max(4096), |n| fits(&clients(n))),
        context_max: most(wish.context_tokens, |n| fits(&context(n))),
    }
}

/// The largest n up to `max` for which `fits` holds, as it does for all below; 0 if for none.
fn most(max: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut yes, mut no) = (0, max + 1);
    while no - yes > 1 {
        let middle = yes.midpoint(no);
        *(if fits(middle) { &mut yes } else { &mut no }) = middle;
    }
    yes
}

#[cfg(test)]
mod tests;
