//! The questions of `mtplx start`.

use anyhow::Result;
use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input, Select};

use super::{SMALL, Surface};
use crate::exit::Stop;
use crate::modes::MODES;
use crate::picker::{self, Found, roots};
use crate::tiers::Tier;

/// What each mode is for, in the order in which they are offered.
const WHAT_FOR: [(&str, &str); 5] = [
    ("sustained", "for hours, with the fans as the machine has them"),
    ("sustained-max", "for hours on a Mac, with the fans at their most"),
    ("burst", "a short benchmark of a cold machine"),
    ("stable", "even token times, a quiet machine"),
    ("safe", "no drafts, few rows: to find out what is to blame"),
];

/// Where to talk, for people.
pub(super) fn name(surface: Surface) -> &'static str {
    match surface {
        Surface::Cli => "this terminal",
        Surface::Web => "a server, for browsers and others",
        Surface::Claude => "Claude Code",
        Surface::Opencode => "opencode",
        Surface::Pi => "Pi",
        Surface::Swival => "Swival",
    }
}

pub(super) fn yes(question: &str) -> Result<bool> {
    let theme = ColorfulTheme::default();
    let asked = Confirm::with_theme(&theme).with_prompt(question).default(true);
    Ok(asked.interact_opt()?.ok_or(Stop::Interrupted)?)
}

fn one_of(question: &str, items: &[String]) -> Result<usize> {
    let theme = ColorfulTheme::default();
    let asked = Select::with_theme(&theme).with_prompt(question).items(items).default(0);
    Ok(asked.interact_opt()?.ok_or(Stop::Interrupted)?)
}

/// What is on this machine, the one inside, or a folder that somebody types.
pub(super) fn model() -> Result<String> {
    // What cannot be served is not offered; what is wrong with it, `mtplx models` tells.
    let mut found = picker::found(&roots::of_this_machine());
    found.retain(|model| matches!(model.tier, Tier::Verified | Tier::Unverified));
    let tier = |model: &Found| if model.tier == Tier::Verified { "" } else { ", unverified" };
    let line =
        |model: &Found| format!("{} ({}{})", model.name, picker::bytes(model.size), tier(model));
    let mut items: Vec<String> = found.iter().map(line).collect();
    items.push("the small model inside: shows that all works, knows nothing".into());
    items.push("another folder, or owner/name".into());
    let at = one_of("Which model?", &items)?;
    if let Some(model) = found.get(at) {
        return Ok(model.path.display().to_string());
    }
    if at == found.len() {
        return Ok(SMALL.into());
    }
    Ok(Input::with_theme(&ColorfulTheme::default()).with_prompt("Folder").interact_text()?)
}

pub(super) fn mode() -> Result<String> {
    let items: Vec<String> =
        WHAT_FOR.iter().map(|(name, what)| format!("{name}: {what}")).collect();
    Ok(WHAT_FOR[one_of("Which mode?", &items)?].0.to_owned())
}

pub(super) fn surface() -> Result<Surface> {
    let all = [
        Surface::Cli,
        Surface::Web,
        Surface::Claude,
        Surface::Opencode,
        Surface::Pi,
        Surface::Swival,
    ];
    let items: Vec<String> = all.iter().map(|surface| name(*surface).to_owned()).collect();
    Ok(all[one_of("Where do you want to talk?", &items)?])
}

const _: () = assert!(MODES.len() == WHAT_FOR.len(), "every mode is offered");
