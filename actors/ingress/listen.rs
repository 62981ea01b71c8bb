//! Connections: accepted, bounded in number and in how long and how large the head of a request may
//! be, served, and let go in order. What axum brings for it bounds none of these.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tower::{Service, ServiceExt};

use super::body::Lingering;
use super::tls::{Tls, speaks_tls};
use crate::metrics;

/// Connections at once; further ones wait in the system's queue. Each takes a file descriptor, of
/// which many systems give a process 1024.
const CONNECTIONS_MAX: usize = 768;
/// Longest time in which the head of a request must have come; an idle connection ends after it.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// Most bytes of a request's head; beyond it 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields of a request's head; beyond it 431.
const FIELDS_MAX: usize = 128;
/// Longest time for which the system tries to send to a machine that says nothing, unless readers
/// may take longer.
#[cfg(target_os = "linux")]
const GONE_TIME_MAX: Duration = Duration::from_secs(120);
/// Silence after which the system asks the other end whether it is there, and between such probes.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EACH: Duration = Duration::from_secs(15);
/// Rest between two words on places being used up.
const FULL_TOLD_EACH: Duration = Duration::from_secs(60);
/// Rest after a failure to accept that is not one client's, such as too many open files.
const FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// What connections and their requests find. Each request takes what is there when it comes; a
/// connection has TLS, and how long its reader may stop, from its beginning.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) app: Router,
    /// Longest time for which a reader may take nothing; 0 for any.
    pub(super) stall: Duration,
    /// What they are encrypted with.
    pub(super) tls: Option<Tls>,
}

/// Serves until `stop` is used or dropped, and then until the last request is answered.
pub(super) async fn serve(
    listener: TcpListener,
    shown: watch::Receiver<Shown>,
    mut stop: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Both ends mean something: its value that connections are to end, its receivers that some
    // have not.
    let (stopping, going_on) = watch::channel(false);
    let mut full_told = None;
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &places, &mut full_told) => accepted,
            _ = &mut stop => break,
        };
        match accepted {
            Ok((stream, place)) => {
                let going_on = going_on.clone();
                let connection = connection(stream, shown.clone(), going_on.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop((place, going_on));
                });
            }
            Err(error) if is_one_clients(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
    drop((listener, going_on));
    stopping.send_replace(true);
    stopping.closed().await;
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    full_told: &mut Option<Instant>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = match Arc::clone(places).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            metrics::places_waited();
            if full_told.is_none_or(|told| told.elapsed() >= FULL_TOLD_EACH) {
                *full_told = Some(Instant::now());
                let connections = CONNECTIONS_MAX;
                tracing::warn!(connections, "all places are taken; who comes next must wait");
            }
            Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?
        }
    };
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn tune(stream: &TcpStream, stall: Duration) -> io::Result<()> {
    // Small events go out at once: waiting to fill a segment costs a client up to 40 ms.
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EACH);
    SockRef::from(stream).set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(gone_after(stall))?;
    Ok(())
}

/// When the system gives up who takes nothing of what was sent. Without this it tries again for a
/// quarter of an hour where a machine is gone; but it ends stopped readers of machines that are
/// there as well, and how long these may stop is for `stall` to say.
#[cfg(target_os = "linux")]
fn gone_after(stall: Duration) -> Option<Duration> {
    (stall > Duration::ZERO).then_some(stall.max(GONE_TIME_MAX))
}

fn is_one_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Whoever takes nothing of what is sent for as long as `stall` is let go, so that what waits for a
/// reader is bounded in time, too.
async fn connection(
    stream: TcpStream,
    shown: watch::Receiver<Shown>,
    mut stopping: watch::Receiver<bool>,
) {
    let Shown { stall, tls, .. } = shown.borrow().clone();
    if let Err(error) = tune(&stream, stall) {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
    let Some(tls) = tls else {
        return speak(bounded(stream, stall), shown, stopping).await;
    };
    let begun = async {
        if !speaks_tls(&stream).await {
            return None;
        }
        let begun = tls.begin(bounded(stream, stall)).await;
        begun.inspect_err(|error| tracing::debug!(%error, "TLS did not come about")).ok()
    };
    let begun = tokio::select! {
        begun = begun => begun,
        _ = stopping.wait_for(|stopping| *stopping) => None,
    };
    if let Some(stream) = begun {
        speak(stream, shown, stopping).await;
    }
}

fn bounded(stream: TcpStream, stall: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout((stall > Duration::ZERO).then_some(stall));
    Box::pin(stream)
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shown: watch::Receiver<Shown>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    http.max_header_size(HEAD_BYTES_MAX).max_headers(FIELDS_MAX);
    let service = tower::service_fn(move |request| {
        let app = shown.borrow().app.clone();
        answer(app, request)
    });
    let service = TowerToHyperService::new(service);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let stopped = async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(mut app: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let request = Lingering::within(request);
    ServiceExt::<Request<Body>>::ready(&mut app).await?.call(request).await
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_ends_no_reader_who_may_still_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        for (stall, ends) in [(0, None), (1, Some(120)), (120, Some(120)), (900, Some(900))] {
            tune(&stream, Duration::from_secs(stall)).unwrap();
            let set = SockRef::from(&stream).tcp_user_timeout().unwrap();
            assert_eq!(set, ends.map(Duration::from_secs), "{stall}");
        }
    }
}
