//! The checkpoints of this repository, and many that nobody would want.

mod convert;
mod damage;
mod fixture;
mod forms;
mod fuzz;
mod heads;
mod mixtures;
mod noise;
mod places;
mod settings;

use std::fs;

use super::{
    Checkpoint, Dtype, FeedForward, Files, Format, Layer, LayerKind, Linear, Mixer, Mlp,
    NormEncoding,
};
use fixture::{load, repository, tensors};

const BF16: &str = "tests/golden/bf16";
const Q8: &str = "config/models/tiny-q8";

/// Every matrix of a checkpoint, trunk and head.
fn linears(checkpoint: &Checkpoint) -> Vec<&Linear> {
    let mut all = vec![&checkpoint.embed];
    all.extend(&checkpoint.head);
    checkpoint.layers.iter().for_each(|layer| all.extend(of_layer(layer)));
    if let Ok(mtp) = &checkpoint.mtp {
        all.push(&mtp.fc);
        mtp.layers.iter().for_each(|layer| all.extend(of_layer(layer)));
    }
    all
}

fn of_layer<'a>(layer: &'a Layer) -> Vec<&'a Linear> {
    let of_mlp = |mlp: &'a Mlp| [&mlp.gate, &mlp.up, &mlp.down];
    let mlp = match &layer.mlp {
        FeedForward::Dense(mlp) => of_mlp(mlp).to_vec(),
        FeedForward::Experts(moe) => {
            let experts = moe.experts.iter().chain([&moe.shared]).flat_map(of_mlp);
            experts.chain([&moe.router, &moe.shared_gate]).collect()
        }
    };
    let mixer = match &layer.mixer {
        Mixer::Gdn(gdn) => vec![&gdn.in_qkv, &gdn.in_z, &gdn.in_b, &gdn.in_a, &gdn.out],
        Mixer::Attention(attention) => {
            vec![&attention.q, &attention.k, &attention.v, &attention.o]
        }
    };
    mixer.into_iter().chain(mlp).collect()
}

/// Every vector of a checkpoint, trunk and head.
fn vectors(checkpoint: &Checkpoint) -> Vec<&[f32]> {
    let mut all = vec![checkpoint.norm.as_slice()];
    let mut layers: Vec<&Layer> = checkpoint.layers.iter().collect();
    if let Ok(mtp) = &checkpoint.mtp {
        all.extend([mtp.norm.as_slice(), &mtp.embedding_norm, &mtp.hidden_norm]);
        layers.extend(&mtp.layers);
    }
    for layer in layers {
        all.extend([layer.input_norm.as_slice(), &layer.post_norm]);
        match &layer.mixer {
            Mixer::Gdn(gdn) => {
                all.extend([gdn.conv.as_slice(), &gdn.a_log, &gdn.dt_bias, &gdn.norm]);
            }
            Mixer::Attention(attention) => {
                all.extend([attention.q_norm.as_slice(), &attention.k_norm]);
            }
        }
    }
    all
}

/// Equal in every number that an engine would see.
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(vectors(a), vectors(b));
    let (a, b) = (linears(a), linears(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.into_iter().zip(b) {
        assert_eq!((&a.path, a.out, a.input), (&b.path, b.out, b.input));
        for row in [0, a.out / 2, a.out - 1] {
            assert_eq!(a.row_f32(row), b.row_f32(row), "{} row {row}", a.path);
        }
    }
}

#[test]
fn the_golden_checkpoint_loads_whole() {
    let checkpoint = load(&repository(BF16)).unwrap();
    let config = &checkpoint.config;
    assert_eq!((config.hidden, config.ffn, config.vocab), (512, 1024, 8192));
    assert_eq!(config.layers.iter().filter(|&&kind| kind == LayerKind::Attention).count(), 2);
    assert_eq!(config.layers[3], LayerKind::Attention);
    assert_eq!((config.rope.theta, config.rope.dims), (50_000.0, 32));
    assert_eq!((config.gdn.channels(), config.positions_max), (1024, 4096));
    assert_eq!(config.eos, [8160, 8162]);
    assert_eq!(config.mtp.depth_max, Some(3));
    assert!(config.tied && checkpoint.head.is_none());
    assert_eq!(checkpoint.unused, [""; 0]);
    // The two files less their headers.
    assert_eq!(checkpoint.bytes_total, 50_463_519 - 13_455 + 6_298_636 - 1_548);
    let mtp = checkpoint.mtp.as_ref().unwrap();
    assert_eq!((mtp.layers.len(), mtp.source.as_str()), (1, "mtp.safetensors"));
    assert_eq!(mtp.encoding, NormEncoding::Absolute);
    assert_eq!((mtp.fc.out, mtp.fc.input), (512, 1024));
}

#[test]
fn every_byte_is_where_the_reference_reader_finds_it() {
    for folder in [BF16, Q8] {
        let checkpoint = load(&repository(folder)).unwrap();
        let mut reference = tensors(&repository(folder).join("model.safetensors"));
        reference.extend(tensors(&repository(folder).join("mtp.safetensors")));
        for tensor in linears(&checkpoint).into_iter().flat_map(Linear::tensors) {
            let raw = &reference[tensor.name()];
            assert_eq!((tensor.shape(), tensor.bytes()), (&raw.shape[..], &raw.bytes[..]));
            assert_eq!(tensor.dtype().to_string(), format!("{:?}", raw.dtype));
        }
    }
}

#[test]
fn the_embedded_checkpoint_is_the_golden_one_in_eight_bits() {
    let golden = load(&repository(BF16)).unwrap();
    let q8 = load(&repository(Q8)).unwrap();
    assert_eq!(vectors(&golden), vectors(&q8));
    for (dense, packed) in linears(&golden).into_iter().zip(linears(&q8)) {
        let Format::Affine { bits: 8, group: 64, scales, .. } = &packed.format else {
            panic!("{} is {:?}", packed.path, packed.format);
        };
        assert_eq!(scales.dtype(), Dtype::BF16);
        for row in (0..dense.out).step_by(97) {
            let (a, b) = (dense.row_f32(row), packed.row_f32(row));
            let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let apart = a.iter().zip(&b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
            assert!(apart <= largest / 60.0, "{} row {row}: {apart} of {largest}", dense.path);
        }
    }
}

#[test]
fn a_checkpoint_from_the_binary_equals_the_one_on_disk_at_any_alignment() {
    let on_disk = load(&repository(Q8)).unwrap();
    for offset in [0, 1] {
        let mut files: Vec<(&'static str, &'static [u8])> = vec![];
        for name in ["config.json", "model.safetensors", "mtp.safetensors", "mtplx_runtime.json"] {
            let mut content = vec![0; offset];
            content.extend(fs::read(repository(Q8).join(name)).unwrap());
            files.push((name, &content.leak()[offset..]));
        }
        let files = Files::embedded("the embedded model", files.leak());
        let embedded = Checkpoint::load(&files).unwrap();
        assert_same(&on_disk, &embedded);
        assert_eq!(on_disk.identity, embedded.identity);
        assert_eq!(on_disk.bytes_total, embedded.bytes_total);
        for tensor in linears(&embedded).into_iter().flat_map(Linear::tensors) {
            let (bytes, size) = (tensor.bytes(), tensor.dtype().size());
            let words = tensor.as_u32().iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
            let halves = tensor.as_u16().iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
            let (same, none) = if size == 4 { (words, halves) } else { (halves, words) };
            assert!(same == bytes && none.is_empty(), "{}", tensor.name());
        }
    }
}

#[test]
fn clones_share_their_bytes_and_cross_threads() {
    fn check<T: Clone + Send + Sync>(value: &T) -> T {
        value.clone()
    }
    let checkpoint = load(&repository(Q8)).unwrap();
    let copy = check(&checkpoint);
    let (a, b) = (linears(&checkpoint)[1], linears(&copy)[1]);
    let (a, b) = (a.tensors().next().unwrap(), b.tensors().next().unwrap());
    assert_eq!(a.bytes().as_ptr(), b.bytes().as_ptr());
    drop(checkpoint);
    assert!(!copy.embed.row_f32(0).is_empty());
}

#[test]
fn the_identity_follows_contents_and_settings() {
    let model = fixture::Model::small();
    let identity = |model: &fixture::Model| model.load().unwrap().identity;
    let first = identity(&model);
    assert_eq!(first, identity(&model));
    assert_eq!(first.len(), 32);
    let mut other = model.clone();
    other.config["text_config"]["rms_norm_eps"] = 1e-5.into();
    assert_ne!(first, identity(&other));
    let mut other = model.clone();
    other.tensor("layers.1.mlp.up_proj.weight").bytes[0] ^= 1;
    assert_ne!(first, identity(&other));
    let mut other = model;
    other.head.clear();
    assert_ne!(first, identity(&other));
}
