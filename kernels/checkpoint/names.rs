//! One name per tensor, whoever wrote the file.

/// The model's own name of the tensor or module `name`, such as `layers.0.mlp.up_proj.weight`,
/// `lm_head.weight` or `mtp.fc.weight`; `None` for what belongs to the vision part.
pub(super) fn inner(name: &str) -> Option<&str> {
    const LANGUAGE: [&str; 4] =
        ["model.language_model.", "language_model.model.", "language_model.", "model."];
    const VISION: [&str; 4] =
        ["visual.", "vision_tower.", "vision_model.", "multi_modal_projector."];
    let name = LANGUAGE.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (!VISION.iter().any(|prefix| name.starts_with(prefix))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::inner;

    #[test]
    fn every_origin_has_the_same_inner_names() {
        for prefix in ["model.language_model.", "language_model.model.", "model.", ""] {
            let name = format!("{prefix}layers.3.self_attn.q_proj.weight");
            assert_eq!(inner(&name), Some("layers.3.self_attn.q_proj.weight"));
        }
        for name in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(inner(name), Some("lm_head.weight"));
        }
        for name in ["mtp.fc.weight", "language_model.mtp.fc.weight", "model.mtp.fc.weight"] {
            assert_eq!(inner(name), Some("mtp.fc.weight"));
        }
    }

    #[test]
    fn vision_has_no_inner_name() {
        for name in ["model.visual.blocks.0.norm1.weight", "vision_tower.patch_embed.proj.weight"] {
            assert_eq!(inner(name), None);
        }
    }
}
