//! The thermal actor as the root sees it: started with the first generation, told of each new
//! tuner, restarted alone.

use std::sync::Arc;
use std::time::Duration;

use mtplx_core::engine::Engine;
use ractor::Actor;

use super::{Message, Phase, Root, State};
use crate::{metrics, thermal};

impl<E: Engine + 'static> Root<E> {
    /// Starts the thermal actor, or tells it of a new tuner.
    pub(super) async fn heat(&self, state: &mut State) {
        // Between generations there is nobody to tell; the next one comes back here.
        let Phase::Serving(generation) = &state.phase else { return };
        let (tuner, bank) = (generation.tuner.clone(), generation.bank.clone());
        if let Some(thermal) = &state.thermal {
            // A thermal actor that is gone is heard of as lost.
            let _ = thermal.cast(thermal::Message::Advise(tuner, bank));
            return;
        }
        let sensor = Arc::clone(&self.0.sensor);
        let arguments = thermal::Arguments { config: state.configs.thermal, sensor, tuner, bank };
        let root = state.myself.get_cell();
        match Actor::spawn_linked(None, thermal::Thermal, arguments, root).await {
            Ok((thermal, _)) => state.thermal = Some(thermal),
            Err(error) => {
                tracing::error!(%error, "the thermal actor did not start");
                self.heat_later(state);
            }
        }
    }

    fn heat_later(&self, state: &State) {
        let pause = Duration::from_secs_f64(state.configs.thermal.sample_s);
        state.myself.send_after(pause, || Message::Heat);
    }

    /// It ended by itself: it is started anew, after as long as it would have waited to look again.
    pub(super) fn heat_lost(&self, state: &mut State, reason: &str) {
        tracing::error!(reason, "the thermal actor ended");
        state.thermal = None;
        state.thermal_restarts += 1;
        metrics::thermal_restarted();
        self.heat_later(state);
    }
}
