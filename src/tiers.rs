//! What a folder is as a model, and whether it is to be served: from its configuration and the
//! headers of its weights alone. The loader's own code looks at them ([`Checkpoint::survey`]), so
//! what is called sound here can be loaded, but for elements that are no numbers.

pub mod contract;
mod download;
pub mod family;
pub mod gate;

use std::fmt;
use std::path::Path;

use mtplx_kernels::checkpoint::{Checkpoint, Error, Files, LayerKind, NoHead, Override, Survey};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use self::contract::{Standing, Verification};
use self::family::Architecture;

/// How much is known of a model.
#[derive(Clone, Copy, Debug, Hash, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// It runs, and passed the gates of `mtplx verify` as it is.
    Verified,
    /// It runs, and nobody has verified that drafting leaves its texts alone.
    Unverified,
    /// It is sound, and of a kind that this program does not run.
    Incompatible,
    /// It runs, and has no head that drafts, or none that is run here.
    NoMtp,
    /// It is incomplete or broken.
    Damaged,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Verified, Self::Unverified, Self::Incompatible, Self::NoMtp, Self::Damaged];

    /// Its name, as it stands in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unverified => "unverified",
            Self::Incompatible => "incompatible",
            Self::NoMtp => "no-mtp",
            Self::Damaged => "damaged",
        }
    }

    /// How `mtplx inspect` ends: as the original's does, which knows no damage.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Verified => 0,
            Self::NoMtp => 2,
            Self::Unverified => 3,
            Self::Incompatible => 4,
            Self::Damaged => 5,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What was found of a model.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct Judged {
    /// How much is known of it.
    pub tier: Tier,
    /// Why, the weightiest first; never empty.
    pub reasons: Vec<String>,
    /// What to do about it; null where there is nothing to do.
    pub mend: Option<String>,
    /// What its configuration says; null where that cannot be read.
    pub architecture: Option<Architecture>,
    /// Its weights; null where they cannot be loaded.
    pub weights: Option<Weights>,
    /// What its contract says of the gates; null where it says nothing.
    pub verification: Option<Verification>,
    /// What a contract would have to name: a digest of configuration, headers and sizes; null where
    /// the weights cannot be loaded.
    pub fingerprint: Option<String>,
}

/// Weights that can be loaded.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// The safetensors files that they stand in.
    pub files: Vec<String>,
    /// Bytes of all tensors.
    pub bytes: usize,
    /// How they are stored.
    pub quantization: String,
    /// Layers of gated DeltaNet.
    pub gdn_layers: usize,
    /// Layers of full attention.
    pub attention_layers: usize,
    /// Experts of a layer; 0 in a dense model.
    pub experts: usize,
    /// Layers of the MTP head; 0 where there is none that is run.
    pub mtp_layers: usize,
    /// The files of the MTP head; null where there is none that is run.
    pub mtp_source: Option<String>,
    /// Tensors that nobody would read.
    pub unused_tensors: usize,
}

/// Looks at the folder `path`. Whatever it holds, there is an answer.
#[must_use]
pub fn judge(path: &Path) -> Judged {
    let files = match Files::headers(path) {
        Ok(files) => files,
        Err(error) => return Judged::new(Tier::Damaged, error),
    };
    let mut judged = judge_files(&files);
    if judged.tier == Tier::Damaged
        && let Some(sign) = download::sign(path)
    {
        judged.reasons.push(format!("its download is not finished: there is {sign}"));
        let mend = "let the download finish, by the program that began it";
        judged.mend = Some(mend.to_owned());
    }
    judged
}

/// Looks at `files`, wherever they are.
#[must_use]
pub fn judge_files(files: &Files) -> Judged {
    let architecture = architecture(files);
    let mut judged = match foreign_weights(files) {
        Some(error) => Judged::new(Tier::Incompatible, error),
        None => match Checkpoint::survey(files).and_then(|s| with_text(files, s)) {
            Ok(survey) => judge_survey(files, &survey),
            Err(error @ Error::Unsupported { .. }) => {
                let mut judged = Judged::new(Tier::Incompatible, error);
                let named = architecture.as_ref().filter(|a| !a.runs);
                judged.reasons.splice(..0, named.map(Architecture::told));
                judged
            }
            Err(error) => Judged::new(Tier::Damaged, error),
        },
    };
    judged.architecture = architecture;
    judged
}

/// What config.json says, if it says anything.
fn architecture(files: &Files) -> Option<Architecture> {
    let text = files.text("config.json").ok()??;
    let config: Value = serde_json::from_str(&text).ok()?;
    Architecture::of(&config)
}

/// Weights in a form that is not read here, where there are no others.
fn foreign_weights(files: &Files) -> Option<Error> {
    const FOREIGN: [&str; 6] = [".gguf", ".bin", ".pth", ".pt", ".npz", ".onnx"];
    let names = files.names().ok()?;
    if names.iter().any(|name| name.contains(".safetensors")) {
        return None;
    }
    let foreign = |name: &&String| FOREIGN.iter().any(|end| name.ends_with(end));
    let found = names.iter().find(foreign)?;
    Some(Error::Unsupported {
        file: files.label().to_owned(),
        found: format!("{found}, which holds weights in another form,"),
        supported: "supported is safetensors: fetch the model in that form".to_owned(),
    })
}

/// A model that cannot read a word is as good as none.
fn with_text(files: &Files, survey: Survey) -> Result<Survey, Error> {
    if files.has("tokenizer.json")? {
        return Ok(survey);
    }
    Err(Error::File {
        file: files.path_of("tokenizer.json"),
        problem: "is missing".to_owned(),
        mend: "it comes with the checkpoint: fetch it from there".to_owned(),
    })
}

fn judge_survey(files: &Files, survey: &Survey) -> Judged {
    let fingerprint = contract::fingerprint(files, &survey.files);
    let mut judged = match (&survey.mtp, &fingerprint) {
        (Err(NoHead::Unusable(error @ Error::Unsupported { .. })), _) => {
            Judged::without_head(error.to_string())
        }
        (Err(NoHead::Unusable(error)), _) => {
            let mut judged = Judged::new(Tier::Damaged, error.clone());
            judged.reasons.push("only its MTP head is at fault: --no-mtp serves the rest".into());
            judged
        }
        (Err(NoHead::Absent(reason)), _) => Judged::without_head(reason.clone()),
        (Ok(_), Err(error)) => Judged::new(Tier::Damaged, error.clone()),
        (Ok(_), Ok(fingerprint)) => judge_contract(files, fingerprint),
    };
    judged.fingerprint = fingerprint.ok();
    judged.weights = Some(Weights::of(survey));
    judged
}

fn judge_contract(files: &Files, fingerprint: &str) -> Judged {
    let standing = contract::standing(files, fingerprint);
    let (tier, mend) = match standing {
        Standing::Holds(_) => (Tier::Verified, None),
        Standing::Missing | Standing::Silent | Standing::Failed(_) | Standing::Changed(_) => {
            (Tier::Unverified, Some(format!("run `mtplx verify {}`", files.label())))
        }
    };
    Judged {
        tier,
        reasons: vec![standing.to_string()],
        mend,
        architecture: None,
        weights: None,
        verification: standing.verification(),
        fingerprint: None,
    }
}

impl Judged {
    fn new(tier: Tier, error: Error) -> Self {
        let (reason, mend) = match error {
            Error::File { file, problem, mend } => (format!("{file}: {problem}"), Some(mend)),
            Error::Config { file, key, problem, mend } => {
                (format!("{file}: {key} {problem}"), Some(mend))
            }
            Error::Tensor { tensor, found, expected, mend } => {
                (format!("tensor {tensor} {found}, expected {expected}"), Some(mend))
            }
            error @ Error::Unsupported { .. } => (error.to_string(), None),
        };
        Self {
            tier,
            reasons: vec![reason],
            mend,
            architecture: None,
            weights: None,
            verification: None,
            fingerprint: None,
        }
    }

    fn without_head(reason: String) -> Self {
        Self {
            tier: Tier::NoMtp,
            reasons: vec![reason],
            mend: Some("serve it plainly with --no-mtp".to_owned()),
            architecture: None,
            weights: None,
            verification: None,
            fingerprint: None,
        }
    }
}

impl Weights {
    fn of(survey: &Survey) -> Self {
        let config = &survey.config;
        let attention = config.layers.iter().filter(|&&kind| kind == LayerKind::Attention).count();
        let head = survey.mtp.as_ref().ok();
        Self {
            files: survey.files.clone(),
            bytes: survey.bytes_total,
            quantization: quantization(survey),
            gdn_layers: config.layers.len() - attention,
            attention_layers: attention,
            experts: config.moe.as_ref().map_or(0, |moe| moe.experts),
            mtp_layers: head.map_or(0, |head| head.layers),
            mtp_source: head.map(|head| head.source.clone()),
            unused_tensors: survey.unused.len(),
        }
    }
}

fn quantization(survey: &Survey) -> String {
    let said = &survey.config.quantization;
    let Some(scheme) = &said.default else { return "none".to_owned() };
    let number = |n: Option<usize>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let (bits, group) = (number(scheme.bits), number(scheme.group));
    let differ = |entry: &&Override| !matches!(entry, Override::Quantized(own) if own == scheme);
    match said.overrides.values().filter(differ).count() {
        0 => format!("{bits} bits in groups of {group}"),
        n => format!("{bits} bits in groups of {group}, {n} modules otherwise"),
    }
}
