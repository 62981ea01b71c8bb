//! W3C trace context: a client's trace is gone on from, and the answer says which span was ours.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// Puts a span into the trace that the client began, if it began one.
pub(super) fn follow(span: &Span, headers: &HeaderMap) {
    if let Some(parent) = parent(headers) {
        // Without a collector nobody keeps it.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Names this span in an answer's headers, where there is a collector that it goes to.
pub(super) fn tell(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    let own = context.span().span_context().clone();
    if !own.is_valid() {
        return;
    }
    let flags = own.trace_flags().to_u8();
    let told = format!("00-{}-{}-{flags:02x}", own.trace_id(), own.span_id());
    if let Ok(value) = HeaderValue::try_from(told) {
        headers.insert(PARENT, value);
    }
}

/// The span that the client names. What is not well formed names none.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut fields = headers.get(PARENT)?.to_str().ok()?.trim().split('-');
    let (version, trace) = (fields.next()?, fields.next()?);
    let (span, flags) = (fields.next()?, fields.next()?);
    // Later versions may say more behind these.
    let known = version == "00" && fields.next().is_none();
    let fine = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !(known || version != "00" && version != "ff")
        || !fine.iter().all(|(field, len)| field.len() == *len && field.bytes().all(hex))
    {
        return None;
    }
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let state = headers.get(STATE).and_then(|state| state.to_str().ok());
    let state: TraceState = state.and_then(|state| state.parse().ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state)).filter(SpanContext::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<SpanContext> {
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, text.parse().unwrap());
        parent(&headers)
    }

    #[test]
    fn a_trace_is_gone_on_from_only_if_it_is_well_formed() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let known = of(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!(
            (known.trace_id().to_string(), known.span_id().to_string().as_str()),
            (trace.into(), span)
        );
        assert!(known.is_sampled() && known.is_remote());
        assert!(!of(&format!("00-{trace}-{span}-00")).unwrap().is_sampled());
        assert!(of(&format!("cc-{trace}-{span}-01-what-comes-later")).is_some());
        let zeroes = "0".repeat(32);
        for wrong in [
            String::new(),
            "hello".into(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{zeroes}-{span}-01"),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}g-{span}-01", &trace[1..]),
        ] {
            assert!(of(&wrong).is_none(), "{wrong}");
        }
    }
}
