//! Whether a server may start on a model.

use anyhow::{Result, bail};
use serde::Deserialize;

use super::{Judged, Tier};

/// What becomes of a model that nobody has verified.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Unverified {
    /// It is not served.
    #[default]
    Refuse,
    /// It is served, and called unverified.
    Accept,
}

/// How texts are made.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// With drafts of the model's MTP head.
    #[default]
    Mtp,
    /// Plainly, token by token.
    Ar,
}

/// Lets a model pass that may be served, or says what would let it.
///
/// # Errors
/// It may not.
pub fn admit(
    path: &str,
    judged: &Judged,
    (unverified, generation): (Unverified, Generation),
) -> Result<()> {
    let plain = generation == Generation::Ar;
    let reason = judged.reasons.first().map_or("", String::as_str);
    match judged.tier {
        Tier::Verified => Ok(()),
        // Without drafts there is nothing to be verified.
        Tier::Unverified | Tier::NoMtp | Tier::Damaged if plain => Ok(()),
        Tier::Unverified if unverified == Unverified::Accept => Ok(()),
        Tier::Unverified => bail!(
            "{path} is unverified: {reason}\n\
             To verify it once, in minutes:     mtplx verify {path}\n\
             To serve it as it is, now:         --unsafe-force-unverified\n\
             To serve such models always:       [model] unverified = \"accept\" in the settings\n\
             To serve it without drafts:        --no-mtp"
        ),
        Tier::NoMtp => bail!(
            "{path} has no MTP head that can be used: {reason}\n\
             To serve it plainly, token by token: --no-mtp, or [model] generation = \"ar\" in the \
             settings"
        ),
        Tier::Damaged => {
            let mend = judged.mend.as_deref().unwrap_or("fetch it again");
            bail!("{path} is damaged: {reason}; {mend}\nTo serve it without drafts: --no-mtp")
        }
        Tier::Incompatible => bail!("{path} cannot be run: {reason}"),
    }
}
