//! Modes: profiles of ordinary settings, laid between the defaults and the user's own file. None
//! holds anything that a file could not, and none changes what is generated, only how fast.

use toml::Table;

/// The modes by name, and the files that they are.
pub const MODES: [(&str, &str); 5] = [
    ("sustained", include_str!("../config/modes/sustained.toml")),
    ("sustained-max", include_str!("../config/modes/sustained-max.toml")),
    ("burst", include_str!("../config/modes/burst.toml")),
    ("stable", include_str!("../config/modes/stable.toml")),
    ("safe", include_str!("../config/modes/safe.toml")),
];

/// The settings of a mode.
///
/// # Errors
/// If there is no such mode: which there are.
pub fn settings(name: &str) -> Result<Table, String> {
    let Some((_, text)) = MODES.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
        return Err(format!("mode = {name:?}: must be one of {}", names.join(", ")));
    };
    text.parse().map_err(|error| format!("mode {name}: {error}"))
}
