//! What requests bring along: bodies, bounded in size, in time and in all that there are of them
//! before anything reads them, and names in paths.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use mtplx_core::fairness::Client;
use mtplx_core::request::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use super::admission::House;
use super::clients::Caller;
use super::openai::ApiError;
use super::openai::error::RETRY_AFTER_S;
use super::resize::{most, resize};

/// Longest silence within a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest time in which all of a body must have come, however slow the line: it holds no place
/// among the answers in the making while it comes, but a connection and memory.
const BODY_TIME_MAX: Duration = Duration::from_secs(600);
/// So much of a body that nobody wants is read nevertheless, and so long: a socket that is closed
/// over bytes that nobody read takes the answer with it, so who sends them would not hear why.
const UNWANTED_BYTES_MAX: usize = 16 << 20;
const UNWANTED_TIME_MAX: Duration = Duration::from_secs(2);

/// One client may hold so much of the room for bodies: who sends many slowly, for as long as bodies
/// may take, leaves room for others.
const SHARE: usize = 4;

/// Memory for bodies, as one client has it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    /// This client's part of it; where nobody is told apart there is none.
    share: Option<Arc<Semaphore>>,
    share_bytes: usize,
    /// Those of clients that hold any of it.
    shares: Arc<Mutex<HashMap<Client, Weak<Semaphore>>>>,
}

/// What is taken of it.
struct Held {
    all: OwnedSemaphorePermit,
    share: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// For so many bytes of all bodies that are being read and parsed.
    /// Any one body of `body_bytes` has room in a client's share.
    pub(super) fn new(bytes: usize, body_bytes: usize) -> Self {
        let all = Arc::new(Semaphore::new(most(bytes)));
        let share_bytes = most((bytes / SHARE).max(body_bytes));
        Self { all, share: None, share_bytes, shares: Arc::default() }
    }

    /// The same with room for so many bytes instead. Who has bodies on their way keeps the share
    /// until they have come.
    pub(super) fn resized(&self, (from, to): (usize, usize), body_bytes: usize) -> Self {
        resize(&self.all, from, to);
        Self { share_bytes: most((to / SHARE).max(body_bytes)), ..self.clone() }
    }

    /// The same room, as this client has it.
    fn of(&self, client: Option<Client>) -> Self {
        let share = client.map(|client| {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            shares.retain(|_, share| share.strong_count() > 0);
            shares.get(&client).and_then(Weak::upgrade).unwrap_or_else(|| {
                let new = Arc::new(Semaphore::new(self.share_bytes));
                shares.insert(client, Arc::downgrade(&new));
                new
            })
        });
        Self { share, ..self.clone() }
    }

    fn take(&self, bytes: usize) -> Result<Held, ApiError> {
        let full = || Refusal::Overloaded { retry_after_s: RETRY_AFTER_S };
        let bytes = u32::try_from(bytes).map_err(|_| full())?;
        let of = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_many_owned(bytes);
        let share = self.share.as_ref().map(of).transpose().map_err(|_| full())?;
        let all = of(&self.all).map_err(|_| full())?;
        Ok(Held { all, share })
    }
}

impl Held {
    fn add(&mut self, more: Self) {
        self.all.merge(more.all);
        if let (Some(share), Some(more)) = (&mut self.share, more.share) {
            share.merge(more);
        }
    }
}

/// A body that came whole, and its room until nobody has it any more.
pub(super) struct Whole {
    pub(super) bytes: Vec<u8>,
    room: Option<Held>,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body of so many bytes at most, which takes its room, if any, as it comes. Without room
/// it is the keeper's: it may take any time, as long as it is not silent, and what it announces has
/// its memory at once, as growing would take up to three times as much.
pub(super) async fn whole(
    body: Body,
    limit: usize,
    room: Option<&Room>,
) -> Result<Whole, ApiError> {
    let last = room.map(|_| Instant::now() + BODY_TIME_MAX);
    let announced = room.is_none().then(|| body.size_hint().exact()).flatten();
    let mut frames = body.into_data_stream();
    let mut whole = Whole { bytes: Vec::new(), room: None };
    let announced = announced.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let full = Refusal::Overloaded { retry_after_s: RETRY_AFTER_S };
    whole.bytes.try_reserve_exact(announced.min(limit)).map_err(|_| full)?;
    loop {
        let silent = Instant::now() + SILENCE_MAX;
        let until = last.map_or(silent, |last| silent.min(last));
        let frame = timeout_at(until, frames.next()).await.map_err(|_| {
            let silent = until == silent;
            let seconds = if silent { SILENCE_MAX } else { BODY_TIME_MAX }.as_secs();
            ApiError::BodyTooSlow { seconds, silent }
        })?;
        let Some(frame) = frame else { return Ok(whole) };
        let frame = frame.map_err(|error| ApiError::Json(error.to_string()))?;
        if frame.len() > limit - whole.bytes.len() {
            return Err(ApiError::BodyTooLarge { limit });
        }
        if let Some(room) = room {
            let more = room.take(frame.len())?;
            match &mut whole.room {
                Some(room) => room.add(more),
                none => *none = Some(more),
            }
        }
        whole.bytes.extend_from_slice(&frame);
    }
}

/// A body that came whole and says that it is JSON.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<Arc<House>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, house: &Arc<House>) -> Result<Self, ApiError> {
        let limit = house.config.body_bytes_max;
        // This also keeps out the web pages of strangers, which a browser of the house would let
        // post here: without asking first they can send a body of no type, but not one that says
        // JSON.
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase());
        if !kind.as_deref().is_some_and(is_json) {
            return Err(ApiError::ContentType(kind));
        }
        // Before any of it is read: who asks first whether to send it is spared doing so.
        if announced(request.headers()).is_some_and(|bytes| bytes > limit) {
            return Err(ApiError::BodyTooLarge { limit });
        }
        let key = request.extensions().get().and_then(Caller::key);
        let room = house.bodies.of(key);
        let body = whole(request.into_body(), limit, Some(&room)).await?;
        Ok(Self(Bytes::from_owner(body)))
    }
}

/// A body whose unwanted rest is read to its end, within bounds, while the answer is on its way.
pub(super) struct Lingering {
    body: Option<Incoming>,
    /// Whether its client sends it without being asked to.
    coming: bool,
}

impl Lingering {
    /// The same request with such a body.
    pub(super) fn within(request: Request<Incoming>) -> Request {
        let coming = !request.headers().contains_key(header::EXPECT);
        request.map(|body| Body::new(Self { body: Some(body), coming }))
    }
}

impl hyper::body::Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.coming = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| self.coming && !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (body, tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(UNWANTED_TIME_MAX, read_away(body)));
        }
    }
}

async fn read_away(body: Incoming) {
    let mut frames = Body::new(body).into_data_stream();
    let mut left = UNWANTED_BYTES_MAX;
    while let Some(Ok(frame)) = frames.next().await {
        match left.checked_sub(frame.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// The name at the end of a path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        // What is no text names nothing.
        let Ok(Path(name)) = named else {
            return Err(ApiError::UnknownPath(parts.uri.path().to_owned()));
        };
        Ok(Self(name))
    }
}

pub(super) fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests;
