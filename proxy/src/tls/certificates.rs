//! The certificates of a listener: loaded from files, checked, selected by server name, and reloaded at run time.
//!
//! Certificates are independent: one that cannot be used is not served, and does not keep others from being served or reloaded.
//! If its files could be used before, the previous version is still served. An expired or not yet valid certificate serves a
//! name only if no valid certificate has it: clients that check dates reject it, but an edge that refused to start could not
//! even serve the challenge that renews it.
//!
//! The names of a certificate are its subject alternative names; there is no setting for them that could contradict the file.

mod pair;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use causeway_conf::folder_entries;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::KeyUsage;

use crate::config::{CertificateFiles, CertificateSource};
use crate::tls::certificates::pair::Pair;

pub(super) use crate::tls::certificates::pair::{check, unix};

/// The file name extensions of certificates in a folder; the key has the same name with `.key`.
const EXTENSIONS: [&str; 2] = ["crt", "pem"];

/// Why a certificate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or has other content.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, and what was expected.
        why: String,
    },
    /// There is no certificate.
    #[error("{0}: no certificate; expected NAME.crt or NAME.pem, with its key in NAME.key")]
    Empty(PathBuf),
    /// There are several certificates, and none of them can be served.
    #[error("none of {} certificates can be served: {}", .0.len(), in_one_line(.0))]
    All(Vec<CertificateError>),
}

impl CertificateError {
    fn file(path: &Path, why: impl Into<String>) -> Self {
        let (path, why) = (path.to_owned(), why.into());
        Self::File { path, why }
    }
}

/// The first few of `errors` in one line.
fn in_one_line(errors: &[CertificateError]) -> String {
    const SHOWN: usize = 5;
    let shown = errors.iter().take(SHOWN).map(CertificateError::to_string);
    let mut line = shown.collect::<Vec<_>>().join("; ");
    if SHOWN < errors.len() {
        line.push_str("; ...");
    }
    line
}

/// The certificates of one listener, shared by all of its connections.
#[derive(Debug)]
pub(crate) struct Certificates {
    source: CertificateSource,
    provider: Arc<CryptoProvider>,
    read: Mutex<LoadedFiles>,
    now: ArcSwap<ServingSet>,
}

/// The result of the last read of the files.
#[derive(Debug, Default)]
struct LoadedFiles {
    entries: Vec<CertificateEntry>,
    /// Why the folder could not be listed, or has nothing to serve; `entries` are then those of the read before.
    folder: Option<CertificateError>,
}

/// One certificate: its files, and the version that is served.
#[derive(Debug)]
struct CertificateEntry {
    files: CertificateFiles,
    /// The best version so far, which may be older than the files.
    served: Option<Pair>,
    /// The problem with the current files.
    problem: Option<CertificateError>,
}

/// The served certificates by name, at one moment.
#[derive(Debug)]
struct ServingSet {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// Certificates with invalid dates, for names that are not in `by_name`.
    by_name_expired: HashMap<String, Arc<CertifiedKey>>,
    /// For clients that send no server name or an unknown one: the first certificate.
    default: Arc<CertifiedKey>,
    /// When the first of them expires, as UNIX time.
    ends: Duration,
    /// When the set has to be built again because a certificate expires or becomes valid, as UNIX time.
    changes: Duration,
}

/// How a certificate is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateState {
    /// The version in its files is served.
    Good,
    /// The previous version is served: the current files cannot be used.
    Previous,
    /// It has expired or is not valid yet, and is served only for names that no other certificate has.
    OutOfDate,
    /// It is not served.
    Unusable,
}

impl CertificateState {
    pub(crate) const ALL: [Self; 4] = [Self::Good, Self::Previous, Self::OutOfDate, Self::Unusable];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Previous => "previous",
            Self::OutOfDate => "out_of_date",
            Self::Unusable => "unusable",
        }
    }
}

/// The status of one certificate, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateStatus {
    pub(crate) path: PathBuf,
    pub(crate) state: CertificateState,
    /// The problem; empty if there is none.
    pub(crate) why: String,
    /// The DNS names of the served version.
    pub(crate) names: Vec<String>,
    /// When the served version expires, as UNIX time.
    pub(crate) ends: Option<Duration>,
}

/// What a reload has changed for one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReloadOutcome {
    /// A new version is served.
    Loaded,
    /// The new version cannot be used.
    Rejected,
}

impl Certificates {
    /// Loads and checks the files of `source`.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] if no certificate can be served: an unreadable file, no certificate or key in it, a key of another
    /// certificate, an invalid chain. If one can be served, [`Certificates::status`] reports the problems of the others.
    pub(crate) fn load(
        source: CertificateSource,
        provider: Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let files = files_of(&source)?;
        let entries = files
            .into_iter()
            .map(|files| CertificateEntry::read(files, &provider));
        let entries: Vec<CertificateEntry> = entries.collect();
        let Some(set) = ServingSet::build(&entries, unix(now)) else {
            let mut errors: Vec<_> = entries.into_iter().filter_map(|it| it.problem).collect();
            return Err(match errors.len() {
                0 => empty(&source),
                1 => errors.remove(0),
                _ => CertificateError::All(errors),
            });
        };
        Ok(Self {
            source,
            provider,
            read: Mutex::new(LoadedFiles {
                entries,
                folder: None,
            }),
            now: ArcSwap::from_pointee(set),
        })
    }

    /// Reads the files again, and serves the new versions of those certificates that can be used.
    ///
    /// If that leaves nothing to serve, the served set stays as it is.
    pub(super) fn reload(&self, now: SystemTime) -> Vec<ReloadOutcome> {
        let mut read = self.read.lock();
        let files = match files_of(&self.source) {
            Ok(files) if files.is_empty() => Err(empty(&self.source)),
            files => files,
        };
        let files = match files {
            Ok(files) => files,
            Err(error) => return read.reject_folder(error),
        };
        let mut changes = Vec::new();
        let mut before: HashMap<PathBuf, CertificateEntry> = std::mem::take(&mut read.entries)
            .into_iter()
            .map(|entry| (entry.files.certificate.clone(), entry))
            .collect();
        for files in files {
            let before = before.remove(&files.certificate);
            let entry = CertificateEntry::read(files, &self.provider);
            let (entry, change) = entry.or_previous(before, unix(now));
            changes.extend(change);
            read.entries.push(entry);
        }
        match ServingSet::build(&read.entries, unix(now)) {
            Some(set) => {
                read.folder = None;
                self.now.store(Arc::new(set));
            }
            // The served certificates are removed, and none of the present files can be used.
            None => {
                read.folder = Some(empty(&self.source));
            }
        }
        changes
    }

    /// Rebuilds the set if certificates have expired or become valid: an expired one is replaced by another with the same name.
    pub(super) fn update_for_dates(&self, now: SystemTime) {
        let now = unix(now);
        if now < self.now.load().changes {
            return;
        }
        let read = self.read.lock();
        if let Some(set) = ServingSet::build(&read.entries, now) {
            self.now.store(Arc::new(set));
        }
    }

    /// When the first served certificate expires, as UNIX time.
    pub(super) fn ends(&self) -> Duration {
        self.now.load().ends
    }

    /// The status of each certificate, in order of precedence.
    pub(crate) fn status(&self, now: SystemTime) -> Vec<CertificateStatus> {
        let now = unix(now);
        let read = self.read.lock();
        let mut all: Vec<_> = read.entries.iter().map(|entry| entry.status(now)).collect();
        if let (Some(error), CertificateSource::Folder(folder)) = (&read.folder, &self.source) {
            all.push(CertificateStatus {
                path: folder.clone(),
                state: CertificateState::Unusable,
                why: error.to_string(),
                names: Vec::new(),
                ends: None,
            });
        }
        all
    }

    /// The present files.
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

impl LoadedFiles {
    /// Keeps the entries. Reports the error once.
    fn reject_folder(&mut self, error: CertificateError) -> Vec<ReloadOutcome> {
        if self.folder.as_ref() == Some(&error) {
            return Vec::new();
        }
        self.folder = Some(error);
        vec![ReloadOutcome::Rejected]
    }
}

impl CertificateEntry {
    fn read(files: CertificateFiles, provider: &CryptoProvider) -> Self {
        let (served, problem) = match Pair::read(&files, provider, KeyUsage::server_auth()) {
            Ok(pair) => (Some(pair), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            files,
            served,
            problem,
        }
    }

    /// The entry with the version that was served `before`, if that is better; and what has changed.
    fn or_previous(mut self, before: Option<Self>, now: Duration) -> (Self, Option<ReloadOutcome>) {
        if let Some(pair) = &self.served {
            self.problem = pair.date_error(now, &self.files.certificate);
        }
        let (old, old_problem) = before.map_or((None, None), |entry| (entry.served, entry.problem));
        let is_same = self.served.is_some() && self.served == old;
        let is_worse = |old: &Pair| match &self.served {
            None => true,
            Some(new) => !new.is_valid(now) && old.is_valid(now),
        };
        let keeps_old = !is_same && old.as_ref().is_some_and(is_worse);
        let change = match &self.problem {
            Some(problem) if old_problem.as_ref() != Some(problem) && !is_same => {
                Some(ReloadOutcome::Rejected)
            }
            None if !is_same || old_problem.is_some() => Some(ReloadOutcome::Loaded),
            _ => None,
        };
        if keeps_old {
            self.served = old;
        } else if self.served.is_some() {
            // `status` checks the dates itself.
            self.problem = None;
        }
        (self, change)
    }

    fn status(&self, now: Duration) -> CertificateStatus {
        let path = &self.files.certificate;
        let dates = self
            .served
            .as_ref()
            .and_then(|pair| pair.date_error(now, path));
        let state = match (&self.served, &self.problem, &dates) {
            (None, ..) => CertificateState::Unusable,
            (_, _, Some(_)) => CertificateState::OutOfDate,
            (_, Some(_), None) => CertificateState::Previous,
            (_, None, None) => CertificateState::Good,
        };
        let why = self.problem.as_ref().or(dates.as_ref());
        CertificateStatus {
            path: path.clone(),
            state,
            why: why.map_or_else(String::new, CertificateError::to_string),
            names: self
                .served
                .as_ref()
                .map_or_else(Vec::new, |pair| pair.names.clone()),
            ends: self.served.as_ref().map(Pair::ends),
        }
    }
}

impl ServingSet {
    /// Builds the set for `now`; `None` if there is nothing to serve.
    fn build(entries: &[CertificateEntry], now: Duration) -> Option<Self> {
        let served = || entries.iter().filter_map(|entry| entry.served.as_ref());
        let (mut by_name, mut by_name_expired) = (HashMap::new(), HashMap::new());
        for pair in served() {
            let names = match pair.is_valid(now) {
                true => &mut by_name,
                false => &mut by_name_expired,
            };
            for name in &pair.names {
                // If two have the same name, the first is used.
                names
                    .entry(name.clone())
                    .or_insert_with(|| Arc::clone(&pair.key));
            }
        }
        let default = served()
            .find(|pair| pair.is_valid(now))
            .or_else(|| served().next())?;
        let changes = served().filter_map(|pair| pair.next_change(now)).min();
        Some(Self {
            by_name,
            by_name_expired,
            default: Arc::clone(&default.key),
            ends: served().map(Pair::ends).min().unwrap_or(Duration::MAX),
            changes: changes.unwrap_or(Duration::MAX),
        })
    }

    /// The certificate of the exact name, then of the wildcard for its first label (RFC 6125, 6.4.3), then the same among those with invalid dates, then the default.
    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name else {
            return &self.default;
        };
        Self::find_in(&self.by_name, name)
            .or_else(|| Self::find_in(&self.by_name_expired, name))
            .unwrap_or(&self.default)
    }

    fn find_in<'set>(
        names: &'set HashMap<String, Arc<CertifiedKey>>,
        name: &str,
    ) -> Option<&'set Arc<CertifiedKey>> {
        if names.is_empty() {
            return None;
        }
        let by_wildcard = || {
            let (_, rest) = name.split_once('.')?;
            names.get(&format!("*.{rest}"))
        };
        names.get(name).or_else(by_wildcard)
    }
}

fn empty(source: &CertificateSource) -> CertificateError {
    CertificateError::Empty(match source {
        CertificateSource::Folder(folder) => folder.clone(),
        CertificateSource::Files(_) => PathBuf::new(),
    })
}

/// The pairs of certificate and key files; those of a folder sorted by name.
///
/// In a folder, files that start with a dot are skipped (temporary files, and those of Kubernetes volumes), and so are the
/// certificates of authorities (`ca.crt` of cert-manager), which have no key.
fn files_of(source: &CertificateSource) -> Result<Vec<CertificateFiles>, CertificateError> {
    let folder = match source {
        CertificateSource::Files(files) => return Ok(files.clone()),
        CertificateSource::Folder(folder) => folder,
    };
    let unreadable = |error: std::io::Error| CertificateError::file(folder, error.to_string());
    let mut files = Vec::new();
    for certificate in folder_entries(folder).map_err(unreadable)? {
        let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        if certificate.file_name().is_none_or(is_hidden) {
            continue;
        }
        let extension = certificate
            .extension()
            .and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            files.extend(pair::find_key(certificate));
        }
    }
    files.sort_by(|a, b| a.certificate.cmp(&b.certificate));
    Ok(files)
}

#[cfg(test)]
mod tests;
