//! The chat page: the files that `web/` builds, held compressed in the program. They are public: the
//! page asks for a key when the dialects want one.

use crate::app::Shared;
use crate::failure::{Failure, Kind, Reply};
use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use sha2::{Digest, Sha256};

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    /// As `web/scripts/pack.mjs` wrote it.
    gzip: &'static [u8],
}

const FILES: [File; 4] = [
    File {
        path: "/",
        kind: "text/html; charset=utf-8",
        gzip: include_bytes!("../../../web/packed/index.html.gz"),
    },
    File {
        path: "/app.js",
        kind: "text/javascript; charset=utf-8",
        gzip: include_bytes!("../../../web/packed/app.js.gz"),
    },
    File {
        path: "/app.css",
        kind: "text/css; charset=utf-8",
        gzip: include_bytes!("../../../web/packed/app.css.gz"),
    },
    File {
        path: "/icon.svg",
        kind: "image/svg+xml",
        gzip: include_bytes!("../../../web/packed/icon.svg.gz"),
    },
];

/// Bytes of a file, unpacked, at most.
const MOST: usize = 4 << 20;

/// Scripts, styles and connections of this server alone; no inline script, no frame around the page,
/// and no text that could become HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The page's routes.
pub fn routes() -> Router<Shared> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = tag(file.gzip);
        router.route(file.path, get(async move |headers: HeaderMap| file.answer(&tag, &headers)))
    })
}

/// Half of an ETag: a hash of the file.
fn tag(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|b| format!("{b:02x}")).collect()
}

impl File {
    fn answer(&self, tag: &str, asked: &HeaderMap) -> Reply {
        let packed = takes_gzip(asked);
        // Two forms of one file are two things to a cache.
        let tag = if packed { format!("\"{tag}-gzip\"") } else { format!("\"{tag}\"") };
        let known = known(asked, &tag);
        let body = match (known, packed) {
            (true, _) => Vec::new(),
            (false, true) => self.gzip.to_vec(),
            (false, false) => unpack(self.gzip).ok_or_else(|| {
                Failure::new(Kind::Internal, format!("{} can't be unpacked", self.path))
            })?,
        };
        let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let mut add = |name: HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        add(header::CONTENT_TYPE, self.kind);
        add(header::CACHE_CONTROL, "no-cache");
        add(header::VARY, "accept-encoding");
        add(header::CONTENT_SECURITY_POLICY, POLICY);
        add(header::REFERRER_POLICY, "no-referrer");
        add(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
        add(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
        if packed && !known {
            add(header::CONTENT_ENCODING, "gzip");
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        Ok(response)
    }
}

/// Whether `Accept-Encoding` allows gzip. Without the header we send plain bytes: HTTP would allow
/// any coding, but a person with curl wants to read them.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut any = None;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let quality = parts.find_map(|p| p.strip_prefix("q=")).unwrap_or("1");
            let wanted = quality.parse::<f32>().is_ok_and(|q| q > 0.0);
            if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
                return wanted;
            }
            if name == "*" {
                any = Some(wanted);
            }
        }
    }
    any.unwrap_or(false)
}

/// Whether the client has what `tag` names, by `If-None-Match`.
fn known(headers: &HeaderMap, tag: &str) -> bool {
    let listed = headers.get_all(header::IF_NONE_MATCH).into_iter();
    listed.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|item| {
        let item = item.trim();
        item == "*" || item.strip_prefix("W/").unwrap_or(item) == tag
    })
}

/// Takes a gzip file of ours apart: a head of ten bytes, deflated data, eight bytes of sums.
fn unpack(gzip: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = gzip.split_first_chunk::<10>()?;
    let (deflated, sums) = rest.split_last_chunk::<8>()?;
    // No name, no comment, no further fields: the flags are zero.
    if head[..4] != [0x1f, 0x8b, 8, 0] {
        return None;
    }
    let bytes = miniz_oxide::inflate::decompress_to_vec_with_limit(deflated, MOST).ok()?;
    let [_, _, _, _, length @ ..] = *sums;
    (bytes.len() == u32::from_le_bytes(length) as usize).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn files_unpack_and_the_page_names_only_files_that_are_served() {
        for file in FILES {
            assert!(unpack(file.gzip).is_some_and(|b| !b.is_empty()), "{}", file.path);
        }
        let html = String::from_utf8(unpack(FILES[0].gzip).unwrap()).unwrap();
        for (_, rest) in html.match_indices("=\"./").map(|(i, s)| (i, &html[i + s.len() - 1..])) {
            let path = &rest[..rest.find('"').unwrap()];
            assert!(FILES.iter().any(|f| f.path == path), "{path}");
        }
    }

    /// Hosts that the files name and never ask: the names of XML dialects, and where marked's own
    /// error message tells people to report it.
    const NAMED: [&str; 2] = ["www.w3.org", "github.com"];

    #[test]
    fn nothing_of_the_page_leads_elsewhere() {
        for file in FILES {
            let text = String::from_utf8(unpack(file.gzip).unwrap()).unwrap();
            for rest in text.split("://").skip(1) {
                let part = |c: &char| c.is_ascii_alphanumeric() || ".-".contains(*c);
                let host: String = rest.chars().take_while(part).collect();
                // Nothing: marked puts "http://" before a text that begins with "www.".
                assert!(host.is_empty() || NAMED.contains(&host.as_str()), "{}: {host}", file.path);
            }
        }
    }

    #[test]
    fn accept_encoding() {
        let takes = |value| takes_gzip(&headers(header::ACCEPT_ENCODING, value));
        for yes in ["gzip", "deflate, GZip;q=0.5, br", "*", "br;q=1.0, *;q=0.1", "x-gzip"] {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=0", "*, gzip;q=0", "*;q=0", "br, zstd", "gzip;q=x"] {
            assert!(!takes(no), "{no}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn answers_and_tags() {
        let file = FILES[1];
        let tag = tag(file.gzip);
        let plain = file.answer(&tag, &HeaderMap::new()).unwrap();
        assert_eq!(plain.status(), 200);
        assert!(plain.headers().get(header::CONTENT_ENCODING).is_none());
        let gzip = headers(header::ACCEPT_ENCODING, "gzip");
        let packed = file.answer(&tag, &gzip).unwrap();
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(packed.headers()[header::VARY], "accept-encoding");
        assert_ne!(packed.headers()[header::ETAG], plain.headers()[header::ETAG]);

        let mut again = gzip.clone();
        again.insert(header::IF_NONE_MATCH, packed.headers()[header::ETAG].clone());
        assert_eq!(file.answer(&tag, &again).unwrap().status(), 304);
        again.insert(header::IF_NONE_MATCH, plain.headers()[header::ETAG].clone());
        assert_eq!(file.answer(&tag, &again).unwrap().status(), 200);
    }

    #[test]
    fn damaged_files_are_no_files() {
        let good = FILES[3].gzip;
        assert!(unpack(&[]).is_none());
        assert!(unpack(&good[..good.len() - 9]).is_none());
        let mut bad = good.to_vec();
        bad[3] = 8;
        assert!(unpack(&bad).is_none());
    }
}
