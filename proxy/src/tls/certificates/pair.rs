//! One certificate with its chain and its key, from two files or from one with both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::CertificateError;
use crate::config::CertificateFiles;
use crate::tls::read_pem;

/// A certificate with a matching key and a valid chain. Its dates need not be valid.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// Its DNS names, in lower case.
    pub(super) names: Vec<String>,
    /// The validity of each certificate of the chain, as UNIX time. Never empty.
    dates: Dates,
}

/// Start and end of each validity.
type Dates = Vec<(Duration, Duration)>;

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl Pair {
    /// Reads a certificate for `usage`, with its chain and its key.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]: an unreadable file, no certificate or key in it, a key of another certificate, an invalid chain.
    pub(super) fn read(
        files: &CertificateFiles,
        provider: &CryptoProvider,
        usage: KeyUsage,
    ) -> Result<Self, CertificateError> {
        let CertificateFiles { certificate, key } = files;
        let chain = read_chain(certificate)?;
        let unusable = |why: String| CertificateError::file(certificate, why);
        let (names, dates) = names_and_dates(&chain).map_err(unusable)?;
        check_links(&chain, &dates, usage).map_err(unusable)?;
        let pem = read_pem(key).map_err(|why| CertificateError::file(key, why))?;
        let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
            pem::Error::NoItemsFound => CertificateError::file(
                key,
                "no private key; expected PEM (PKCS #8, PKCS #1 or SEC 1)",
            ),
            error => CertificateError::file(key, error.to_string()),
        })?;
        let private = provider
            .key_provider
            .load_private_key(private)
            .map_err(|error| CertificateError::file(key, error.to_string()))?;
        let pair = CertifiedKey::new(chain, private);
        pair.keys_match().map_err(|error| {
            let certificate = certificate.display();
            CertificateError::file(key, format!("not the key of {certificate}: {error}"))
        })?;
        Ok(Self {
            key: Arc::new(pair),
            names,
            dates,
        })
    }

    /// When the first certificate of its chain expires.
    pub(super) fn ends(&self) -> Duration {
        let ends = self.dates.iter().map(|(_, end)| *end);
        ends.min().unwrap_or(Duration::MAX)
    }

    /// Whether it and its chain are valid at `now`.
    pub(super) fn is_valid(&self, now: Duration) -> bool {
        self.dates
            .iter()
            .all(|(start, end)| (*start..=*end).contains(&now))
    }

    /// When [`Pair::is_valid`] may change next, if ever.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let second = Duration::from_secs(1);
        let dates = self.dates.iter();
        let changes = dates.flat_map(|(start, end)| [*start, end.saturating_add(second)]);
        changes.filter(|change| now < *change).min()
    }

    /// The error if it or its chain is not valid at `now`; `path` is its file.
    pub(super) fn date_error(&self, now: Duration, path: &Path) -> Option<CertificateError> {
        let invalid = |(index, (start, end)): (usize, &(Duration, Duration))| {
            let place = index + 1;
            if now < *start {
                let start = date_text(*start);
                return Some(format!(
                    "certificate {place} of the chain is not valid before {start}"
                ));
            }
            let end = (*end < now).then(|| date_text(*end))?;
            Some(format!("certificate {place} of the chain expired on {end}"))
        };
        let why = self.dates.iter().enumerate().find_map(invalid)?;
        Some(CertificateError::file(path, why))
    }
}

/// Reads a certificate for `usage` that is valid at `now`, with its chain and its key.
///
/// # Errors
///
/// As [`Pair::read`], or that it has expired or is not valid yet.
pub(in crate::tls) fn check(
    files: &CertificateFiles,
    provider: &CryptoProvider,
    now: SystemTime,
    usage: KeyUsage,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    let pair = Pair::read(files, provider, usage)?;
    match pair.date_error(unix(now), &files.certificate) {
        Some(error) => Err(error),
        None => Ok(pair.key),
    }
}

/// Finds the key of a certificate file in a folder: in `NAME.key`, or in the same file. `None` if it needs none, because it is
/// the certificate of an authority.
pub(super) fn find_key(certificate: PathBuf) -> Option<CertificateFiles> {
    let key = certificate.with_extension("key");
    // Other problems with the key are reported when it is read.
    if key.symlink_metadata().is_ok() {
        return Some(CertificateFiles { certificate, key });
    }
    let pem = read_pem(&certificate).unwrap_or_default();
    if PrivateKeyDer::from_pem_slice(&pem).is_ok() {
        let key = certificate.clone();
        return Some(CertificateFiles { certificate, key });
    }
    // In `ca.crt`, cert-manager's issuers may write nothing, or a self-signed certificate that is not an authority's.
    let is_named_ca = certificate.file_stem().is_some_and(|stem| stem == "ca");
    let is_authority =
        is_named_ca || read_chain(&certificate).is_ok_and(|chain| are_authorities(&chain));
    (!is_authority).then_some(CertificateFiles { certificate, key })
}

fn are_authorities(chain: &[CertificateDer<'static>]) -> bool {
    chain
        .iter()
        .all(|der| X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.is_ca()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read_pem(path).map_err(|why| CertificateError::file(path, why))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::file(path, error.to_string()))?;
    match chain.is_empty() {
        true => Err(CertificateError::file(path, "no certificate; expected PEM")),
        false => Ok(chain),
    }
}

/// The names of the first certificate, and the validity of each.
fn names_and_dates(chain: &[CertificateDer<'static>]) -> Result<(Vec<String>, Dates), String> {
    let (mut names, mut dates) = (Vec::new(), Vec::with_capacity(chain.len()));
    for (index, der) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("certificate {} of the chain: {error}", index + 1))?;
        let validity = certificate.validity();
        let seconds =
            |time: ASN1Time| Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
        dates.push((seconds(validity.not_before), seconds(validity.not_after)));
        if index == 0 {
            names = names_of(&certificate);
        }
    }
    Ok((names, dates))
}

/// The DNS names of a certificate, in lower case.
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = alternatives.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// Checks that each certificate is signed by the next. The last is not verified: clients decide whether to trust it.
fn check_links(
    chain: &[CertificateDer<'static>],
    dates: &[(Duration, Duration)],
    usage: KeyUsage,
) -> Result<(), String> {
    let [first, between @ .., last] = chain else {
        return Ok(());
    };
    let broken = |error: webpki::Error| {
        format!(
            "the chain is not valid ({error}); expected the server's certificate first, then the issuer of each"
        )
    };
    let anchor = anchor_from_trusted_cert(last).map_err(broken)?;
    // At a time when all of them were valid: the current dates are checked elsewhere.
    let start = dates.iter().map(|(start, _)| *start).max();
    EndEntityCert::try_from(first)
        .and_then(|first| {
            first
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &[anchor],
                    between,
                    UnixTime::since_unix_epoch(start.unwrap_or_default()),
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
        })
        .map_err(broken)
}

fn date_text(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("{seconds}"), |time| time.to_string())
}

pub(in crate::tls) fn unix(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
