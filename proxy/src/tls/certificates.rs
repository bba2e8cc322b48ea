//! The certificates of a listener: read from files, checked, chosen by name, exchanged while connections go on.
//!
//! A set is taken whole or not at all: as long as one file of it is wrong, the set before it serves on. A certificate
//! serves the names that it holds itself (its subject alternative names), so that file and names cannot disagree.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{CertificateFiles, CertificateSource};

/// The endings of a certificate in a folder; its key is called the same, with `.key`.
const ENDINGS: [&str; 2] = ["crt", "pem"];

/// Why a set of certificates is not taken.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or holds something else.
    #[error("{path}: {why}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is none.
    #[error("{0}: no certificate; expected NAME.crt or NAME.pem, with its key in NAME.key")]
    Empty(PathBuf),
}

impl CertificateError {
    fn file(path: &Path, why: impl Into<String>) -> Self {
        let (path, why) = (path.to_owned(), why.into());
        Self::File { path, why }
    }
}

/// The certificates that serve now. Clones of its `Arc` see every exchange.
#[derive(Debug)]
pub(crate) struct Certificates {
    source: CertificateSource,
    provider: Arc<CryptoProvider>,
    now: ArcSwap<Set>,
}

/// Certificates by the names that they serve.
#[derive(Debug)]
struct Set {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// For clients that name nobody, or somebody unknown: the first.
    default: Arc<CertifiedKey>,
    /// When the first of them ends, as UNIX time.
    ends: Duration,
}

/// One certificate with its key, checked.
pub(super) struct Checked {
    pub(super) key: Arc<CertifiedKey>,
    names: Vec<String>,
    ends: Duration,
}

impl Certificates {
    /// Reads and checks the files of `source`.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] for the first file that is wrong: unreadable, no certificate or key in it, a key of another
    /// certificate, a date that is over or not come, a chain whose links do not fit.
    pub(crate) fn load(
        source: CertificateSource,
        provider: Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let set = Set::load(&source, &provider, now)?;
        Ok(Self {
            source,
            provider,
            now: ArcSwap::from_pointee(set),
        })
    }

    /// Reads the files again, and serves what they hold from now on.
    ///
    /// # Errors
    ///
    /// As [`Certificates::load`]; then everything stays as it is.
    pub(crate) fn reload(&self, now: SystemTime) -> Result<(), CertificateError> {
        let set = Set::load(&self.source, &self.provider, now)?;
        self.now.store(Arc::new(set));
        Ok(())
    }

    /// When the first certificate ends, as UNIX time.
    pub(crate) fn ends(&self) -> Duration {
        self.now.load().ends
    }

    /// The files that there are now.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let files = files_of(&self.source).unwrap_or_default();
        let pairs = files.into_iter();
        pairs
            .flat_map(|pair| [pair.certificate, pair.key])
            .collect()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.now.load();
        Some(Arc::clone(set.find(hello.server_name())))
    }
}

impl Set {
    fn load(
        source: &CertificateSource,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let files = files_of(source)?;
        let mut by_name = HashMap::new();
        let mut default = None;
        let mut ends = Duration::MAX;
        for pair in &files {
            let checked = check(pair, provider, now, KeyUsage::server_auth())?;
            ends = ends.min(checked.ends);
            default.get_or_insert_with(|| Arc::clone(&checked.key));
            for name in checked.names {
                // Where two hold a name, the first keeps it.
                by_name
                    .entry(name)
                    .or_insert_with(|| Arc::clone(&checked.key));
            }
        }
        let default = default.ok_or_else(|| match source {
            CertificateSource::Folder(folder) => CertificateError::Empty(folder.clone()),
            CertificateSource::Files(_) => CertificateError::Empty(PathBuf::new()),
        })?;
        Ok(Self {
            by_name,
            default,
            ends,
        })
    }

    /// The exact name, then the wildcard over its first label (RFC 6125, 6.4.3), then the default.
    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name else {
            return &self.default;
        };
        if let Some(key) = self.by_name.get(name) {
            return key;
        }
        let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let by_wildcard = wildcard.and_then(|wildcard| self.by_name.get(&wildcard));
        by_wildcard.unwrap_or(&self.default)
    }
}

/// The pairs of files, those of a folder in the order of their names.
fn files_of(source: &CertificateSource) -> Result<Vec<CertificateFiles>, CertificateError> {
    let folder = match source {
        CertificateSource::Files(files) => return Ok(files.clone()),
        CertificateSource::Folder(folder) => folder,
    };
    let unreadable = |error: std::io::Error| CertificateError::file(folder, error.to_string());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let certificate = entry.map_err(unreadable)?.path();
        let ending = certificate.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            let key = certificate.with_extension("key");
            files.push(CertificateFiles { certificate, key });
        }
    }
    files.sort_by(|a, b| a.certificate.cmp(&b.certificate));
    Ok(files)
}

/// Reads a certificate that is to be used for `usage`, with its chain and its key.
pub(super) fn check(
    files: &CertificateFiles,
    provider: &CryptoProvider,
    now: SystemTime,
    usage: KeyUsage,
) -> Result<Checked, CertificateError> {
    let CertificateFiles { certificate, key } = files;
    let chain = read_chain(certificate)?;
    let wrong = |why: String| CertificateError::file(certificate, why);
    let (names, ends) = check_dates(&chain, now).map_err(wrong)?;
    check_links(&chain, now, usage).map_err(wrong)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
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
    Ok(Checked {
        key: Arc::new(pair),
        names,
        ends,
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| CertificateError::file(path, error.to_string()))?;
    match chain.is_empty() {
        true => Err(CertificateError::file(path, "no certificate; expected PEM")),
        false => Ok(chain),
    }
}

/// The names of the first certificate, and when the first of the chain ends.
fn check_dates(
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(Vec<String>, Duration), String> {
    let now = unix(now);
    let mut names = Vec::new();
    let mut ends = Duration::MAX;
    for (index, der) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("certificate {} of the chain: {error}", index + 1))?;
        let validity = certificate.validity();
        let seconds = |timestamp: i64| Duration::from_secs(timestamp.try_into().unwrap_or(0));
        let end = seconds(validity.not_after.timestamp());
        if now < seconds(validity.not_before.timestamp()) {
            return Err(format!(
                "certificate {} of the chain is not valid before {}",
                index + 1,
                validity.not_before
            ));
        }
        if end < now {
            return Err(format!(
                "certificate {} of the chain has ended on {}",
                index + 1,
                validity.not_after
            ));
        }
        ends = ends.min(end);
        if index == 0 {
            names = names_of(&certificate);
        }
    }
    Ok((names, ends))
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
    now: SystemTime,
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
    EndEntityCert::try_from(first)
        .and_then(|first| {
            first
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &[anchor],
                    between,
                    UnixTime::since_unix_epoch(unix(now)),
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
        })
        .map_err(broken)
}

fn unix(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, folder};

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    fn load(folder: &Path) -> Result<Certificates, CertificateError> {
        let source = CertificateSource::Folder(folder.to_owned());
        Certificates::load(source, provider(), SystemTime::now())
    }

    /// Which file of `names` serves the name.
    fn serves(certificates: &Certificates, name: Option<&str>) -> Vec<u8> {
        certificates.now.load().find(name).cert[0].to_vec()
    }

    #[test]
    fn a_name_gets_its_own_certificate_then_a_wildcard_then_the_first() {
        let folder = folder("names");
        let authority = Authority::new();
        let exact = authority.issue(&["chat.example"]).write(folder.path(), "b");
        let wild = authority.issue(&["*.example"]).write(folder.path(), "c");
        let first = authority.issue(&["first.test"]).write(folder.path(), "a");
        let certificates = load(folder.path()).unwrap();
        for (name, expected) in [
            (Some("chat.example"), &exact),
            (Some("other.example"), &wild),
            (Some("deep.other.example"), &first),
            (Some("example"), &first),
            (None, &first),
        ] {
            assert_eq!(&serves(&certificates, name), expected, "{name:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file_and_the_old_set_stays() {
        let folder = folder("wrong");
        let authority = Authority::new();
        let good = authority
            .issue(&["good.example"])
            .write(folder.path(), "good");
        let certificates = load(folder.path()).unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let future = SystemTime::now() + Duration::from_secs(2500 * 365 * 24 * 3600);
        for (time, expected) in [(past, "is not valid before"), (future, "has ended on")] {
            let error = certificates.reload(time).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let key = folder.path().join("good.key");
        let right = std::fs::read(&key).unwrap();
        let other = authority.issue(&["other.example"]);
        for (content, expected) in [
            (other.key_pem().into_bytes(), "not the key of"),
            (b"nothing".to_vec(), "no private key"),
        ] {
            std::fs::write(&key, content).unwrap();
            let error = certificates
                .reload(SystemTime::now())
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&*key.to_string_lossy()) && error.contains(expected),
                "{error}"
            );
            assert_eq!(serves(&certificates, Some("good.example")), good);
        }
        std::fs::write(&key, right).unwrap();
        certificates.reload(SystemTime::now()).unwrap();
        std::fs::write(folder.path().join("good.crt"), "-----BEGIN").unwrap();
        assert!(certificates.reload(SystemTime::now()).is_err());
    }

    #[test]
    fn a_chain_whose_links_do_not_fit_is_not_taken() {
        let folder = folder("chain");
        let (authority, stranger) = (Authority::new(), Authority::new());
        let leaf = authority.issue(&["a.example"]);
        leaf.write_chain(folder.path(), "a", &[&authority]);
        load(folder.path()).unwrap();
        leaf.write_chain(folder.path(), "a", &[&stranger]);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("the chain does not hold"), "{error}");
    }

    #[test]
    fn an_empty_folder_and_a_missing_one_are_errors() {
        let folder = folder("empty");
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no certificate"), "{error}");
        assert!(load(&folder.path().join("absent")).is_err());
    }
}
