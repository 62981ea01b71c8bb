//! What `/health` answers.

#![allow(dead_code, reason = "descriptions are never made")]

use utoipa::ToSchema;

/// Whether somebody serves.
#[derive(ToSchema)]
pub(crate) struct Health {
    #[schema(pattern = "^(ok|unavailable)$")]
    status: String,
    /// Why not.
    #[schema(nullable = false)]
    reason: Option<String>,
    /// Milliseconds since the engine was last seen at work; idle, it is asked once a second.
    #[schema(nullable = false)]
    heartbeat_age_ms: Option<u64>,
    /// How much is known of the model: whether it passed the gates of `mtplx verify`.
    #[schema(nullable = false, pattern = "^(verified|unverified|no-mtp|damaged)$")]
    tier: Option<String>,
    /// Kernels that failed their trial.
    #[schema(nullable = false)]
    kernels_switched_off: Option<Vec<String>>,
    /// The machines that serve, where there may be several.
    #[schema(nullable = false)]
    nodes: Option<Vec<NodeHealth>>,
    /// Settings that are written otherwise than they hold, until the next start.
    #[schema(nullable = false)]
    restart_needed: Option<Vec<String>>,
    /// What heat allows, and what the fans do.
    #[schema(nullable = false)]
    heat: Option<Heat>,
}

/// What heat allows, and what the fans do.
#[derive(ToSchema)]
struct Heat {
    #[schema(pattern = "^(full|reduced|low)$")]
    ceiling: String,
    /// Share of the time for pauses between cycles.
    pause: f32,
    /// Why: `target`, `warm`, `hot`, `pressure`, `silence`.
    reasons: Vec<String>,
    /// The hottest processor.
    #[schema(nullable = false)]
    celsius: Option<f32>,
    /// What the system says: `nominal`, `fair`, `serious`, `critical`.
    #[schema(nullable = false)]
    pressure: Option<String>,
    #[schema(pattern = "^(auto|max|idle|off|failed)$")]
    fans: String,
}

/// One of several machines.
#[derive(ToSchema)]
pub(crate) struct NodeHealth {
    name: String,
    #[schema(pattern = "^(ready|silent|draining)$")]
    state: String,
}
