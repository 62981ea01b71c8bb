//! What a hub says: which files a model has, how large, with which digest. Nothing of its answer is
//! believed that could lead out of the cache.

use std::path::{Component, Path};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::tls::RootCerts;
use ureq::{Agent, Body};

use super::cache;
use crate::exit::Stop;
use crate::tls;

/// A body is asked for in stretches of so much time: one that stalls is asked for anew.
const STRETCH_TIME: Duration = Duration::from_secs(120);

/// Files of a model; those of the largest are some hundred.
const FILES_MAX: usize = 10_000;

/// Bytes of a listing.
const LISTING_BYTES_MAX: u64 = 32 << 20;

/// A server of models.
#[derive(Debug)]
pub(super) struct Hub {
    endpoint: String,
    token: Option<String>,
    agent: Agent,
}

/// What a model consists of.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) repo: String,
    pub(super) revision: String,
    pub(super) commit: String,
    pub(super) files: Vec<File>,
}

/// One file of it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Its name among the blobs.
    pub(super) blob: String,
    /// Known of large files only.
    pub(super) sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Told {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

#[derive(Debug, Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

impl Hub {
    /// The one that `HF_ENDPOINT` names, with the token that other tools use.
    pub(super) fn of_environment() -> Result<Self> {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        if set("HF_HUB_OFFLINE").is_some_and(|value| value != "0") {
            bail!("HF_HUB_OFFLINE is set: nothing is fetched");
        }
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let uri: ureq::http::Uri = endpoint.parse().context("HF_ENDPOINT is no address")?;
        let host = uri.host().context("HF_ENDPOINT names no host")?.to_owned();
        let near = ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str());
        ensure!(
            uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http"),
            "HF_ENDPOINT must begin with https:// or http://"
        );
        let file =
            || set("HF_TOKEN_PATH").map(Into::into).or(Some(cache::hub_home()?.join("token")));
        let kept = || std::fs::read_to_string(file()?).ok().map(|token| token.trim().to_owned());
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(kept);
        let token = token.filter(|token| !token.is_empty());
        if token.is_some() && uri.scheme_str() == Some("http") && !near {
            bail!("HF_ENDPOINT is not encrypted: the token would go there for all to read");
        }
        let agent = Agent::config_builder()
            .tls_config(tls::trusting(RootCerts::PlatformVerifier))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(STRETCH_TIME))
            .user_agent(concat!("mtplx/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { endpoint, token, agent })
    }

    /// Asks what a model consists of.
    pub(super) fn list(&self, repo: &str, revision: &str) -> Result<Listing> {
        let branch = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{repo}/revision/{branch}?blobs=true", self.endpoint);
        let mut answer = self.ask(&url, 0)?;
        refuse(&answer, repo, revision, self.token.is_some())?;
        let body = answer.body_mut().with_config().limit(LISTING_BYTES_MAX);
        let told: Told = body.read_json().context("the hub's list of files makes no sense")?;
        ensure!(is_hex(&told.sha, 40), "the hub names no commit");
        ensure!(told.siblings.len() <= FILES_MAX, "the hub names more than {FILES_MAX} files");
        let files: Result<Vec<File>> = told.siblings.into_iter().map(checked).collect();
        let (repo, revision) = (repo.to_owned(), revision.to_owned());
        Ok(Listing { repo, revision, commit: told.sha, files: files? })
    }

    /// Asks for a file from a byte on.
    pub(super) fn open(&self, listing: &Listing, file: &File, from: u64) -> Result<Response<Body>> {
        let (repo, commit) = (&listing.repo, &listing.commit);
        let name: Vec<String> = file.name.split('/').map(escaped).collect();
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, name.join("/"));
        let answer = self.ask(&url, from)?;
        refuse(&answer, repo, &listing.revision, self.token.is_some())?;
        Ok(answer)
    }

    /// The token is not sent on to where the answer may lead.
    fn ask(&self, url: &str, from: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let nobody = |e| Stop::Nobody(format!("{} does not answer: {e}", self.endpoint));
        Ok(request.call().map_err(nobody)?)
    }
}

/// What a status means for whoever asked.
fn refuse(answer: &Response<Body>, repo: &str, revision: &str, known: bool) -> Result<()> {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let status = answer.status();
    let gated = header("x-error-code") == Some("GatedRepo");
    let denied = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if gated => format!(
            "{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of yours"
        ),
        StatusCode::UNAUTHORIZED if known => {
            format!("the hub does not know {repo}, or the token does not open it")
        }
        StatusCode::UNAUTHORIZED => {
            format!("the hub does not know {repo}, or wants a token for it: set HF_TOKEN")
        }
        StatusCode::FORBIDDEN => format!("the hub does not let this token have {repo}"),
        StatusCode::NOT_FOUND if header("x-error-code") == Some("RevisionNotFound") => {
            bail!("{repo} has no branch, tag or commit {revision:?}")
        }
        StatusCode::NOT_FOUND => bail!("the hub does not know {repo}, or a file of it"),
        _ => return Ok(()),
    };
    Err(Stop::Denied(denied).into())
}

/// A file whose names can do no harm.
fn checked(told: Sibling) -> Result<File> {
    let name = told.rfilename;
    let plain = |part: Component| matches!(part, Component::Normal(_));
    let odd = name.contains(['\\', '\0']) || name.chars().any(char::is_control);
    let tidy = Path::new(&name).components().all(plain) && !name.ends_with('/');
    let tidy = tidy && !name.split('/').any(|part| part.is_empty() || part == ".");
    if name.is_empty() || name.len() > 1024 || odd || !tidy {
        bail!("the hub names a file {name:?}, which would not stay in its folder");
    }
    let unknown = || format!("the hub does not say how large {name} is, or which");
    let (bytes, blob, sha256) = match told.lfs {
        Some(Large { sha256, size }) => (size, sha256.clone(), Some(sha256)),
        None => {
            let blob = told.blob_id.with_context(unknown)?;
            (told.size.with_context(unknown)?, blob, None)
        }
    };
    let digits = if sha256.is_some() { 64 } else { 40 };
    ensure!(is_hex(&blob, digits), "{}", unknown());
    Ok(File { name, bytes, blob, sha256 })
}

/// Whether it is so many digits of a digest.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_word(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with('.') && !text.contains("..") && text.chars().all(known)
}

/// As hubs name models.
pub(super) fn check_repo(repo: &str) -> Result<()> {
    let parts: Vec<&str> = repo.split('/').collect();
    let fine = parts.len() <= 2 && repo.len() <= 200 && parts.iter().all(|part| is_word(part));
    ensure!(fine, "{repo:?} is no model's name: it is owner/name, and after an @ its revision");
    Ok(())
}

/// As git names branches, tags and commits, of the plainer sort.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    let fine = revision.len() <= 200 && revision.split('/').all(is_word);
    ensure!(fine, "{revision:?} is no name of a branch, a tag or a commit");
    Ok(())
}

/// A part of a path as it stands in an address.
fn escaped(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    let one = |b: u8| if plain(b) { char::from(b).into() } else { format!("%{b:02X}") };
    part.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for repo in ["", "a/b/c", "../x", "a/..", "a b/c", "a/b?x", "/a", "a/"] {
            assert!(check_repo(repo).is_err(), "{repo}");
        }
        assert!(check_repo("Qwen/Qwen3.5-0.8B").is_ok() && check_revision("refs/pr/1").is_ok());
        assert!(check_revision("../../x").is_err() && check_revision("").is_err());
        let named = |name: &str| {
            let blob_id = Some("a".repeat(40));
            checked(Sibling { rfilename: name.into(), size: Some(1), blob_id, lfs: None })
        };
        for name in ["../x", "/x", "a/../x", "a//x", "a/./x", "a\\x", "a/", "", "a\nb"] {
            assert!(named(name).is_err(), "{name}");
        }
        assert!(named("sub/a b.json").is_ok());
        assert_eq!(escaped("a b#?.json"), "a%20b%23%3F.json");
    }
}
