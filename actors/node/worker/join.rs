//! How a node comes to belong to its gateway.

use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;

use super::{Blueprint, Membership, Refused};
use crate::node::session::{self, Apart, SHAKE_TIME};
use crate::node::wire::{self, Answer, Hello};
use crate::node::{GATE, gate};

/// Connects, if that is needed, and asks.
pub(super) async fn join(
    of: &Blueprint,
    server: &session::Server,
    hello: &Hello,
) -> Result<Membership, Refused> {
    let later = |reason: &str| Refused { reason: reason.to_owned(), again: true };
    if session::found(GATE).is_none() {
        let connected = session::connect(&of.gateway, &of.secret, server).await;
        connected.map_err(|apart| match apart {
            Apart::Absent(reason) => later(&reason),
            Apart::Stranger => {
                let reason = "the gateway does not hold the same secret".to_owned();
                Refused { reason, again: false }
            }
        })?;
    }
    let announced = async {
        loop {
            match session::found(GATE) {
                Some(cell) => return ActorRef::<gate::Message>::from(cell),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let announced = tokio::time::timeout(SHAKE_TIME, announced).await;
    let gate = announced.map_err(|_| later("it does not answer"))?;
    let asked = wire::bytes(hello);
    let ask = |reply| gate::Message::Hello(asked, reply);
    let answer = match gate.call(ask, Some(SHAKE_TIME)).await {
        Ok(CallResult::Success(answer)) => wire::read::<Answer>(&answer),
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => {
            return Err(later("it does not answer"));
        }
    };
    match answer {
        Some(Answer::Welcome { epoch, silence_ms, .. }) => {
            Ok(Membership { gate, epoch, silence: Duration::from_millis(silence_ms) })
        }
        Some(Answer::Refused { reason, again }) => Err(Refused { reason, again }),
        None => {
            let reason = "the gateway is of another version".to_owned();
            Err(Refused { reason, again: false })
        }
    }
}
