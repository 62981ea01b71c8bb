//! An actor for tests that only listens: what it hears comes out of a channel.

use std::marker::PhantomData;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) struct Probe<M>(PhantomData<fn() -> M>);

/// A stand-in for an actor that hears `M`, and what it hears.
pub(crate) async fn probe<M: ractor::Message>() -> (ActorRef<M>, UnboundedReceiver<M>) {
    let (heard, hears) = unbounded_channel();
    let (actor, _) = Actor::spawn(None, Probe(PhantomData), heard).await.unwrap();
    (actor, hears)
}

impl<M: ractor::Message> Actor for Probe<M> {
    type Msg = M;
    type State = UnboundedSender<M>;
    type Arguments = UnboundedSender<M>;

    async fn pre_start(
        &self,
        _myself: ActorRef<M>,
        heard: UnboundedSender<M>,
    ) -> Result<UnboundedSender<M>, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle(
        &self,
        _myself: ActorRef<M>,
        message: M,
        heard: &mut UnboundedSender<M>,
    ) -> Result<(), ActorProcessingErr> {
        // A test that stopped listening is not disturbed.
        let _ = heard.send(message);
        Ok(())
    }
}
