//! Rows that step back on the real engine: parked in the middle of their text and gone on with, to
//! the bit what they would have been.

use std::sync::Arc;

use mtplx_core::accept::Rule;
use mtplx_core::fairness::{Client, Standing};
use mtplx_core::request::{Drafts, Limits, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Tenant, Token};

use crate::house::{House, Q8, engine, prompts};

fn sampling(i: usize) -> Sampling {
    Sampling {
        temperature: [0.0, 0.7, 1.0][i % 3],
        presence_penalty: [0.0, 0.5][i % 2],
        seed: i as u64,
        rule: Rule::Coupled,
        ..Sampling::default()
    }
}

fn asks(house: &mut House, client: u64, prompt: &[Token], of: Sampling, n: usize) -> RequestId {
    let request = Request {
        id: RequestId(0),
        prompt: prompt.into(),
        sampling: of,
        limits: Limits { new_tokens_max: n, stop_tokens: Arc::default() },
        draft_tokens: Drafts::Tuned,
        boundaries: Vec::new(),
        resumed: 0,
        sharing: Sharing { tenant: Tenant(client), ..Sharing::default() },
        standing: Standing { client: Client(client), group: Client(client), ..Standing::default() },
    };
    house.admit(request, None)
}

#[test]
fn a_row_that_steps_back_goes_on_to_the_bit_as_if_it_had_not() {
    let mut house = House::new(engine(Q8, None, 2));
    let prompts = prompts(12);
    let want: Vec<_> =
        (0..3).map(|i| house.alone(&prompts[i], sampling(i), 400, 0).tokens).collect();
    for depth in [0, 2] {
        let before: usize = house.reports.iter().map(|report| report.stepped_back).sum();
        let long: Vec<_> =
            (0..3).map(|i| asks(&mut house, 1, &prompts[i], sampling(i), 400)).collect();
        // Others come and go: each makes one of the two rows step back.
        for (i, prompt) in prompts[4..10].iter().enumerate() {
            asks(&mut house, 2 + i as u64, prompt, sampling(i), 20);
            (0..40).for_each(|_| house.step(depth));
        }
        house.run(depth);
        for (id, want) in long.iter().zip(&want) {
            assert_eq!(house.told(*id).tokens, *want, "depth {depth}");
        }
        let stepped: usize = house.reports.iter().map(|report| report.stepped_back).sum();
        assert!(stepped - before >= 3, "{}", stepped - before);
        assert!(house.reports.iter().all(|report| report.unaccounted == 0));
    }
}
