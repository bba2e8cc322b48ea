//! One certificate with its chain and its key: two files, or one that holds both.

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

/// A certificate whose key and chain fit. Whether its dates hold is another question.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case.
    pub(super) names: Vec<String>,
    /// From when and until when each certificate of the chain is valid, as UNIX time. Never empty.
    dates: Dates,
}

/// Starts and ends.
type Dates = Vec<(Duration, Duration)>;

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl Pair {
    /// Reads a certificate that is to be used for `usage`, with its chain and its key.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]: unreadable, no certificate or key in the file, a key of another certificate, a chain whose links do
    /// not fit.
    pub(super) fn read(
        files: &CertificateFiles,
        provider: &CryptoProvider,
        usage: KeyUsage,
    ) -> Result<Self, CertificateError> {
        let CertificateFiles { certificate, key } = files;
        let chain = read_chain(certificate)?;
        let wrong = |why: String| CertificateError::file(certificate, why);
        let (names, dates) = names_and_dates(&chain).map_err(wrong)?;
        check_links(&chain, &dates, usage).map_err(wrong)?;
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

    /// When the first of its chain ends.
    pub(super) fn ends(&self) -> Duration {
        let ends = self.dates.iter().map(|(_, end)| *end);
        ends.min().unwrap_or(Duration::MAX)
    }

    /// Whether its dates hold, and those of its chain.
    pub(super) fn is_valid(&self, now: Duration) -> bool {
        self.dates
            .iter()
            .all(|(start, end)| (*start..=*end).contains(&now))
    }

    /// When [`Pair::is_valid`] may change next, if it ever does.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let second = Duration::from_secs(1);
        let dates = self.dates.iter();
        let changes = dates.flat_map(|(start, end)| [*start, end.saturating_add(second)]);
        changes.filter(|change| now < *change).min()
    }

    /// What its dates say against it, which is in the file at `path`.
    pub(super) fn wrong_dates(&self, now: Duration, path: &Path) -> Option<CertificateError> {
        let wrong = |(index, (start, end)): (usize, &(Duration, Duration))| {
            let place = index + 1;
            if now < *start {
                let start = in_words(*start);
                return Some(format!(
                    "certificate {place} of the chain is not valid before {start}"
                ));
            }
            let end = (*end < now).then(|| in_words(*end))?;
            Some(format!(
                "certificate {place} of the chain has ended on {end}"
            ))
        };
        let why = self.dates.iter().enumerate().find_map(wrong)?;
        Some(CertificateError::file(path, why))
    }
}

/// Reads a certificate whose dates hold, that is to be used for `usage`, with its chain and its key.
///
/// # Errors
///
/// As [`Pair::read`], or a date that is over or has not come.
pub(in crate::tls) fn check(
    files: &CertificateFiles,
    provider: &CryptoProvider,
    now: SystemTime,
    usage: KeyUsage,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    let pair = Pair::read(files, provider, usage)?;
    match pair.wrong_dates(unix(now), &files.certificate) {
        Some(error) => Err(error),
        None => Ok(pair.key),
    }
}

/// The key that belongs to a file of a folder: in `NAME.key`, or in the same file. `None` if it needs none, because it holds
/// what an authority signs with.
pub(super) fn find_key(certificate: PathBuf) -> Option<CertificateFiles> {
    let key = certificate.with_extension("key");
    // Whatever else is wrong with it is said when it is read.
    if key.symlink_metadata().is_ok() {
        return Some(CertificateFiles { certificate, key });
    }
    let pem = read_pem(&certificate).unwrap_or_default();
    if PrivateKeyDer::from_pem_slice(&pem).is_ok() {
        let key = certificate.clone();
        return Some(CertificateFiles { certificate, key });
    }
    // cert-manager's issuers may leave it empty, or put a self-signed certificate there that is no authority's.
    let is_named_so = certificate.file_stem().is_some_and(|stem| stem == "ca");
    let is_authority =
        is_named_so || read_chain(&certificate).is_ok_and(|chain| are_authorities(&chain));
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

/// The names of the first certificate, and the dates of each.
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

/// The DNS names that a certificate is for, in lower case.
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

/// Each certificate is signed by the next. The last is taken at its word: it is the client who trusts.
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
            "the chain does not hold ({error}); expected the server's certificate first, then each one's issuer"
        )
    };
    let anchor = anchor_from_trusted_cert(last).map_err(broken)?;
    // At a moment when all of them were valid: that they are now is checked where it matters.
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

fn in_words(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("{seconds}"), |time| time.to_string())
}

pub(in crate::tls) fn unix(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
