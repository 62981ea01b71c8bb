//! Files of parked states that were damaged, or written by somebody else: read to the end or
//! refused, by nothing that takes more memory than the file is long.

use mtplx_core::image::{Image, Part};
use mtplx_core::prefix::Prefix;
use mtplx_core::{Tenant, Token};
use mtplx_fuzz::{Bound, Corpus, fuzz};

use crate::bank::disk::{Label, read, write};
use mtplx_core::batch::Kind;

/// Bytes before the head's own, as the format has it.
const FRONT: usize = 24;
const SUM: usize = 32;

fn file(tokens: &[Token], parts: usize) -> Vec<u8> {
    let prefix = Prefix { tenant: Tenant(3), tokens: tokens.into() };
    let label = Label { identity: "a model".into(), prefix, kind: Kind::Reply };
    let part = |i: usize| Part {
        name: format!("kv{i}"),
        dtype: "bf16".into(),
        shape: vec![2, i],
        bytes: vec![7; 4 * i],
    };
    let mut bytes = Vec::new();
    write(&mut bytes, &label, &Image { parts: (0..parts).map(part).collect() }).unwrap();
    bytes
}

/// Sums and lengths as they would be if the file had been written like this: what is behind them
/// is reached, too.
fn forged(input: &[u8]) -> Option<Vec<u8>> {
    let word = input.get(12..16)?;
    let told = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize;
    let head = told.min(input.len().checked_sub(FRONT + 2 * SUM)?);
    let mut bytes = input.to_vec();
    bytes[12..16].copy_from_slice(&(head as u32).to_le_bytes());
    let body = bytes.len() - FRONT - head - 2 * SUM;
    bytes[16..24].copy_from_slice(&(body as u64).to_le_bytes());
    let sum = blake3::hash(&bytes[..FRONT + head]);
    let after = FRONT + head + SUM;
    bytes[FRONT + head..after].copy_from_slice(sum.as_bytes());
    let end = bytes.len() - SUM;
    let mut hasher = blake3::Hasher::new();
    hasher.update(sum.as_bytes()).update(&bytes[after..end]);
    bytes[end..].copy_from_slice(hasher.finalize().as_bytes());
    Some(bytes)
}

#[test]
fn fuzz_files_of_the_bank() {
    let seeds = [file(&[1, 2, 3], 2), file(&[9; 40], 0), file(&[5], 6)];
    let words =
        ["\"tokens\":", "\"bytes\":", "\"parts\":[", "\"kind\":\"root\"", "4611686018427387904"];
    let bound = Bound { fixed: 64 << 10, each: 64 };
    fuzz("bank files", &Corpus::new(seeds, &words), (bound, 1), |input| {
        let len = input.len() as u64;
        let _ = read(&mut &*input, len);
        // Shorter than its folder says.
        let _ = read(&mut &*input, len + 9);
        if let Some(forged) = forged(input) {
            let _ = read(&mut &*forged, forged.len() as u64);
        }
    });
}
