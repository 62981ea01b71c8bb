//! What must hold whatever happens, one function each. All panic with what they found.

use super::*;
use crate::fairness::Standing;

/// L1: the text of a request is its text alone, cold and undrafted, and so is its end.
pub(super) fn text_is_the_text_alone(
    (request, text, finish): (&Request, &[Token], Finish),
    engine: &Scripted,
) {
    assert_eq!(
        (text, finish),
        (&*alone(request, engine).0, alone(request, engine).1),
        "{request:?}"
    );
}

/// L1 for those who leave early: what they heard is how it begins.
pub(super) fn a_broken_text_begins_right(request: &Request, text: &[Token], engine: &Scripted) {
    assert!(alone(request, engine).0.starts_with(text), "{request:?} heard {text:?}");
}

/// Each token comes with what the model thought of it by the row it was drawn from, and nobody
/// hears who did not ask.
pub(super) fn logprobs_are_those_of_the_text(
    (request, text, thoughts): (&Request, &[Token], &[Logprobs]),
    engine: &Scripted,
) {
    let Some(most) = request.sampling.logprobs else { return assert!(thoughts.is_empty()) };
    let before = |i: usize| [&request.prompt, &text[..i]].concat();
    let want = (0..text.len()).map(|i| Logprobs::of(&engine.logits(&before(i)), text[i], most));
    assert!(want.eq(thoughts.iter().cloned()), "{request:?}");
}

/// L2: what was settled is what was told, and a step's events are of different rows but for a last
/// word.
pub(super) fn tokens_out_equal_tokens_settled(settled: &Settled) {
    let told = settled.events.iter().map(|(_, event)| match event {
        RowEvent::Tokens(tokens, _) => tokens.len(),
        RowEvent::Seated | RowEvent::Logprobs(_) => 0,
        RowEvent::Finished(..) | RowEvent::Refused(_) | RowEvent::Late => 0,
    });
    assert_eq!(told.sum::<usize>(), settled.report.emitted);
    for pair in settled.events.windows(2) {
        let ended = matches!(pair[0].1, RowEvent::Finished(..));
        assert!(pair[0].0 != pair[1].0 || !ended, "{:?} spoke after its end", pair[0].0);
    }
}

/// L3 and L4: slots, pages and snapshots add up, and no more states are alive than allowed.
pub(super) fn the_ledger_is_clean(batch: &Batch) {
    batch.check_integrity().unwrap();
    assert!(batch.ledger().snapshots() <= batch.limits.snapshots_max);
}

/// What the engine holds never exceeds what it may.
pub(super) fn memory_stays_within_the_budget(engine: &Scripted) {
    let (used, budget) = (engine.memory(), engine.info().budget);
    assert!(used <= budget.bytes - budget.step, "{used} of {budget:?}");
}

/// A slot has one part in a step, and a row.
pub(super) fn no_slot_is_planned_twice(plan: &Plan, batch: &Batch) {
    let prefill = plan.prefill.iter().map(|c| c.slot);
    let all: Vec<Slot> = prefill.chain(plan.verify.iter().map(|v| v.slot)).collect();
    let unique: BTreeSet<Slot> = all.iter().copied().collect();
    assert_eq!(all.len(), unique.len(), "{plan:?}");
    assert!(unique.iter().all(|slot| batch.rows.contains_key(slot)), "{plan:?}");
}

/// A step feeds no more than its budget, unless that is below the grain: then one chunk up to it.
pub(super) fn the_token_budget_is_kept(plan: &Plan, knobs: &Knobs, batch: &Batch) {
    let verified: usize = plan.verify.iter().map(|v| 1 + usize::from(v.depth)).sum();
    let chunks: Vec<usize> =
        plan.prefill.iter().map(|c| c.end - c.start).filter(|&n| n > 0).collect();
    let mut budget = knobs.prefill_idle.saturating_sub(verified);
    if verified > 0 && knobs.stretch.is_none() {
        budget = budget.min(knobs.prefill_busy);
    }
    let fits = chunks.iter().sum::<usize>() <= budget;
    let least = chunks.len() == 1 && chunks[0] <= batch.limits.chunk_grain;
    assert!(fits || least, "{budget} tokens for {plan:?}");
}

/// Chunks end on the grain, at a boundary worth keeping or with the prompt.
pub(super) fn chunks_are_cut_where_they_may(plan: &Plan, batch: &Batch) {
    for chunk in &plan.prefill {
        let Row { request, start, .. } = &batch.rows[&chunk.slot];
        let on_grain = chunk.end.is_multiple_of(batch.limits.chunk_grain);
        let worth = request.boundaries.contains(&chunk.end);
        assert!(on_grain || worth || chunk.end == *start, "{chunk:?}");
        assert_eq!(chunk.sample, chunk.end == *start, "{chunk:?}");
        // None runs over a place that is to be kept, but for one that keeps it on its way.
        let over = request.boundaries.iter().filter(|&&b| chunk.start < b && b < chunk.end);
        assert!(over.copied().all(|b| Some(b) == chunk.mark), "{chunk:?}");
        assert!(chunk.mark.is_none_or(|at| chunk.start < at && at < chunk.end), "{chunk:?}");
    }
    let marks = plan.prefill.iter().filter(|chunk| chunk.mark.is_some()).count();
    assert!(marks <= usize::from(batch.info.marks), "{plan:?}");
}

/// Nobody drafts deeper than its request, the knobs and its room allow, but for drafts that its
/// grammar is sure of.
pub(super) fn depths_are_allowed(plan: &Plan, knobs: &Knobs, batch: &Batch) {
    for v in &plan.verify {
        let row = &batch.rows[&v.slot];
        let asked = row.request.draft_tokens.depth(knobs.depths.at(plan.verify.len()));
        let end = v.position + 2 + usize::from(v.depth);
        let sure = row.forced(usize::from(batch.info.depth_max)).len();
        let tuned = !matches!(row.request.draft_tokens, Drafts::Exactly(_));
        let asked = if tuned { asked.max(sure as u8) } else { asked };
        assert!(v.depth <= asked.min(batch.info.depth_max), "{v:?}");
        assert!(end <= batch.tokens_max(&row.request), "{v:?} goes beyond what is wanted");
    }
}

/// L5 for those who decode: all of them, every step, unless a prompt of another client is fed that
/// got no more than theirs by then, which is what bounds how often.
pub(super) fn whoever_decodes_is_in_every_step(plan: &Plan, batch: &Batch) {
    let in_it: BTreeSet<Slot> = plan.verify.iter().map(|v| v.slot).collect();
    let left_out =
        batch.rows.iter().filter(|(slot, row)| row.is_decoding() && !in_it.contains(*slot));
    for (_, row) in left_out {
        let theirs = row.request.standing.client;
        let others = batch.rows.values().filter(|row| !row.is_decoding());
        let first = others.filter(|row| row.request.standing.client != theirs);
        let first = first.map(|row| batch.rank(row)).min();
        assert!(first.is_some_and(|first| first <= batch.rank(row)), "{plan:?}");
    }
}

/// L5 for prompts: one of them goes on in every step, or in the next.
pub(super) fn prompts_go_on(plan: &Plan, batch: &Batch, stalled_before: bool) -> bool {
    let open = batch.rows.values().any(|row| !row.is_decoding());
    let stalled = open && plan.prefill.is_empty();
    assert!(!(stalled && stalled_before), "two steps without a prompt token");
    stalled
}

/// What those of a client that have a seat have left to be fed.
pub(super) fn prompts_left(batch: &Batch, client: Client) -> u64 {
    let left = |row: &Row| row.start - row.computed.min(row.start);
    let own = batch.rows.values().filter(|row| row.request.standing.client == client);
    own.map(|row| left(row) as u64).sum()
}

/// L5 for each prompt: it is done within the bound that ageing promises, in tokens fed to its own
/// client; `left` is what it and that client's others had left when it got its seat. Waiting for
/// another's state is no excuse; being in the background is one.
pub(super) fn no_prompt_starves(
    left: &BTreeMap<RequestId, (u64, u64)>,
    batch: &Batch,
    knobs: &Knobs,
) {
    for row in batch.rows.values().filter(|row| !row.is_decoding()) {
        if batch.rank(row).0 == Class::Background {
            continue;
        }
        let (cold, others) = left[&row.request.id];
        let bound = (PASSED + batch.info.slots as u64) * cold + others;
        let waited = batch.fairness.fed(row.request.standing.client) - row.since;
        // The step in which it ends may feed others too.
        let step = knobs.prefill_idle as u64;
        assert!(waited <= bound + step, "{:?} saw {waited} tokens pass", row.request.id);
    }
}

/// L5 for the queue: nobody is seated who stands behind one who still waits, and of one client and
/// class whoever came first is first.
pub(super) fn seats_are_given_by_rank(seated: &BTreeSet<RequestId>, batch: &Batch) {
    for row in batch.rows.values().filter(|row| !seated.contains(&row.request.id)) {
        let standing = row.request.standing;
        let rank = batch.fairness.rank(standing, row.arrived);
        for waiting in &batch.waiting {
            let theirs = batch.fairness.rank(waiting.request.standing, waiting.arrived);
            assert!(rank <= theirs, "{:?} before {:?}", row.request.id, waiting.request.id);
            let alike = waiting.request.standing == standing;
            assert!(!alike || row.arrived <= waiting.arrived, "{:?}", row.request.id);
        }
    }
}

/// Whoever was admitted has a seat or waits for one.
pub(super) fn nobody_is_lost(queue: &BTreeSet<RequestId>, batch: &Batch) {
    let running = batch.rows.values().map(|row| row.request.id);
    let all: Vec<RequestId> = running.chain(batch.waiting.iter().map(|w| w.request.id)).collect();
    let unique: BTreeSet<RequestId> = all.iter().copied().collect();
    assert_eq!((all.len(), &unique), (queue.len(), queue));
}

/// At most one row steps back a step, never for its own client, and only when it has had its turn.
pub(super) fn rows_step_back_seldom_and_for_others(
    before: &BTreeMap<RequestId, Row>,
    batch: &Batch,
) {
    let gone: Vec<&Waiting> =
        batch.waiting.iter().filter(|w| before.contains_key(&w.request.id)).collect();
    assert!(gone.len() <= 1, "{gone:?}");
    let Some(gone) = gone.first() else { return };
    let row = &before[&gone.request.id];
    let client = gone.request.standing.client;
    let new = |r: &&Row| !before.contains_key(&r.request.id);
    let mut came = batch.rows.values().filter(new).map(|r| r.request.standing);
    let had_none = |c| c != client && before.values().all(|r| r.request.standing.client != c);
    let has_time = gone.request.standing.class == Class::Background;
    let goes_before = |s: Standing| has_time && s.class == Class::Interactive;
    assert!(came.any(|s| had_none(s.client) || goes_before(s)));
    assert!(!row.is_decoding() || row.tokens.len() - row.start >= back::MADE_MIN);
    assert!(!row.firm, "{row:?}");
}

/// Rows beyond `rows_max` may go on when it falls, but none is added.
pub(super) fn no_seat_is_given_beyond_the_width(before: usize, knobs: &Knobs, batch: &Batch) {
    assert!(batch.rows.len() <= before.max(knobs.rows_max).max(1));
}

/// Who was cancelled has no part in the next plan, nor any seat.
pub(super) fn a_cancelled_row_is_gone_by_the_next_plan(gone: &BTreeSet<RequestId>, batch: &Batch) {
    let stays = batch.rows.values().find(|row| gone.contains(&row.request.id));
    assert!(stays.is_none(), "{stays:?}");
}

/// Plans are values: they print, and equal only themselves.
pub(super) fn plans_print_and_compare(plan: &Plan, before: &Plan) {
    let copy = plan.clone();
    assert_eq!(*plan, copy);
    assert_eq!(format!("{plan:?}"), format!("{copy:?}"));
    assert!(plan != before && format!("{plan:?}") != format!("{before:?}"));
}

/// L4 for prompts: what was fed and what was restored make the whole of it.
pub(super) fn forwarded_and_restored_make_the_prompt(forwarded: Option<&usize>, usage: &Usage) {
    let forwarded = forwarded.copied().unwrap_or(0);
    assert_eq!(forwarded + usage.cached, usage.prompt, "{usage:?}");
}

/// L4 for all prompts together, whoever was cancelled when: what was fed, restored or left behind,
/// and what those who are still here have to come, make up what was seated.
pub(super) fn all_prompts_add_up(books: &Books, batch: &Batch) {
    let running = batch.rows.values().map(|row| (&row.request, row.reached));
    let begun = |waiting: &Waiting| waiting.begun.as_ref().map(|begun| begun.reached);
    let waiting = batch.waiting.iter().filter_map(|w| Some((&w.request, begun(w)?)));
    let all = running.chain(waiting);
    let owed: u64 = all.map(|(request, reached)| (request.prompt.len() - reached) as u64).sum();
    assert_eq!(books.forwarded + books.restored + books.unfed + owed, books.seated, "{books:?}");
}

/// Who waits for a state is not fed, and the state is still to come.
pub(super) fn who_waits_for_a_state_waits_for_one_that_comes(plan: &Plan, batch: &Batch) {
    for (slot, row) in &batch.rows {
        let Some(share::Follow { leader, at }) = row.follows else { continue };
        assert!(!row.is_decoding() && plan.prefill.iter().all(|c| c.slot != *slot), "{plan:?}");
        let mut rows = batch.rows.values();
        let leader = rows.find(|r| r.request.id == leader).expect("whom it waits for is here");
        assert!(leader.follows.is_none() && !leader.is_decoding(), "{leader:?}");
        assert!(leader.stops.contains(&at) && leader.computed < at, "{leader:?}");
        assert_eq!(leader.tokens[..at], row.tokens[..at]);
    }
}

/// L4 for the bank: no two states of one tenant cover the same.
pub(super) fn equal_states_are_kept_once(deposits: &[Deposit], kept: &[Deposit]) {
    for (i, deposit) in deposits.iter().enumerate() {
        let others = deposits[..i].iter().chain(kept);
        let twin = others.filter(|other| other.prefix == deposit.prefix).count();
        assert_eq!(twin, 0, "{deposit:?} is kept twice");
    }
}

/// What a tenant left warm is nobody else's.
pub(super) fn nobody_starts_from_the_state_of_another_tenant(
    plan: &Plan,
    owners: &BTreeMap<SnapshotId, Tenant>,
    batch: &Batch,
) {
    // What a slot was given before is that of a row which stepped back.
    let last: BTreeMap<Slot, &Move> =
        plan.moves.iter().filter_map(|m| Some((m.slot()?, m))).collect();
    for step in last.into_values() {
        if let Move::Restore { slot, snapshot } = step
            && let (Some(row), Some(owner)) = (batch.rows.get(slot), owners.get(snapshot))
        {
            assert_eq!(row.request.sharing.tenant, *owner, "{plan:?}");
        }
    }
}

impl Move {
    /// The slot that begins anew with it.
    fn slot(&self) -> Option<Slot> {
        match self {
            Self::Clear { slot } | Self::Restore { slot, .. } => Some(*slot),
            Self::Save { .. } | Self::CopyPage { .. } | Self::Forget { .. } => None,
        }
    }
}
