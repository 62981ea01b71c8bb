//! Random damage: whatever a file says, loading ends soon and does not panic.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::fixture::{Model, load};

/// Generous: one loading takes milliseconds.
const LOAD_TIME_MAX: Duration = Duration::from_secs(10);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    /// `content` with one to four changes of bytes, spans or digits, or cut short.
    fn damage(&mut self, content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(content.len().max(1)).min(content.len().saturating_sub(1));
            match self.below(6) {
                0 => content.truncate(at),
                1 if at < content.len() => content[at] ^= 1 << self.below(8),
                2 if at < content.len() => content[at] = self.below(256) as u8,
                3 => drop(content.splice(at..at, b"99999999999".iter().copied())),
                4 => {
                    let end = (at + self.below(40)).min(content.len());
                    drop(content.drain(at..end));
                }
                _ => {
                    let digits: Vec<usize> =
                        (0..content.len()).filter(|&i| content[i].is_ascii_digit()).collect();
                    if !digits.is_empty() {
                        let digit = digits[self.below(digits.len())];
                        content[digit] = b'0' + self.below(10) as u8;
                    }
                }
            }
        }
        content
    }
}

/// Loads and reports whether that worked.
fn survives(folder: &Path, seed: u64) -> bool {
    let start = Instant::now();
    let result = load(folder);
    assert!(start.elapsed() < LOAD_TIME_MAX, "seed {seed} took {:?}", start.elapsed());
    if let Err(error) = &result {
        assert!(error.to_string().len() < 2000, "seed {seed}: {error}");
    }
    result.is_ok()
}

#[test]
fn damaged_settings_never_panic() {
    let folder = Model::small().write();
    for name in ["config.json", "mtplx_runtime.json", "generation_config.json"] {
        let path = folder.path().join(name);
        let content = match name {
            "config.json" => fs::read(&path).unwrap(),
            "mtplx_runtime.json" => {
                br#"{"mtp_depth_max": 3, "mtp_contract": {"hidden_variant": "post_norm"}}"#.to_vec()
            }
            _ => br#"{"eos_token_id": [60, 61]}"#.to_vec(),
        };
        let mut failed = 0;
        for seed in 0..400 {
            fs::write(&path, Random(seed).damage(&content)).unwrap();
            failed += usize::from(!survives(folder.path(), seed));
        }
        assert!(name == "mtplx_runtime.json" || failed > 200, "{name}: {failed} failed");
        fs::write(&path, &content).unwrap();
        assert!(survives(folder.path(), 0));
    }
}

#[test]
fn a_damaged_index_never_panics() {
    let model = Model::small();
    let folder = model.write();
    let names = model.trunk.keys().map(|name| format!("{name:?}: \"model.safetensors\""));
    let index = format!("{{\"weight_map\": {{{}}}}}", names.collect::<Vec<_>>().join(","));
    let path = folder.path().join("model.safetensors.index.json");
    for seed in 0..300 {
        fs::write(&path, Random(seed).damage(index.as_bytes())).unwrap();
        survives(folder.path(), seed);
    }
}

#[test]
fn a_damaged_header_never_panics() {
    let folder = Model::small().write();
    for name in ["model.safetensors", "mtp.safetensors"] {
        let path = folder.path().join(name);
        let content = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        let header = &content[8..8 + length];
        let mut failed = 0;
        for seed in 0..400 {
            // The length stays as it was, fits the damage, or is damaged too.
            let damaged = Random(seed).damage(header);
            let stated = match seed % 3 {
                0 => length,
                1 => damaged.len(),
                _ => Random(seed ^ 0xabcd).below(usize::MAX) >> (seed % 64),
            };
            let data = &content[8 + length..];
            let new = [&(stated as u64).to_le_bytes()[..], &damaged, data].concat();
            fs::write(&path, new).unwrap();
            failed += usize::from(!survives(folder.path(), seed));
        }
        assert!(name == "mtp.safetensors" || failed > 200, "{failed} failed");
        fs::write(&path, &content).unwrap();
    }
}

#[test]
fn a_shard_cut_anywhere_never_panics() {
    let folder = Model::small().write();
    let path = folder.path().join("model.safetensors");
    let content = fs::read(&path).unwrap();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    for seed in 0..200 {
        let keep = Random(seed).below(content.len());
        // No checkpoint is alive here, so the file may be cut in place.
        file.set_len(keep as u64).unwrap();
        assert!(!survives(folder.path(), seed), "seed {seed} loaded {keep} bytes");
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&content).unwrap();
    }
    assert!(survives(folder.path(), 0));
}
