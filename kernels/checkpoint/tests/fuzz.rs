//! Checkpoints that somebody else made: headers and configurations are understood or refused, by
//! nothing that takes more memory than they are long.

use std::fs;

use mtplx_fuzz::{Bound, Corpus, fuzz};

use super::fixture::repository;
use crate::checkpoint::{Bytes, Files, config, header};

#[global_allocator]
static COUNTING: mtplx_fuzz::memory::Counting = mtplx_fuzz::memory::Counting;

fn safetensors(json: &str, data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.extend(vec![1; data]);
    file
}

#[test]
fn fuzz_headers_of_safetensors() {
    let seeds = [
        safetensors(
            &serde_json::json!({
                "__metadata__": {"format": "mlx"},
                "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
                "b": {"dtype": "U32", "shape": [1], "data_offsets": [12, 16]},
            })
            .to_string(),
            16,
        ),
        safetensors(r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4),
        safetensors("{}", 0),
    ];
    let words = ["\"shape\":[", "\"data_offsets\":[", "\"dtype\":\"I8\"", "\"a\":"];
    let bound = Bound { fixed: 64 << 10, each: 256 };
    fuzz("safetensors", &Corpus::new(seeds, &words), (bound, 1), |input| {
        let _ = header::entries("it", &Bytes::from(input.to_vec()));
        // As long as it says, so that what is within is reached.
        if let Some(rest) = input.get(8..) {
            let end = rest.iter().rposition(|&b| b == b'}').map_or(0, |at| at + 1);
            let text = String::from_utf8_lossy(&rest[..end]);
            let mended = safetensors(&text, rest.len() - end);
            let _ = header::entries("it", &Bytes::from(mended));
        }
    });
}

#[test]
fn fuzz_configurations_of_models() {
    let read = |model: &str| fs::read(repository(model).join("config.json")).unwrap();
    let models = ["config/models/tiny-q8", "tests/golden/moe/moe-q4", "tests/golden/moe/next-q8"];
    let words = ["rope_parameters", "yarn", "quantization", "bits", "group_size", "qwen3_next"];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let bound = Bound { fixed: 16 << 20, each: 512 };
    fuzz("config.json", &Corpus::new(models.map(read), &words), (bound, 2), |input| {
        fs::write(&path, input).unwrap();
        let _ = config::read(&Files::folder(folder.path()).unwrap());
    });
}
