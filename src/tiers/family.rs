//! Which architecture a configuration names, and whether it is known to have an MTP head.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// What config.json says of the architecture.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Architecture {
    /// Its name for people.
    pub name: String,
    /// The outermost `model_type`.
    pub model_type: String,
    /// Whether this program runs models of this kind.
    pub runs: bool,
    /// How many MTP layers it speaks of, by whatever key; null where it is silent.
    pub mtp_layers: Option<u64>,
    /// Layers of the trunk; null where it is silent, as below.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden: Option<u64>,
    /// Rows of the embedding.
    pub vocab: Option<u64>,
    /// Positions it was made for.
    pub context: Option<u64>,
}

/// Families by what their `model_type` begins with; the longest beginning decides.
const FAMILIES: [(&str, &str); 33] = [
    ("qwen3_5", "Qwen3.5"),
    ("qwen3_5_moe", "Qwen3.5 MoE"),
    ("qwen3_next", "Qwen3-Next"),
    ("qwen4", "Qwen4"),
    ("prism_hadamard_qwen35", "Bonsai"),
    ("deepseek_v2", "DeepSeek V2"),
    ("deepseek_v3", "DeepSeek V3"),
    ("deepseek_v32", "DeepSeek V3.2"),
    ("deepseek_v4", "DeepSeek V4"),
    ("glm4_moe", "GLM-4 MoE"),
    ("glm4_moe_lite", "GLM-4 MoE Lite"),
    ("glm_moe_dsa", "GLM MoE DSA"),
    ("glm_ocr", "GLM-OCR"),
    ("mimo", "MiMo"),
    ("minimax", "MiniMax"),
    ("minimax_m2", "MiniMax M2"),
    ("nemotron_h", "Nemotron-H"),
    ("step3", "Step-3"),
    ("hy_v3", "HY-V3"),
    ("hunyuan", "Hunyuan"),
    ("ernie4_5", "ERNIE 4.5"),
    ("exaone", "EXAONE"),
    ("longcat", "LongCat"),
    ("pangu", "Pangu"),
    ("gemma", "Gemma"),
    ("laguna", "Laguna"),
    ("lfm2", "LFM2"),
    ("kimi", "Kimi"),
    ("llama", "Llama"),
    ("mistral", "Mistral"),
    ("qwen2", "Qwen2"),
    ("qwen3", "Qwen3"),
    ("gpt_oss", "gpt-oss"),
];

/// Types that are run, as the loader says too.
const RUNS: [&str; 5] =
    ["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"];

/// Names of the number of MTP layers in files of different origin.
const MTP_KEYS: [&str; 7] = [
    "mtp_num_hidden_layers",
    "num_nextn_predict_layers",
    "nextn_predict_layers",
    "num_mtp_modules",
    "num_mtp_layers",
    "mtp_num_layers",
    "n_predict",
];

impl Architecture {
    /// What `config` says; `None` unless it is an object.
    pub(super) fn of(config: &Value) -> Option<Self> {
        let top = config.as_object()?;
        let text = config.get("text_config").filter(|text| text.is_object()).unwrap_or(config);
        let count = |key: &str| [text, config].iter().find_map(|level| level.get(key)?.as_u64());
        let listed = top.get("architectures").and_then(|list| list.get(0)?.as_str());
        let kind = [config, text].iter().find_map(|level| level.get("model_type")?.as_str());
        let kind = short(kind.unwrap_or_default());
        let name = match (family(&kind), listed) {
            (Some(name), _) => name.to_owned(),
            (None, Some(listed)) => short(listed),
            (None, None) if kind.is_empty() => "unnamed".to_owned(),
            (None, None) => kind.clone(),
        };
        let spoken = MTP_KEYS.iter().find_map(|key| count(key));
        let named = kind.contains("mtp") || kind.contains("nextn");
        Some(Self {
            name,
            runs: RUNS.contains(&kind.as_str()),
            mtp_layers: spoken.or(named.then_some(1)),
            layers: count("num_hidden_layers"),
            hidden: count("hidden_size"),
            vocab: count("vocab_size"),
            context: count("max_position_embeddings"),
            model_type: kind,
        })
    }

    /// That it is not run, in a sentence.
    pub(super) fn told(&self) -> String {
        let name = &self.name;
        match self.mtp_layers {
            Some(n) if n > 0 => format!(
                "{name} is an architecture that this program does not run, though it has {n} MTP \
                 layer{}",
                if n == 1 { "" } else { "s" }
            ),
            _ => format!("{name} is an architecture that this program does not run"),
        }
    }
}

fn family(kind: &str) -> Option<&'static str> {
    let kind = kind.to_lowercase();
    let fits = FAMILIES.iter().filter(|(start, _)| kind.starts_with(start));
    fits.max_by_key(|(start, _)| start.len()).map(|&(_, name)| name)
}

/// Fit for a message: a file may say anything.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_longest_beginning_names_the_family() {
        for (kind, name) in [
            ("deepseek_v3", "DeepSeek V3"),
            ("deepseek_v32", "DeepSeek V3.2"),
            ("glm4_moe", "GLM-4 MoE"),
            ("mimo_v2_flash", "MiMo"),
            ("minimax_m2", "MiniMax M2"),
            ("nemotron_h", "Nemotron-H"),
            ("qwen3_5_moe_text", "Qwen3.5 MoE"),
        ] {
            assert_eq!(family(kind), Some(name));
        }
        assert_eq!(family("granite"), None);
    }

    #[test]
    fn unknown_kinds_are_called_what_they_call_themselves() {
        let of = |config| Architecture::of(&config).unwrap();
        let known = of(json!({"model_type": "granite", "architectures": ["GraniteForCausalLM"],
            "num_nextn_predict_layers": 2}));
        assert_eq!((known.name.as_str(), known.mtp_layers), ("GraniteForCausalLM", Some(2)));
        assert!(known.told().contains("2 MTP layers"), "{}", known.told());
        assert_eq!(of(json!({})).name, "unnamed");
        assert_eq!(of(json!({"model_type": "x_mtp"})).mtp_layers, Some(1));
        assert_eq!(Architecture::of(&json!([])), None);
    }
}
