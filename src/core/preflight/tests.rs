use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Of the dense family all but a few numbers are the same.
fn dense(
    hidden: usize,
    layers: usize,
    inner: usize,
    values: usize,
    heads: (usize, usize),
) -> Shape {
    Shape {
        hidden,
        vocab: 248_320,
        tied: hidden < 4096,
        gdn_layers: layers / 4 * 3,
        attention_layers: layers / 4,
        attention: Heads { queries: heads.0, kv: heads.1, dim: 256 },
        gdn: GdnHeads { keys: 16, values, key_dim: 128, value_dim: 128 },
        ffn: Ffn::Dense(inner),
        mtp: true,
    }
}

/// Qwen3.5-27B and Qwen3.6-27B.
fn large() -> Shape {
    dense(5120, 64, 17_408, 48, (24, 4))
}

const Q4: Precision = Precision { weight_bits: 4, group: 64, float_bytes: 2, weights_total: None };

fn wish() -> Wish {
    Wish {
        context_tokens: 200_000,
        clients: 8,
        spare_slots: 0,
        snapshots: 16,
        depth: 3,
        step_tokens: 512,
        page_tokens: 32,
    }
}

#[test]
fn parameters_are_those_of_the_published_models() {
    let count = |w: Weights| (w.matrix + w.vector) as f64;
    for (shape, trunk, head) in [
        (dense(1024, 24, 3584, 16, (8, 2)), 0.752e9, 20.5e6),
        (dense(2048, 24, 6144, 16, (8, 2)), 1.882e9, 60.8e6),
        (dense(2560, 32, 9216, 32, (16, 4)), 4.206e9, 120.6e6),
        (dense(4096, 32, 12_288, 32, (16, 4)), 8.954e9, 243.3e6),
        (large(), 26.896e9, 424.7e6),
    ] {
        let (t, h) = (count(shape.trunk()), count(shape.head()));
        assert!((t / trunk - 1.0).abs() < 1e-3, "{t} for {trunk}");
        assert!((h / head - 1.0).abs() < 3e-3, "{h} for {head}");
    }
}

#[test]
fn a_27b_in_four_bits_needs_what_was_worked_out_by_hand() {
    let e = estimate(&large(), &Q4, &wish());
    // 26.896 G weights of 4.5 bits; 424.7 M for the head.
    assert!((e.weights as f64 / 15.13e9 - 1.0).abs() < 2e-3, "{}", e.weights);
    assert!((e.mtp_weights as f64 / 239e6 - 1.0).abs() < 2e-3, "{}", e.mtp_weights);
    // 16 layers and the head: 2 · 4 heads · 256 · 2 bytes each.
    assert_eq!(e.kv_token, 17 * 4096);
    assert_eq!(e.kv, 8 * 200_000 * 17 * 4096, "6250 whole pages each: 103.8 GiB");
    // 48 layers of 48 heads of 128 × 128 in fp32.
    assert_eq!(e.state_slot, 144 * MIB);
    assert_eq!(e.states, 1152 * MIB);
    // A layer: 4 · 48 · (128 + 128 + 2) · 4 bytes of tape, 7 · 10240 · 2 bytes of window.
    let layer = 4 * 48 * 258 * 4 + 7 * 10_240 * 2;
    assert_eq!(e.tapes, 8 * (48 * layer + 4 * 5120 * 2));
    // A parked state: 144 MiB, 2.8125 MiB of windows, 10 KiB of carry.
    assert_eq!(e.snapshots, 16 * (144 * MIB + 48 * 3 * 10_240 * 2 + 10_240));
    // 512 tokens: 3 · 5120 + 3 · 17408 elements of 2 bytes; 32 rows of logits in 2 + 4 bytes.
    assert_eq!(e.activations, 512 * (3 * 5120 + 3 * 17_408) * 2 + 32 * 248_320 * 6);
    // 24 heads, 512 tokens over 200 000 in 2 bytes.
    assert_eq!(e.scores, 24 * 512 * 200_000 * 2);
    assert!((126.2..126.4).contains(&(e.total() as f64 / GIB as f64)), "{}", e.total());
}

#[test]
fn eight_clients_with_long_prompts_need_the_larger_machine() {
    // Three quarters of the machine, as MLX's device limit on a Mac.
    let small = fit(&large(), &Q4, &wish(), 96 * GIB);
    assert!(!small.fits());
    assert_eq!(small.clients_max, 5, "15 + 5 · 13.2 GiB and what a step needs");
    assert!((140_000..150_000).contains(&small.context_max), "{}", small.context_max);
    // One prompt of 200 000 tokens beside seven of 8192 is no question there.
    let seven = Wish { context_tokens: 8192, clients: 7, ..wish() };
    let one = Wish { clients: 1, ..wish() };
    let both = estimate(&large(), &Q4, &one).total() + estimate(&large(), &Q4, &seven).kv;
    assert!(both < 48 * GIB, "{both}");
    let large_machine = fit(&large(), &Q4, &wish(), 384 * GIB);
    assert!(large_machine.fits());
    assert_eq!(large_machine.context_max, 200_000);
    assert!(large_machine.clients_max >= 25, "{}", large_machine.clients_max);
}

#[test]
fn experts_are_all_held_and_few_of_them_run() {
    let shape = Shape {
        attention: Heads { queries: 16, kv: 2, dim: 256 },
        ffn: Ffn::Experts { experts: 256, active: 8, inner: 512, shared: 512 },
        tied: false,
        ..dense(2048, 40, 0, 32, (16, 2))
    };
    let e = estimate(&shape, &Q4, &wish());
    // 35 G weights of 4.5 bits.
    assert!((19.0e9..20.0e9).contains(&(e.weights as f64)), "{}", e.weights);
    assert_eq!(e.state_slot, 60 * MIB);
    assert_eq!(e.kv_token, 11 * 2048);
    assert!(e.activations < estimate(&large(), &Q4, &wish()).activations);
}

#[test]
fn whatever_a_file_says_no_product_overflows() {
    let huge = 1 << 20;
    let shape = Shape {
        gdn: GdnHeads { keys: huge, values: huge, key_dim: huge, value_dim: huge },
        ..dense(huge, 4096, huge, huge, (huge, huge))
    };
    let e = estimate(&shape, &Q4, &Wish { clients: huge, context_tokens: 1 << 30, ..wish() });
    assert_eq!(e.total(), u64::MAX);
}

#[test]
fn a_model_too_large_for_the_machine_fits_nobody() {
    let fit = fit(&large(), &Q4, &wish(), 8 * GIB);
    assert_eq!((fit.fits(), fit.clients_max, fit.context_max), (false, 0, 0));
}

#[test]
fn the_spare_slot_in_which_states_are_set_aside_is_counted() {
    let (e, spare) = (
        estimate(&large(), &Q4, &wish()),
        estimate(&large(), &Q4, &Wish { spare_slots: 1, ..wish() }),
    );
    assert_eq!(spare.states, e.states + e.state_slot);
    assert_eq!(spare.tapes * 8, e.tapes * 9);
    assert_eq!(spare.total() - e.total(), e.state_slot + e.tapes / 8, "and nothing else");
    // Also where nobody is served.
    let nobody = Wish { clients: 0, spare_slots: 1, ..wish() };
    assert_eq!(estimate(&large(), &Q4, &nobody).states, e.state_slot);
}
