//! What an outcome means: rows advance, finish, are worth keeping.

use super::{
    Arc, Batch, Deposit, Drafts, Finish, Kind, Move, Outcome, Plan, Prefill, Prefix, Report, Row,
    RowEvent, RowOutcome, Settled, Slot, SnapshotId, Token, Tried,
};
use crate::engine::Parcel;
use crate::guard;
use crate::request::Sharing;

impl Batch {
    /// Books the outcome of `plan`.
    ///
    /// # Panics
    /// If the outcome is not of this plan: a bug of the engine.
    pub fn settle(&mut self, plan: &Plan, outcome: Outcome) -> Settled {
        let mut settled = Settled::default();
        settled.report.phases = outcome.phases;
        settled.report.synchronisations = outcome.synchronisations;
        settled.report.compilations = outcome.compilations;
        settled.report.rows = plan.verify.len();
        settled.report.depth = plan.verify.iter().map(|v| v.depth).max().unwrap_or(0);
        settled.report.uniform = self.is_uniform(plan, settled.report.depth);
        self.describe(plan, &mut settled.report);
        for chunk in &plan.prefill {
            settled.report.prefilled += chunk.end - chunk.start;
            self.settle_chunk(chunk, &mut settled);
        }
        let sampled = plan.prefill.iter().filter(|c| c.sample).map(|c| (c.slot, c.mark));
        let planned = sampled.chain(plan.verify.iter().map(|v| (v.slot, None)));
        let mut rows = outcome.rows.into_iter();
        for (slot, mark) in planned {
            let row = rows.next().expect("an outcome for every planned row");
            assert_eq!(row.slot, slot, "outcomes come in the plan's order");
            self.settle_row(row, mark, &mut settled);
        }
        settled.used = std::mem::take(&mut self.used);
        settled.report.taken_over = std::mem::take(&mut self.taken_over);
        settled.report.stepped_back = std::mem::take(&mut self.stepped_back);
        self.costs.hear(&settled.report);
        settled
    }

    /// Who decoded: how long their texts are, and at which temperatures.
    fn describe(&self, plan: &Plan, report: &mut Report) {
        let tokens: usize = plan.verify.iter().map(|v| v.position).sum();
        report.context = tokens / plan.verify.len().max(1);
        for row in plan.verify.iter().filter_map(|v| self.rows.get(&v.slot)) {
            report.temperatures[row.request.sampling.temperature_band()] += 1;
        }
    }

    /// Drafts that a grammar forces cost no pass of the head and always stand: they say nothing of
    /// either.
    fn is_uniform(&self, plan: &Plan, depth: u8) -> bool {
        plan.verify.iter().all(|v| {
            let tuned = |row: &Row| {
                let request = &row.request;
                request.draft_tokens == Drafts::Tuned && request.sampling.grammar.is_none()
            };
            v.depth == depth && self.rows.get(&v.slot).is_some_and(tuned)
        })
    }

    fn settle_chunk(&mut self, chunk: &Prefill, settled: &mut Settled) {
        let Some(row) = self.rows.get_mut(&chunk.slot) else { return };
        let new = row.feed(chunk.end);
        self.books.forwarded += new as u64;
        self.fairness.charge(row.request.standing, new, 0);
        // What the prompt's last chunk leaves is kept once its first token shows that it is sound.
        if chunk.sample {
            return;
        }
        let boundary = chunk.end > chunk.start && row.is_kept_at(chunk.end);
        for at in chunk.mark.into_iter().chain(boundary.then_some(chunk.end)) {
            self.keep_boundary(chunk.slot, at, settled);
        }
    }

    fn keep_boundary(&mut self, slot: Slot, at: usize, settled: &mut Settled) {
        let root = self.rows.get(&slot).is_some_and(|row| row.request.sharing.root == at);
        let kind = if root { Kind::Root } else { Kind::Boundary };
        self.keep((slot, at), kind, settled);
    }

    /// `mark` is where the engine set the row's state aside on its way to the prompt's end.
    fn settle_row(&mut self, outcome: RowOutcome, mark: Option<usize>, settled: &mut Settled) {
        let slot = outcome.slot;
        let Some(row) = self.rows.get_mut(&slot) else { return };
        let id = row.request.id;
        let Ok(emitted) = outcome.result else {
            return self.finish(slot, Finish::Fault, settled);
        };
        if let Some(at) = mark {
            self.keep_boundary(slot, at, settled);
        }
        let Some(row) = self.rows.get_mut(&slot) else { return };
        let (prompt, begins) = (row.request.prompt.len(), !row.is_decoding());
        if begins && (row.fed + row.restored != row.start || row.reached != prompt) {
            settled.report.unaccounted += 1;
        }
        if begins && row.start == prompt && prompt > row.restored {
            self.keep((slot, prompt), Kind::Prompt, settled);
        }
        let Some(row) = self.rows.get_mut(&slot) else { return };
        let accepted = emitted.tokens.len() - 1;
        if row.request.sampling.grammar.is_none() {
            let band = row.request.sampling.temperature_band();
            settled.report.count(band, emitted.drafted, accepted);
        }
        if row.is_decoding() {
            row.computed += accepted + 1;
        }
        row.usage.drafted += emitted.drafted;
        row.usage.accepted += accepted;
        let context = self.info.context_tokens_max;
        let (tokens, finish) = row.take_wanted(emitted.tokens, context);
        settled.report.emitted += tokens.len();
        self.fairness.charge(row.request.standing, 0, tokens.len());
        if row.request.sampling.logprobs.is_some() {
            let mut logprobs = emitted.logprobs;
            logprobs.truncate(tokens.len());
            settled.events.push((id, RowEvent::Logprobs(logprobs)));
        }
        settled.events.push((id, RowEvent::Tokens(tokens, row.usage)));
        if let Some(finish) = finish {
            let len = row.tokens.len() - 1;
            // Covered by what was computed: at most this cycle's last tokens are cut off.
            if len > row.request.prompt.len() {
                self.keep((slot, len), Kind::Reply, settled);
            }
            self.finish(slot, finish, settled);
        }
    }

    fn finish(&mut self, slot: Slot, finish: Finish, settled: &mut Settled) {
        if let Some(row) = self.leave(slot) {
            settled.events.push((row.request.id, RowEvent::Finished(finish, row.usage)));
        }
    }

    /// Parks the first `len` tokens of a row for the bank, if there is room, and lets those go on
    /// from it who waited for it.
    fn keep(&mut self, (slot, len): (Slot, usize), kind: Kind, settled: &mut Settled) {
        let Some(row) = self.rows.get(&slot) else { return };
        let Sharing { tenant, background, .. } = row.request.sharing;
        if background {
            return;
        }
        let prefix = Prefix { tenant, tokens: Arc::from(&row.tokens[..len]) };
        // Equal states are stored once.
        if let Some(same) = self.ledger.same(&prefix) {
            self.used.push(same);
            return self.hand_over(slot, same, len);
        }
        if !self.has_room() {
            settled.report.dropped_deposits += 1;
            return;
        }
        let snapshot = self.ledger.park(&row.holding, prefix.clone());
        self.moves.push(Move::Save { slot, snapshot, len });
        settled.deposits.push(Deposit { snapshot, prefix, kind, bytes: self.bytes_of(len) });
        self.parked();
        self.hand_over(slot, snapshot, len);
    }

    /// Whether another state may be parked.
    pub(super) fn has_room(&self) -> bool {
        self.ledger.snapshots() < self.limits.snapshots_max && self.may_park()
    }

    /// Bytes that a state of `len` tokens keeps alive.
    #[must_use]
    pub fn bytes_of(&self, len: usize) -> u64 {
        let pages = len.div_ceil(self.info.page_tokens) as u64;
        self.info.snapshot_bytes + pages * self.info.page_bytes
    }

    /// Takes pages and a name for a state that comes from outside; nobody starts from it before
    /// [`Batch::arrived`]. `None` if there is no room, or it is here already or on its way. It is
    /// to be written after the next plan has run, whose moves may read what lay in these pages.
    pub fn import(&mut self, prefix: Prefix, kind: Kind) -> Option<Deposit> {
        let rise = self.ledger.rise(prefix.tokens.len(), None);
        let fits = guard::check(&self.info, self.used(), guard::needed(&self.info, rise)).is_ok();
        let here = self.ledger.same(&prefix).is_some() || self.ledger.is_arriving(&prefix);
        if !fits || !self.has_room() || here {
            return None;
        }
        let bytes = self.bytes_of(prefix.tokens.len());
        let snapshot = self.ledger.import(prefix.clone())?;
        self.parked();
        Some(Deposit { snapshot, prefix, kind, bytes })
    }

    /// The engine has all of a state that [`Batch::import`] made room for.
    pub fn arrived(&mut self, snapshot: SnapshotId) {
        self.ledger.arrived(snapshot);
    }

    /// Undoes [`Batch::import`] of a state that the engine refused.
    pub fn forget_import(&mut self, snapshot: SnapshotId) {
        self.ledger.unbank(snapshot);
    }

    /// Where a parked state is, for the engine; `None` if it is gone, or saved by the next plan
    /// only.
    #[must_use]
    pub fn parcel(&self, snapshot: SnapshotId) -> Option<Parcel<'_>> {
        let pending = |m: &Move| matches!(m, Move::Save { snapshot: s, .. } if *s == snapshot);
        if self.moves.iter().any(pending) {
            return None;
        }
        self.ledger.parcel(snapshot)
    }
}

impl Row {
    /// Takes over new tokens up to the first that ends the row.
    fn take_wanted(
        &mut self,
        mut tokens: Vec<Token>,
        context: usize,
    ) -> (Vec<Token>, Option<Finish>) {
        let limits = &self.request.limits;
        let room = limits.new_tokens_max - self.usage.generated;
        let room = room.min(context - self.tokens.len());
        let mut finish = None;
        if tokens.len() >= room {
            tokens.truncate(room);
            finish = Some(Finish::Length);
        }
        if let Some(at) = tokens.iter().position(|t| limits.stop_tokens.contains(t)) {
            tokens.truncate(at + 1);
            finish = Some(Finish::Stop);
        }
        self.usage.generated += tokens.len();
        self.tokens.extend_from_slice(&tokens);
        if self.request.sampling.has_penalties() {
            self.seen.add_output(&tokens);
        }
        (tokens, finish)
    }
}

impl Report {
    /// Counts the judged drafts of one row: all accepted ones and the first rejected.
    fn count(&mut self, band: usize, drafted: usize, accepted: usize) {
        let judged = drafted.min(accepted + 1);
        for positions in [&mut self.positions, &mut self.judged[band]] {
            if positions.len() < judged {
                positions.resize(judged, Tried::default());
            }
            for (i, position) in positions[..judged].iter_mut().enumerate() {
                position.tried += 1;
                position.accepted += u32::from(i < accepted);
            }
        }
    }
}
