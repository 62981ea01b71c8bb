//! Where models are kept on this machine.

use std::path::PathBuf;

/// The folders of models: this program's own, Hugging Face's cache, LM Studio's. They need not be
/// there.
#[must_use]
pub fn of_this_machine() -> Vec<PathBuf> {
    roots(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

/// This program's own folder of models; `None` where nobody is at home.
#[must_use]
pub fn own() -> Option<PathBuf> {
    of_this_machine().into_iter().next()
}

/// The same by the variables of an environment, in the order in which the hub's own library asks.
fn roots(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = variable("HOME");
    let at_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let own = variable("MTPLX_MODEL_DIR").or_else(|| at_home(".mtplx/models"));
    let hub = variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|hf| hf.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| at_home(".cache/huggingface/hub"));
    let studio = [at_home(".lmstudio/models"), at_home(".cache/lm-studio/models")];
    [own, hub].into_iter().chain(studio).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_hub_come_before_its_usual_place() {
        let with = |set: &[(&str, &str)]| {
            let all: Vec<_> = set.iter().copied().chain([("HOME", "/h")]).collect();
            roots(|name| all.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into()))
        };
        let hub = |set| with(set)[1].display().to_string();
        assert_eq!(hub(&[]), "/h/.cache/huggingface/hub");
        assert_eq!(hub(&[("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(hub(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), "/c");
        let rest = ["/h/.lmstudio/models", "/h/.cache/lm-studio/models"].map(PathBuf::from);
        assert_eq!(with(&[])[2..], rest);
        assert_eq!(with(&[("MTPLX_MODEL_DIR", "/m")])[0], PathBuf::from("/m"));
        assert!(roots(|_| None).is_empty());
    }
}
