//! The hub's side: what a repository has, and where its files are.

use crate::{HubError, name::Name, name::encoded};
use serde::{Deserialize, de::DeserializeOwned};
use std::{io::Read, time::Duration};
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response},
};

/// Longer than any of these takes on a line that works.
const CONNECT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);

/// Redirects within the hub that are followed: it renames repositories, and keeps small files elsewhere.
const MOST_MOVES: usize = 5;

/// Lists of files, branches and tags are not longer.
const LONGEST_LIST: u64 = 32 << 20;

pub(crate) struct Remote {
    pub endpoint: String,
    token: Option<String>,
    /// Follows redirects; to another host it sends no token.
    agent: Agent,
    /// Shows redirects: what the hub says of a file is in their headers.
    still: Agent,
}

/// A repository at a revision.
#[derive(Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    pub sha: String,
    pub siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
pub(crate) struct Sibling {
    pub rfilename: String,
}

impl Listing {
    pub fn has(&self, file: &str) -> bool {
        self.siblings.iter().any(|sibling| sibling.rfilename == file)
    }
}

/// What the hub says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    /// The digest by which the cache names it: SHA-256 of large files, git's of small ones.
    pub etag: String,
    pub size: u64,
}

#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
}

impl Remote {
    pub fn new(endpoint: String, token: Option<String>) -> Self {
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(SILENCE))
                .timeout_per_read(Some(SILENCE))
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .user_agent(concat!("taskvec/", env!("CARGO_PKG_VERSION")))
        };
        let still = config().max_redirects(0).max_redirects_will_error(false).build().into();
        Self { endpoint, token, agent: config().build().into(), still }
    }

    /// Branches and tags, sorted.
    pub fn revisions(&self, name: &Name) -> Result<Vec<String>, HubError> {
        let url = format!("{}/api/models/{name}/refs", self.endpoint);
        let response = self.ask(&self.agent, &url, None)?;
        self.accept(name, response.status().as_u16(), || self.not_found(name))?;
        let Refs { branches, tags } = self.json(&url, response)?;
        let mut names: Vec<String> = branches.into_iter().chain(tags).map(|r| r.name).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The repository at `revision`.
    pub fn listing(&self, name: &Name, revision: &str) -> Result<Listing, HubError> {
        let url = format!("{}/api/models/{name}/revision/{}", self.endpoint, encoded(revision));
        let response = self.ask(&self.agent, &url, None)?;
        self.accept(name, response.status().as_u16(), || match self.revisions(name) {
            Ok(known) => HubError::NoRevision { name: name.clone(), revision: revision.to_owned(), known },
            Err(_) => self.not_found(name),
        })?;
        let listing: Listing = self.json(&url, response)?;
        match crate::name::is_hex(&listing.sha) {
            true => Ok(listing),
            false => Err(HubError::BadAnswer { url, reason: "its commit is none".to_owned() }),
        }
    }

    /// Address of a file of a commit.
    pub fn address(&self, name: &Name, commit: &str, file: &str) -> String {
        format!("{}/{name}/resolve/{commit}/{}", self.endpoint, encoded(file))
    }

    /// What the hub says of a file, without its content.
    pub fn about(&self, name: &Name, commit: &str, file: &str) -> Result<About, HubError> {
        let mut url = self.address(name, commit, file);
        for _ in 0..=MOST_MOVES {
            let response = self.ask(&self.still, &url, Some("bytes=0-0"))?;
            let status = response.status().as_u16();
            // Within the hub, and not yet where the file's digest is told.
            let is_move = (300..400).contains(&status) && header(response.headers(), "x-linked-etag").is_none();
            let location = header(response.headers(), "location").filter(|_| is_move);
            match location.filter(|to| to.starts_with('/') && !to.starts_with("//")) {
                Some(moved) => url = format!("{}{moved}", self.origin()),
                None => {
                    self.accept(name, status, || self.no_file(name, file))?;
                    return about(status, response.headers()).map_err(|reason| HubError::BadAnswer { url, reason });
                }
            }
        }
        Err(HubError::BadAnswer { url, reason: "it redirects without end".to_owned() })
    }

    /// The content of a file from byte `from` on, and whether it begins there: some servers send all of it.
    pub fn content(
        &self,
        name: &Name,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<(bool, impl Read + use<>), HubError> {
        let url = self.address(name, commit, file);
        let response = self.ask(&self.agent, &url, Some(&format!("bytes={from}-")))?;
        let status = response.status().as_u16();
        self.accept(name, status, || self.no_file(name, file))?;
        Ok((status == 206, response.into_body().into_reader()))
    }

    /// A failure of the network, in the middle of a file.
    pub fn broken(&self, reason: &std::io::Error) -> HubError {
        HubError::Unreachable {
            endpoint: self.endpoint.clone(),
            reason: format!("the connection broke off ({reason})"),
        }
    }

    fn ask(&self, agent: &Agent, url: &str, range: Option<&str>) -> Result<Response<Body>, HubError> {
        // Ranges and sizes are those of the file, not of what a compression makes of it.
        let mut request = agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let unreachable =
            |e: ureq::Error| HubError::Unreachable { endpoint: self.endpoint.clone(), reason: e.to_string() };
        request.call().map_err(unreachable)
    }

    /// An error unless the status is a good one; a redirect is one where it is shown at all.
    fn accept(&self, name: &Name, status: u16, missing: impl FnOnce() -> HubError) -> Result<(), HubError> {
        let (endpoint, name) = (self.endpoint.clone(), name.clone());
        match status {
            200..=399 => Ok(()),
            401 | 403 => Err(HubError::Refused { endpoint, name, status, with_token: self.token.is_some() }),
            404 => Err(missing()),
            408 | 429 | 500.. => Err(HubError::Busy { endpoint, status }),
            _ => Err(HubError::BadAnswer { url: format!("{endpoint}/{name}"), reason: format!("status {status}") }),
        }
    }

    fn not_found(&self, name: &Name) -> HubError {
        HubError::NotFound { endpoint: self.endpoint.clone(), name: name.clone() }
    }

    fn no_file(&self, name: &Name, file: &str) -> HubError {
        HubError::NoFile { endpoint: self.endpoint.clone(), name: name.clone(), file: file.to_owned() }
    }

    /// The endpoint without its path.
    fn origin(&self) -> &str {
        let host = self.endpoint.find("://").map_or(0, |at| at + 3);
        let end = self.endpoint[host..].find('/').map_or(self.endpoint.len(), |at| host + at);
        &self.endpoint[..end]
    }

    fn json<T: DeserializeOwned>(&self, url: &str, response: Response<Body>) -> Result<T, HubError> {
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(LONGEST_LIST);
        body.read_to_end(&mut bytes).map_err(|e| self.broken(&e))?;
        let bad = |e: serde_json::Error| HubError::BadAnswer { url: url.to_owned(), reason: e.to_string() };
        serde_json::from_slice(&bytes).map_err(bad)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// From the headers of the hub's own answer; of a redirect to where large files are kept, the `x-linked` ones.
fn about(status: u16, headers: &HeaderMap) -> Result<About, String> {
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).ok_or("it has no etag")?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    if !crate::name::is_hex(etag) {
        return Err(format!("its etag `{}` is no digest", etag.escape_debug()));
    }
    let whole = || header(headers, "content-range")?.rsplit('/').next();
    let length = || header(headers, "content-length").filter(|_| status == 200);
    let size = header(headers, "x-linked-size").or_else(whole).or_else(length).ok_or("it has no size")?;
    let size = size.parse().map_err(|_| format!("its size `{}` is no number", size.escape_debug()))?;
    Ok(About { etag: etag.to_lowercase(), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, set: &[(&'static str, &'static str)]) -> Result<About, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in set {
            headers.insert(*name, value.parse().expect("a value"));
        }
        about(status, &headers)
    }

    #[test]
    fn sizes_and_digests_are_read_from_headers() {
        let about = |etag: &str, size| Ok(About { etag: etag.to_owned(), size });
        let linked = [("x-linked-etag", "\"abcdef0123\""), ("x-linked-size", "17"), ("etag", "\"99999999\"")];
        assert_eq!(of(302, &linked), about("abcdef0123", 17));
        assert_eq!(of(206, &[("etag", "\"ABCDEF01\""), ("content-range", "bytes 0-0/5")]), about("abcdef01", 5));
        assert_eq!(of(200, &[("etag", "W/\"abcdef01\""), ("content-length", "5")]), about("abcdef01", 5));
        // An etag becomes the name of a file.
        for bad in ["../../../x", "", "a/b", "abc"] {
            assert!(of(200, &[("etag", bad), ("content-length", "5")]).is_err(), "{bad}");
        }
        assert!(of(206, &[("etag", "abcdef01"), ("content-length", "1")]).is_err(), "the length of the part");
        assert!(of(206, &[("etag", "abcdef01"), ("content-range", "bytes 0-0/*")]).is_err());
    }

    #[test]
    fn the_origin_of_an_endpoint_has_no_path() {
        for (endpoint, origin) in [("https://h.co", "https://h.co"), ("http://m:8/hub/x", "http://m:8")] {
            assert_eq!(Remote::new(endpoint.to_owned(), None).origin(), origin);
        }
    }
}
