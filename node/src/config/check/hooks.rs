//! Hooks: addresses, headers, and who vouches for the backend.

use std::collections::BTreeMap;
use std::time::Duration;

use causeway_conf::PEM_BYTES_MAX;
use causeway_conf::Secret;
use causeway_conf::read_file;
use http::HeaderName;
use http::HeaderValue;
use http::Uri;
use http::header;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::Checker;
use crate::config::Hook;
use crate::config::Hooks;
use crate::config::VALUE_NAME_BYTES_MAX;
use crate::config::raw;
use crate::config::settings;

/// What is the node's own to say on a connection to the backend.
const OWN_HEADERS: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
];

/// What holds for a hook that does not say it itself.
struct HookLimits {
    timeout: Duration,
    open_max: usize,
}

impl Checker<'_> {
    pub(super) fn hooks(&mut self, raw: raw::Hooks) -> Hooks {
        let limits = HookLimits {
            timeout: self.span("hooks.timeout", raw.timeout, &settings::HOOK_TIMEOUT),
            open_max: self.count("hooks.open", raw.open, &settings::HOOKS_OPEN),
        };
        Hooks {
            connect: self.hook("hooks.connect", raw.connect, &limits),
            refresh: self.hook("hooks.refresh", raw.refresh, &limits),
            subscribe: self.hook("hooks.subscribe", raw.subscribe, &limits),
            sub_refresh: self.hook("hooks.sub_refresh", raw.sub_refresh, &limits),
            publish: self.hook("hooks.publish", raw.publish, &limits),
            rpc: self.hook("hooks.rpc", raw.rpc, &limits),
            lifecycle: self.hook("hooks.lifecycle", raw.lifecycle, &limits),
            response_bytes_max: self.size(
                "hooks.response_size",
                raw.response_size,
                &settings::HOOK_RESPONSE_SIZE,
            ),
            forward_headers: self.header_names("hooks.forward_headers", raw.forward_headers),
            emulated_headers: self.header_names("hooks.emulated_headers", raw.emulated_headers),
            values: self.value_names(raw.values.unwrap_or_default()),
            headers: self.headers(raw.headers.unwrap_or_default()),
            ca: raw.ca.map(|path| self.ca(&path)).unwrap_or_default(),
        }
    }

    /// Few enough that no question grows without bounds.
    fn value_names(&mut self, names: Vec<String>) -> Vec<String> {
        let max = settings::HOOK_VALUES_MAX;
        if max < names.len() {
            let found = names.len();
            self.error(
                "hooks.values",
                format!("expected at most {max} names, found {found}"),
            );
        }
        for (index, name) in names.iter().enumerate() {
            if name.is_empty() || VALUE_NAME_BYTES_MAX < name.len() {
                let max = VALUE_NAME_BYTES_MAX;
                self.error(
                    &format!("hooks.values[{index}]"),
                    format!("expected a name of 1 to {max} bytes, found {}", name.len()),
                );
            }
        }
        names
    }

    fn hook(&mut self, key: &str, raw: Option<raw::Hook>, limits: &HookLimits) -> Option<Hook> {
        let (address_key, raw) = match raw? {
            raw::Hook::Limited(raw) => (format!("{key}.address"), raw),
            raw::Hook::Address(address) => {
                let raw = raw::LimitedHook {
                    address,
                    timeout: None,
                    open: None,
                };
                (key.to_owned(), raw)
            }
        };
        let timeout = match raw.timeout {
            None => limits.timeout,
            own => self.span(&format!("{key}.timeout"), own, &settings::HOOK_TIMEOUT),
        };
        let open_max = match raw.open {
            None => limits.open_max,
            own => self.count(&format!("{key}.open"), own, &settings::HOOKS_OPEN),
        };
        let address = self.address(&address_key, &raw.address)?;
        Some(Hook {
            address,
            timeout,
            open_max,
        })
    }

    fn address(&mut self, key: &str, text: &str) -> Option<Uri> {
        let uri = text.parse::<Uri>().ok().filter(|uri| {
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            is_http && !authority.is_empty() && !authority.contains('@')
        });
        if uri.is_none() {
            // It may hold a password, where no password belongs.
            self.error(
                key,
                "expected an address such as \"https://app.example/hooks/connect\", with http or https and without a user",
            );
        }
        uri
    }

    fn header_names(&mut self, key: &str, names: Option<Vec<String>>) -> Vec<HeaderName> {
        let names = names.unwrap_or_default().into_iter().enumerate();
        names
            .filter_map(|(index, name)| self.header_name(&format!("{key}[{index}]"), &name))
            .collect()
    }

    fn header_name(&mut self, key: &str, name: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        match parsed {
            None => self.error(
                key,
                format!("expected the name of a header, found {name:?}"),
            ),
            Some(name) if OWN_HEADERS.contains(&name) => {
                self.error(
                    key,
                    format!("expected another header: the node sets {name} itself"),
                );
            }
            Some(name) => return Some(name),
        }
        None
    }

    fn headers(&mut self, raw: BTreeMap<String, Secret>) -> Vec<(HeaderName, Secret)> {
        let mut headers = Vec::new();
        for (name, value) in raw {
            let key = format!("hooks.headers.{name}");
            let name = self.header_name(&key, &name);
            if HeaderValue::from_str(value.expose()).is_err() {
                self.error(&key, "expected a text that fits a header, of one line");
            } else if let Some(name) = name {
                headers.push((name, value));
            }
        }
        headers
    }

    fn ca(&mut self, path: &str) -> Vec<CertificateDer<'static>> {
        let pem = match read_file(path.as_ref(), PEM_BYTES_MAX) {
            Ok(pem) => pem,
            Err(error) => {
                self.error(
                    "hooks.ca",
                    format!("expected certificates in PEM in {path}: {error}"),
                );
                return Vec::new();
            }
        };
        match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if !certificates.is_empty() => return certificates,
            Ok(_) => self.error(
                "hooks.ca",
                format!("expected certificates in PEM in {path}, which begin with \"-----BEGIN CERTIFICATE-----\""),
            ),
            Err(error) => self.error("hooks.ca", format!("expected certificates in PEM in {path}: {error}")),
        }
        Vec::new()
    }
}
