//! Places whose number changes while some are taken.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Semaphore;

/// So many as a semaphore can hold.
pub(super) fn most(places: usize) -> usize {
    places.min(Semaphore::MAX_PERMITS)
}

/// Makes places of `from` to places of `to`. Those that are taken beyond that go as they come back,
/// before anybody gets one: there are never more taken than before, nor new ones beyond `to`.
pub(super) fn resize(places: &Arc<Semaphore>, from: usize, to: usize) {
    let (from, to) = (most(from), most(to));
    if to >= from {
        return places.add_permits(to - from);
    }
    let mut owed = from - to;
    owed -= places.forget_permits(owed);
    while owed > 0 {
        let some = u32::try_from(owed).unwrap_or(u32::MAX);
        owed -= some as usize;
        let mut back = Box::pin(Arc::clone(places).acquire_many_owned(some));
        // Asked once here, they stand before whoever tries to get one after this.
        match pin!(&mut back).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(taken)) => taken.forget(),
            // Nobody closes them.
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                tokio::spawn(async move {
                    if let Ok(taken) = back.await {
                        taken.forget();
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_go_as_they_come_back_and_nobody_gets_one_meanwhile() {
        let places = Arc::new(Semaphore::new(4));
        let take = || Arc::clone(&places).try_acquire_owned();
        let mut taken: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        resize(&places, 4, 1);
        for _ in 0..3 {
            assert!(take().is_err());
            taken.pop();
            tokio::task::yield_now().await;
        }
        let only = take().unwrap();
        assert!(take().is_err());
        drop(only);
        resize(&places, 1, 3);
        let again: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        assert!(take().is_err());
        // Smaller and larger again before anything came back: nothing is lost or made up.
        resize(&places, 3, 0);
        resize(&places, 0, 2);
        drop(again);
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(places.available_permits(), 2);
    }

    #[tokio::test]
    async fn any_number_becomes_a_number() {
        let places = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let held = Arc::clone(&places).try_acquire_many_owned(7).unwrap();
        resize(&places, usize::MAX, 5);
        assert_eq!(places.available_permits(), 0);
        drop(held);
        tokio::task::yield_now().await;
        assert_eq!(places.available_permits(), 5);
        resize(&places, 5, usize::MAX);
        assert_eq!(places.available_permits(), Semaphore::MAX_PERMITS);
    }
}
