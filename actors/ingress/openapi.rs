//! The OpenAPI document: from the types that bodies are read into, the handlers that answer, and
//! descriptions of what is written, which the tests hold against what is sent.

use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Document, Ref, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::unknown::UnknownFields;
use super::{admin, dashboard, guard, reload, routes, tokenize, ui};

pub(crate) mod answers;
pub(crate) mod asked;
mod health;

/// What the document says of itself. The version is the build's.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "mtplx",
        description = "One large language model for a whole team, by the APIs of OpenAI and \
                       Anthropic. A field that cannot be honoured is refused by name or named in \
                       the header `x-mtplx-warning`; only bookkeeping and cache hints are taken \
                       in silence.",
        license(name = "Apache-2.0")
    ),
    paths(
        routes::chat,
        routes::completions,
        routes::responses::create,
        routes::responses::fetch,
        routes::responses::forget,
        routes::messages::messages,
        routes::messages::count_tokens,
        routes::models,
        routes::model,
        tokenize::tokenize,
        tokenize::detokenize,
        tokenize::embeddings,
        routes::health,
        routes::livez,
        routes::readyz,
        routes::metrics,
        routes::document,
        routes::docs,
        ui::page,
        ui::file,
        dashboard::page,
        dashboard::script,
        dashboard::style,
        admin::list,
        admin::import,
        admin::export,
        admin::forget,
        admin::pin,
        admin::unpin,
        admin::tuned,
        admin::usage,
        admin::nodes,
        admin::drain,
        admin::resume,
        reload::reload,
    ),
    components(schemas(answers::OpenAiError, answers::AnthropicError)),
    tags(
        (name = "OpenAI", description = "As OpenAI's clients ask, with fields that vLLM and others \
            added. `x-request-id` comes back as it was sent."),
        (name = "Anthropic", description = "As Anthropic's clients ask. Errors are in its shape; \
            so are those of all routes for who sends `anthropic-version`."),
        (name = "house", description = "Tokens, health, metrics, this document."),
        (name = "admin", description = "What is warm. These routes exist only where a token is \
            set, and answer only who sends it."),
    ),
    modifiers(&Keeper, &Errors)
)]
struct Api;

/// Bodies that have no other fields than those that are named.
const BODIES: [&str; 6] = [
    "ChatBody",
    "CompletionsBody",
    "ResponsesBody",
    "MessagesBody",
    "TokenizeBody",
    "DetokenizeBody",
];

/// The document as this server serves it.
pub(super) fn document(unknown: UnknownFields) -> Value {
    let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
    if unknown == UnknownFields::Refuse {
        for body in BODIES {
            document["components"]["schemas"][body]["additionalProperties"] = json!(false);
        }
    }
    document
}

/// The token of the routes below /admin, and the keys of the others where there are any.
struct Keeper;

impl Modify for Keeper {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("admin", SecurityScheme::Http(bearer.clone()));
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// What may go wrong at any route of a kind: said once here rather than at each of them.
struct Errors;

impl Modify for Errors {
    fn modify(&self, document: &mut Document) {
        for (path, item) in &mut document.paths.paths {
            let schema = if path.starts_with("/v1/messages") { "Anthropic" } else { "OpenAi" };
            let admin = path.starts_with("/admin");
            let security = if admin {
                Some(vec![needs("admin")])
            } else {
                // A key, where the server has any.
                (!guard::is_open(path)).then(|| vec![needs("key"), SecurityRequirement::default()])
            };
            let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                operation.security.clone_from(&security);
                let has_body = operation.request_body.is_some() && !admin;
                let codes = BODY_ERRORS.iter().filter(|_| has_body);
                let codes = codes.chain(&ERRORS).chain(ADMIN_ERRORS.iter().filter(|_| admin));
                for (code, says) in codes {
                    let responses = &mut operation.responses.responses;
                    let known = responses.contains_key(*code);
                    if !known {
                        responses.insert((*code).to_owned(), error(schema, says).into());
                    }
                }
            }
        }
    }
}

fn needs(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new(scheme, [] as [&str; 0])
}

const BODY_ERRORS: [(&str, &str); 7] = [
    ("400", "The body is not what it should be; the error names the field."),
    ("404", "Another model is served here."),
    ("408", "The body did not come in time."),
    ("409", "The client sent this request again, and is answered there."),
    ("413", "The body is longer than this server accepts."),
    ("415", "The body does not say that it is JSON."),
    ("503", "Nobody serves at the moment, or the house is full; `Retry-After` says when to ask."),
];

const ERRORS: [(&str, &str); 4] = [
    ("401", "A key is wanted, where the server has any."),
    ("403", "A browser was led here by a page that may not ask."),
    ("429", "The key has used what it may; `Retry-After` says when to ask."),
    ("500", "A mistake of the server's own; it was logged."),
];

const ADMIN_ERRORS: [(&str, &str); 6] = [
    ("401", "This route wants the admin token."),
    ("404", "Nothing is kept under this name, or no admin token is set here."),
    ("413", "The file is longer than this server accepts."),
    ("501", "No engine runs at this gateway: its nodes keep what they have to themselves."),
    ("503", "Nobody serves at the moment."),
    ("507", "There is no room for it."),
];

fn error(schema: &str, says: &str) -> Response {
    let content = Content::new(Some(Ref::from_schema_name(format!("{schema}Error"))));
    ResponseBuilder::new().description(says).content("application/json", content).build()
}
